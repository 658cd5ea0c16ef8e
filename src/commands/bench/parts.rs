//! The parts of the screen, each alone and then together, all fed from memory.

use std::cell::RefCell;
use std::sync::Arc;

use super::Bench;
use super::load::{Tally, count};
use super::sample::Sample;
use crate::config::DecodeConfig;
use crate::detector::Geometry;
use crate::job::{Judgement, Lane, Scores};
use crate::screen::DecoderProcessError;
use crate::screen::decode::DecoderPool;
use crate::screen::infer::Engine;
use crate::worker::max_jobs;

/// Decoders at work.
pub(super) struct Decoding {
    pub decoders: usize,
    pub tally: Tally,
}

/// A session under batches of one size.
pub(super) struct Batch {
    pub size: usize,
    /// Of runs.
    pub tally: Tally,
}

impl Batch {
    /// Images a second.
    pub(super) fn rate(&self) -> f64 {
        self.tally.rate() * count(self.size as u64)
    }

    /// Processor time an image, in milliseconds.
    pub(super) fn processor_ms(&self) -> Option<f64> {
        self.tally.processor_ms().map(|ms| ms / count(self.size as u64))
    }
}

/// A detector's session, by batch size.
pub(super) struct Session {
    pub detector: String,
    pub digest: String,
    pub place: String,
    /// At least one.
    pub batches: Vec<Batch>,
}

impl Session {
    /// The batch with the most images a second.
    pub(super) fn fastest(&self) -> &Batch {
        let mut fastest = &self.batches[0];
        for batch in &self.batches {
            if batch.rate() > fastest.rate() {
                fastest = batch;
            }
        }
        fastest
    }

    /// Images a second by the batch's size, ascending.
    pub(super) fn rates(&self) -> Vec<(usize, f64)> {
        self.batches.iter().map(|batch| (batch.size, batch.rate())).collect()
    }

    pub(super) fn is_on_processor(&self) -> bool {
        self.place == "CPU"
    }
}

/// The whole screen.
pub(super) struct Pipeline {
    pub in_flight: usize,
    pub tally: Tally,
    /// What was made of each image of the sample, where it was its turn.
    pub judged: Vec<Option<(Judgement, Scores)>>,
}

/// What the detectors want of an image; those that want the same share it.
pub(super) fn geometries(engines: &[Engine]) -> Arc<[Geometry]> {
    let mut geometries = Vec::new();
    for engine in engines {
        if !geometries.contains(&engine.detector.geometry) {
            geometries.push(engine.detector.geometry);
        }
    }
    geometries.into()
}

/// 1, 2, 4 and so on, and the most.
pub(super) fn sizes(most: usize) -> Vec<usize> {
    let mut sizes: Vec<usize> =
        std::iter::successors(Some(1), |size| Some(size * 2)).take_while(|n| *n < most).collect();
    sizes.push(most);
    sizes
}

/// One decoder alone, as a pool of its own.
pub(super) fn one_decoder(config: &DecodeConfig) -> Result<DecoderPool, DecoderProcessError> {
    DecoderPool::start(&DecodeConfig { threads: 1, ..config.clone() })
}

impl Bench<'_> {
    /// Decodes and prepares the sample over and over.
    pub(super) async fn decoding(
        &self,
        sample: &Sample,
        pool: &DecoderPool,
        decoders: usize,
    ) -> anyhow::Result<Decoding> {
        let geometries = geometries(self.screen.engines());
        let mut images = sample.images.iter().cycle();
        // As many wait as are being decoded, so that no decoder does.
        let tally = self.load(2 * decoders, sample.images.len()).run(|| {
            let bytes = images.next().map(|image| image.bytes.clone()).unwrap_or_default();
            let decoded = pool.decode(Lane::Live, bytes, Arc::clone(&geometries));
            async { Ok(decoded.await.map(drop)?) }
        });
        Ok(Decoding { decoders, tally: tally.await? })
    }

    /// Runs one batch after another. On a GPU a worker fills the next one meanwhile, and may do more.
    pub(super) async fn batch(&self, sample: &Sample, engine: &Engine, size: usize) -> anyhow::Result<Batch> {
        let geometries = geometries(self.screen.engines());
        let geometry = geometries.iter().position(|geometry| *geometry == engine.detector.geometry);
        let shown = sample.images.iter().filter_map(|image| image.pixels.get(geometry?));
        let mut shown = shown.cycle();
        let tally = self.load(1, 1).run(|| {
            let batch = shown.by_ref().take(size).map(Arc::clone).collect();
            async { Ok(engine.score_together(Lane::Live, batch).await.map(drop)?) }
        });
        Ok(Batch { size, tally: tally.await? })
    }

    /// Looks at the sample over and over, with as much in flight as a worker has whose store answers at once.
    pub(super) async fn pipeline(&self, sample: &Sample) -> anyhow::Result<Pipeline> {
        let digests = self.screen.digests(None).unwrap_or_default();
        let in_flight = max_jobs(self.config, self.screen);
        let judged = RefCell::new(vec![None; sample.images.len()]);
        let mut turns = (0..sample.images.len()).cycle();
        let tally = self.load(in_flight, sample.images.len()).run(|| {
            let turn = turns.next().unwrap_or_default();
            let look = self.screen.screen_image(Lane::Live, sample.images[turn].bytes.clone(), &digests);
            let judged = &judged;
            async move {
                let sight = look.await?;
                judged.borrow_mut()[turn].get_or_insert((sight.judgement, sight.scores));
                Ok(())
            }
        });
        let tally = tally.await?;
        Ok(Pipeline { in_flight, tally, judged: judged.into_inner() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_double_up_to_the_most() {
        assert_eq!(sizes(1), [1]);
        assert_eq!(sizes(8), [1, 2, 4, 8]);
        assert_eq!(sizes(12), [1, 2, 4, 8, 12]);
    }
}
