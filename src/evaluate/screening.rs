//! Screens every labelled image and records the scores. The only file of this module that names the screen.

use anyhow::{Context, bail};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use tokio::sync::mpsc;

use super::dataset::DatasetError;
use super::images::{DatasetEntry, DatasetReader, ImageContent, LabelledImage};
use super::metrics::ScoredImage;
use super::report;
use super::results::{EvaluationResults, Mistake, UnscoredImages};
use super::slices::{ImageProperties, SlicedImage};
use crate::config::Config;
use crate::error_text;
use crate::files;
use crate::job::{Digests, Lane};
use crate::lanes::{Gate, Permit};
use crate::screen::{Screen, ScreenError, ScreenedImage, decode};

/// Edge of a mistake's picture on the page, in pixels.
const PICTURE_EDGE: u32 = 128;
/// Entries that wait in memory between the reader and the screening.
const READ_AHEAD: usize = 4;

/// Follows the screening while it runs.
pub(crate) trait EvaluationObserver {
    /// An image has been scored.
    fn scored(&self);
    fn unscored(&self, unscored: &UnscoredImages);
}

/// A dataset that does not fit is an error in the arguments, also where only a row deep in a file shows it.
#[derive(Debug, thiserror::Error)]
#[error("`--dataset`: {0}")]
pub(crate) struct InvalidDataset(#[source] pub DatasetError);

/// Reads, screens and records every image, in order. With `pictures`, mistakes keep a picture for the page.
///
/// # Errors
/// When a dataset does not fit, or a session failed and no further image would be scored.
pub(crate) async fn screen_all(
    reader: DatasetReader,
    screen: &Screen,
    config: &Config,
    results: &mut EvaluationResults,
    pictures: bool,
    observer: &impl EvaluationObserver,
) -> anyhow::Result<()> {
    let digests = screen.digests(None).unwrap_or_default();
    let (max_object_bytes, memory) = (config.storage.max_object_bytes, Gate::new(config.storage.memory_bytes));
    let screener = Screener { screen, digests, max_object_bytes, memory };
    // Enough to keep decoders and sessions busy.
    let concurrency = 2 * screen.max_batch() + decode::DecoderPool::thread_count(&config.decode);
    let (send, mut receive) = mpsc::channel(READ_AHEAD);
    let reading = tokio::task::spawn_blocking(move || reader.read(|entry| send.blocking_send(entry).is_ok()));
    let mut screened = stream::poll_fn(|context| receive.poll_recv(context))
        .map(|entry| async { Ok(screener.screen(entry.map_err(InvalidDataset)?).await?) })
        .buffered(concurrency);
    while let Some(entry) = screened.next().await {
        let entry: anyhow::Result<ScreenedEntry> = entry;
        match entry? {
            ScreenedEntry::Scored(scored) => {
                record_scores(results, &scored, pictures);
                observer.scored();
            }
            ScreenedEntry::Unscored(unscored) => {
                observer.unscored(&unscored);
                results.unscored.push(unscored);
            }
        }
    }
    reading.await.context("the task that reads the datasets panicked")
}

enum ScreenedEntry {
    Scored(Box<ScoredEntry>),
    Unscored(UnscoredImages),
}

struct ScoredEntry {
    image: LabelledImage,
    sight: ScreenedImage,
    /// The size of the file.
    bytes: u64,
}

struct Screener<'a> {
    screen: &'a Screen,
    digests: Digests,
    max_object_bytes: u64,
    /// Bounds the bytes of files in memory.
    memory: Gate,
}

impl Screener<'_> {
    /// Screens one image. Fails only where a session failed: then no further image would be scored.
    async fn screen(&self, entry: DatasetEntry) -> Result<ScreenedEntry, ScreenError> {
        let image = match entry {
            DatasetEntry::Image(image) => image,
            DatasetEntry::Unscored(unscored) => return Ok(ScreenedEntry::Unscored(unscored)),
        };
        let unscored = |reason: String| {
            let (dataset, image) = (image.dataset, image.name.clone());
            Ok(ScreenedEntry::Unscored(UnscoredImages { dataset, image, reason, images: 1 }))
        };
        let (bytes, _permit) = match self.read(&image.content).await {
            Ok(read) => read,
            Err(e) => return unscored(format!("{:#}", e.root_cause())),
        };
        let length = bytes.len() as u64;
        match self.screen.screen_image(Lane::Backfill, bytes, &self.digests).await {
            Ok(sight) => match sight.facts.why_invalid() {
                Some(reason) => unscored(reason),
                None => Ok(ScreenedEntry::Scored(Box::new(ScoredEntry { image, sight, bytes: length }))),
            },
            Err(failed @ ScreenError::SessionBroken { .. }) => Err(failed),
            Err(e) => unscored(error_text(&e)),
        }
    }

    /// An image's bytes, and the permit for the memory they take.
    async fn read(&self, content: &ImageContent) -> anyhow::Result<(Bytes, Permit)> {
        let limit = self.max_object_bytes;
        match content {
            ImageContent::Bytes(bytes) if bytes.len() as u64 > limit => {
                bail!("the image has {} bytes, the limit is {limit}", bytes.len());
            }
            ImageContent::Bytes(bytes) => Ok((bytes.clone(), self.memory.enter(Lane::Live, bytes.len() as u64).await?)),
            ImageContent::File(path) => {
                let length = tokio::fs::metadata(path).await?.len();
                if length > limit {
                    bail!("the file has {length} bytes, the limit is {limit}");
                }
                let permit = self.memory.enter(Lane::Live, length).await?;
                match files::read(path.clone(), limit).await? {
                    Some((bytes, _)) => Ok((bytes, permit)),
                    None => bail!("the file has more bytes than the limit of {limit}"),
                }
            }
        }
    }
}

fn record_scores(results: &mut EvaluationResults, entry: &ScoredEntry, pictures: bool) {
    let ScoredEntry { image, sight, bytes } = entry;
    let EvaluationResults { subjects, scored, uncalibrated, sliced, worst, .. } = results;
    let (info, dataset) = (&sight.info, image.dataset);
    let properties = ImageProperties::new(info.format, [info.width, info.height], *bytes, dataset);
    for (index, subject) in subjects.iter().enumerate() {
        let Some(score) = sight.facts.score(&subject.detector, &subject.positive) else { continue };
        let image_scored = ScoredImage { score, positive: image.positive[index] };
        scored[index][dataset].push(image_scored);
        sliced[index].push(SlicedImage { image: image_scored, properties });
        let before = sight.uncalibrated.as_ref().and_then(|facts| facts.score(&subject.detector, &subject.positive));
        uncalibrated[index].extend(before.map(|score| ScoredImage { score, ..image_scored }));
        worst[index].offer(image_scored, || Mistake {
            dataset,
            image: image.name.clone(),
            score,
            picture: if pictures { picture(sight, &subject.detector) } else { None },
        });
    }
}

/// The first frame as the detector was given it, for the page.
fn picture(sight: &ScreenedImage, detector: &str) -> Option<String> {
    let (_, pixels) = sight.seen.first()?.by_detector.iter().find(|(name, _)| name == detector)?;
    let picture = decode::encode_picture(pixels, PICTURE_EDGE).ok()?;
    Some(report::data_uri(picture.media_type, &picture.bytes))
}
