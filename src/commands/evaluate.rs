//! `pixwarden evaluate`: labelled images through the same screen, and what that says of the detectors.

mod print;
mod read;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use futures_util::stream::{self, StreamExt};
use tokio::sync::mpsc;

use super::files;
use super::output::{Format, printable};
use super::progress::{Progress, Unit};
use crate::config::{Config, ConfigError};
use crate::errors::with_causes;
use crate::evaluate::dataset::{Dataset, DatasetError, Truths};
use crate::evaluate::findings::{Findings, Mistake, Unscored};
use crate::evaluate::metrics::Scored;
use crate::evaluate::report::{self, Facts};
use crate::evaluate::subject::{subjects, with_default_rules};
use crate::evaluate::summary::{Summary, Wanted};
use crate::job::{Digests, Lane, Outcome};
use crate::lanes::{Gate, Permit};
use crate::screen::{Screen, ScreenError, ScreenedImage, StartError, decode, packages, policy_for};
use read::{Content, Found, Image, Sources};

/// Mistakes of either kind that the page shows a detector.
const MISTAKES: usize = 12;
/// Edge of a mistake's picture on the page, in pixels.
const PICTURE_EDGE: u32 = 128;

/// Options of `evaluate`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Labelled images; datasets of one name share a row [repeatable]
    ///
    /// PATH is an image, a folder that is searched for images, or a parquet file with an image column. LABEL is one of
    /// the detectors' labels, or `positive` for the one that is looked for and `negative` for any other.
    ///
    /// `column:NAME` takes each row's label from a column of the parquet file (or of every *.parquet in a folder):
    /// words are labels; numbers are positions in the names the file gives that column in its Hugging Face metadata,
    /// and without them in the detector's labels; null and -1 are no label. `column:NAME=VALUE` takes VALUE as
    /// positive and any other value as negative.
    #[arg(long = "dataset", required = true, value_name = "NAME=LABEL:PATH", value_parser = Dataset::parse)]
    datasets: Vec<Dataset>,
    /// The false-positive rate wanted for flagging: of all negative images, the share that may reach `flag_at`
    #[arg(long, value_name = "RATE", default_value_t = 0.01)]
    fpr: f64,
    /// The false-positive rate wanted for review [default: 5 × --fpr]
    #[arg(long, value_name = "RATE")]
    review_fpr: Option<f64>,
    /// Write a page with curves, histograms and the worst mistakes; it needs no other file
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// How figures are printed
    #[arg(long, value_enum)]
    format: Option<Format>,
}

pub(super) async fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<u8> {
    let wanted = arguments.wanted()?;
    arguments.check_report()?;
    let detectors = packages(config)?;
    let mut config = config.clone();
    config.policy = with_default_rules(&config.policy, &detectors).map_err(StartError::from)?;
    let subjects: Arc<[_]> = subjects(&config.policy, &detectors).map_err(StartError::from)?.into();
    let sources = Sources::open(&arguments.datasets, Truths::new(Arc::clone(&subjects))).map_err(unusable)?;

    let policy = policy_for(&config, &detectors).map_err(StartError::from)?;
    let screen = Screen::start_with(&config, detectors, policy)?;
    let mut findings = Findings::new(subjects, sources.names.clone(), MISTAKES);
    look_at_all(sources, &screen, &config, &mut findings, arguments.report.is_some()).await?;

    let summaries: Vec<Summary<'_>> =
        (0..findings.subjects.len()).map(|index| Summary::new(&findings, index, wanted)).collect();
    print::print(Format::or_default(arguments.format), &summaries, &findings)?;
    if let Some(path) = &arguments.report {
        let facts = Facts { made_at: time::OffsetDateTime::now_utc(), version: env!("CARGO_PKG_VERSION") };
        let page = report::page(&summaries, &findings, &facts);
        std::fs::write(path, page).with_context(|| format!("writing the report {}", path.display()))?;
    }
    if findings.is_empty() {
        eprintln!("error: no image could be scored, so there is nothing to evaluate");
    }
    Ok(u8::from(findings.is_empty()))
}

impl Arguments {
    fn wanted(&self) -> Result<Wanted, ConfigError> {
        let wanted = Wanted { review: self.review_fpr.unwrap_or((5.0 * self.fpr).min(1.0)), flag: self.fpr };
        // Written so that a rate that is not a number is refused too.
        if !(0.0 <= wanted.flag && wanted.flag <= wanted.review && wanted.review <= 1.0) {
            let what = format!(
                "0 <= --fpr <= --review-fpr <= 1 must hold, but they are {} and {}; what is flagged would be reviewed too",
                wanted.flag, wanted.review
            );
            return Err(ConfigError::Invalid { option: "--fpr".into(), what });
        }
        Ok(wanted)
    }

    /// It would be a pity to find out after an hour.
    fn check_report(&self) -> Result<(), ConfigError> {
        let Some(path) = &self.report else { return Ok(()) };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if path.is_dir() || folder.is_some_and(|folder| !folder.is_dir()) {
            let what = format!("{} cannot be written: name a file in a folder that exists", path.display());
            return Err(ConfigError::Invalid { option: "--report".into(), what });
        }
        Ok(())
    }
}

/// A dataset that does not fit is a mistake in the arguments, also where a row deep in a file shows it.
fn unusable(error: DatasetError) -> ConfigError {
    ConfigError::Invalid { option: "--dataset".into(), what: error.to_string() }
}

