//! The parts of the screen, each alone and then together, all fed from memory.

use std::cell::RefCell;
use std::sync::Arc;

use super::Bench;
use super::load::{LoadResult, as_f64};
use super::sample::Sample;
use crate::config::DecodeConfig;
use crate::detector::Geometry;
use crate::job::{Facts, Lane};
use crate::screen::DecoderProcessError;
use crate::screen::decode::DecoderPool;
use crate::screen::infer::Engine;
use crate::worker::max_jobs;

pub(crate) struct DecodingResult {
    pub decoders: usize,
    pub result: LoadResult,
}

/// A session under batches of one size.
pub(crate) struct BatchResult {
    pub size: usize,
    /// Counts runs, not images.
    pub result: LoadResult,
}

impl BatchResult {
    pub(crate) fn images_per_s(&self) -> f64 {
        self.result.per_second() * as_f64(self.size as u64)
    }

    /// Processor time per image in milliseconds.
    pub(crate) fn processor_ms(&self) -> Option<f64> {
        self.result.processor_ms().map(|ms| ms / as_f64(self.size as u64))
    }
}

/// A detector's session, by batch size.
pub(crate) struct SessionResult {
    pub detector: String,
    pub digest: String,
    pub device: String,
    /// At least one, by ascending size.
    pub batches: Vec<BatchResult>,
}

impl SessionResult {
    /// The batch with the most images per second.
    pub(super) fn fastest(&self) -> &BatchResult {
        let mut fastest = &self.batches[0];
        for batch in &self.batches {
            if batch.images_per_s() > fastest.images_per_s() {
                fastest = batch;
            }
        }
        fastest
    }

    /// Batch sizes, ascending, with images per second.
    pub(super) fn rates(&self) -> Vec<(usize, f64)> {
        self.batches.iter().map(|batch| (batch.size, batch.images_per_s())).collect()
    }

    pub(super) fn is_on_cpu(&self) -> bool {
        self.device == "CPU"
    }
}

/// The whole screen.
pub(crate) struct PipelineResult {
    pub in_flight: usize,
    pub result: LoadResult,
    /// The facts of each image of the sample, where the image was reached in time.
    pub facts: Vec<Option<Facts>>,
}

/// What the detectors need decoded; detectors with equal needs share one geometry.
pub(super) fn distinct_geometries(engines: &[Engine]) -> Arc<[Geometry]> {
    let mut geometries = Vec::new();
    for engine in engines {
        if !geometries.contains(&engine.detector.geometry) {
            geometries.push(engine.detector.geometry);
        }
    }
    geometries.into()
}

/// 1, 2, 4 and so on below the largest, and the largest.
pub(super) fn batch_sizes(largest: usize) -> Vec<usize> {
    let mut sizes: Vec<usize> =
        std::iter::successors(Some(1), |size| Some(size * 2)).take_while(|n| *n < largest).collect();
    sizes.push(largest);
    sizes
}

pub(super) fn single_decoder_pool(config: &DecodeConfig) -> Result<DecoderPool, DecoderProcessError> {
    DecoderPool::start(&DecodeConfig { threads: 1, ..config.clone() })
}

impl Bench<'_> {
    /// Decodes and prepares the sample over and over.
    pub(super) async fn measure_decoding(
        &self,
        sample: &Sample,
        pool: &DecoderPool,
        decoders: usize,
    ) -> anyhow::Result<DecodingResult> {
        let geometries = distinct_geometries(self.screen.engines());
        let mut images = sample.images.iter().cycle();
        // As many images wait as are being decoded, so that no decoder is idle.
        let result = self.load(2 * decoders, sample.images.len()).run(|| {
            let bytes = images.next().map(|image| image.bytes.clone()).unwrap_or_default();
            let decoded = pool.decode(Lane::Live, bytes, Arc::clone(&geometries));
            async { Ok(decoded.await.map(drop)?) }
        });
        Ok(DecodingResult { decoders, result: result.await? })
    }

    /// Runs one batch after another. On a GPU a worker fills the next batch during a run and may be faster than this.
    pub(super) async fn measure_batch(
        &self,
        sample: &Sample,
        engine: &Engine,
        size: usize,
    ) -> anyhow::Result<BatchResult> {
        let geometries = distinct_geometries(self.screen.engines());
        let geometry = geometries.iter().position(|geometry| *geometry == engine.detector.geometry);
        let pixels = sample.images.iter().filter_map(|image| image.pixels.get(geometry?));
        let mut pixels = pixels.cycle();
        let result = self.load(1, 1).run(|| {
            let batch = pixels.by_ref().take(size).map(Arc::clone).collect();
            async { Ok(engine.score_together(Lane::Live, batch).await.map(drop)?) }
        });
        Ok(BatchResult { size, result: result.await? })
    }

    /// Screens the sample over and over, with as many images in flight as a worker has whose store responds at once.
    pub(super) async fn measure_pipeline(&self, sample: &Sample) -> anyhow::Result<PipelineResult> {
        let digests = self.screen.digests(None).unwrap_or_default();
        let in_flight = max_jobs(self.config, self.screen);
        let facts = RefCell::new(vec![None; sample.images.len()]);
        let mut indices = (0..sample.images.len()).cycle();
        let result = self.load(in_flight, sample.images.len()).run(|| {
            let index = indices.next().unwrap_or_default();
            let screening = self.screen.screen_image(Lane::Live, sample.images[index].bytes.clone(), &digests);
            let facts = &facts;
            async move {
                let sight = screening.await?;
                facts.borrow_mut()[index].get_or_insert(sight.facts);
                Ok(())
            }
        });
        let result = result.await?;
        Ok(PipelineResult { in_flight, result, facts: facts.into_inner() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batch_sizes_double_up_to_the_largest() {
        assert_eq!(batch_sizes(1), [1]);
        assert_eq!(batch_sizes(8), [1, 2, 4, 8]);
        assert_eq!(batch_sizes(12), [1, 2, 4, 8, 12]);
    }
}