/// Reads, screens and counts every image, in order, with the bar moving.
async fn look_at_all(
    sources: Sources,
    screen: &Screen,
    config: &Config,
    findings: &mut Findings,
    pictures: bool,
) -> anyhow::Result<()> {
    let progress = Progress::new(Unit::Images);
    progress.expect(sources.images());
    let digests = screen.digests(None).unwrap_or_default();
    let (max_bytes, bytes) = (config.storage.max_object_bytes, Gate::new(config.storage.memory_bytes));
    let desk = Desk { screen, digests, max_bytes, bytes };
    // Enough to keep decoders and sessions busy.
    let ahead = 2 * screen.max_batch() + decode::DecoderPool::thread_count(&config.decode);
    // What waits here is held in memory, on top of what is being looked at.
    let (send, mut receive) = mpsc::channel(4);
    let reader = tokio::task::spawn_blocking(move || sources.read(|found| send.blocking_send(found).is_ok()));
    let mut looked = stream::poll_fn(|context| receive.poll_recv(context))
        .map(|found| async { Ok(desk.look(found.map_err(unusable)?).await?) })
        .buffered(ahead);
    while let Some(looked) = looked.next().await {
        let looked: anyhow::Result<Looked> = looked;
        match looked? {
            Looked::Seen(image, sight) => {
                count(findings, &image, &sight, pictures);
                progress.advance(1);
            }
            Looked::Not(unscored) => {
                // Names inside a file come from anybody.
                progress.around(|| {
                    eprintln!("not scored: {}", printable(&format!("{}: {}", unscored.image, unscored.reason)));
                });
                progress.advance(unscored.images);
                findings.unscored.push(unscored);
            }
        }
    }
    progress.finish();
    reader.await.context("reading the datasets")
}

/// An image with its scores, or why it has none.
enum Looked {
    Seen(Image, ScreenedImage),
    Not(Unscored),
}

/// What every image meets.
struct Desk<'a> {
    screen: &'a Screen,
    digests: Digests,
    max_bytes: u64,
    /// Bounds the bytes of files in memory.
    bytes: Gate,
}

impl Desk<'_> {
    /// Looks at one image.
    ///
    /// Fails only where a session is gone, since no further image would be scored then.
    async fn look(&self, found: Found) -> Result<Looked, ScreenError> {
        let image = match found {
            Found::Image(image) => image,
            Found::Unscored(unscored) => return Ok(Looked::Not(unscored)),
        };
        let not = |reason: String| {
            let (dataset, image) = (image.dataset, image.name.clone());
            Ok(Looked::Not(Unscored { dataset, image, reason, images: 1 }))
        };
        let (bytes, _memory) = match self.read(&image.content).await {
            Ok(read) => read,
            Err(e) => return not(format!("{:#}", e.root_cause())),
        };
        match self.screen.screen_image(Lane::Backfill, bytes, &self.digests).await {
            // Scores that are not probabilities.
            Ok(sight) if sight.judgement.outcome == Outcome::Failed => not(sight.judgement.reason.unwrap_or_default()),
            Ok(sight) => Ok(Looked::Seen(image, sight)),
            Err(broken @ ScreenError::SessionBroken { .. }) => Err(broken),
            Err(e) => not(with_causes(&e)),
        }
    }

    /// An image's bytes, and the memory they were admitted with.
    async fn read(&self, content: &Content) -> anyhow::Result<(Bytes, Permit)> {
        let limit = self.max_bytes;
        match content {
            Content::Bytes(bytes) if bytes.len() as u64 > limit => {
                bail!("the image has {} bytes, the limit is {limit}", bytes.len());
            }
            Content::Bytes(bytes) => Ok((bytes.clone(), self.bytes.enter(Lane::Live, bytes.len() as u64).await?)),
            Content::File(path) => {
                let length = tokio::fs::metadata(path).await?.len();
                if length > limit {
                    bail!("the file has {length} bytes, the limit is {limit}");
                }
                let memory = self.bytes.enter(Lane::Live, length).await?;
                match files::read(path.clone(), limit).await? {
                    Some((bytes, _)) => Ok((bytes, memory)),
                    None => bail!("the file has more bytes than the limit, {limit}"),
                }
            }
        }
    }
}

fn count(findings: &mut Findings, image: &Image, sight: &ScreenedImage, pictures: bool) {
    let Findings { subjects, scored, worst, .. } = findings;
    for (index, subject) in subjects.iter().enumerate() {
        // Of an animation each detector's own highest frame counts, whatever another one says of it.
        let scores = sight.frames.iter().filter_map(|frame| frame.get(&subject.detector)?.get(&subject.positive));
        let Some(score) = scores.copied().reduce(f32::max) else { continue };
        let image_scored = Scored { score, positive: image.truths[index] };
        scored[index][image.dataset].push(image_scored);
        worst[index].offer(image_scored, || Mistake {
            dataset: image.dataset,
            image: image.name.clone(),
            score,
            picture: if pictures { picture(sight, &subject.detector) } else { None },
        });
    }
}

/// What a detector saw of an image's first frame, for the page.
fn picture(sight: &ScreenedImage, detector: &str) -> Option<String> {
    let (_, pixels) = sight.first_frame.iter().find(|(name, _)| name == detector)?;
    let picture = decode::encode_picture(pixels, PICTURE_EDGE).ok()?;
    Some(report::data_uri(picture.media_type, &picture.bytes))
}
