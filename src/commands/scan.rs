//! `pixwarden scan`: local files through the same screen, without any service.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, ValueEnum};
use futures_util::stream::{self, StreamExt};
use serde_json::{Map, Value, json};

use super::files;
use super::output::{Format, Output};
use crate::config::Config;
use crate::job::{Digests, Judgement, Lane, Outcome, exact, exact_scores};
use crate::screen::prepare::Pixels;
use crate::screen::{Screen, Sight, Unseen, decode};

const COLUMNS: [&str; 8] = ["image", "outcome", "label", "score", "format", "width", "height", "reason"];

/// The outcome from which on `scan` exits with 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum FailOn {
    Review,
    Flagged,
}

/// Options of `scan`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Files and folders, in the order in which they are reported
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// How rows are printed
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Exit with 3 when an image reaches this outcome
    #[arg(long, value_enum, value_name = "OUTCOME")]
    fail_on: Option<FailOn>,
    /// Write what each detector saw of each image's first frame, as DIR/DETECTOR/SHA256.png
    #[arg(long, value_name = "DIR")]
    save_pixels: Option<PathBuf>,
}

pub(super) async fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<u8> {
    let screen = Screen::start(config)?;
    let digests = screen.digests(None).unwrap_or_default();
    let mut output = Output::new(Format::or_default(arguments.format), &COLUMNS)?;
    // Enough to keep decoders and sessions busy; the results are reported in order.
    let ahead = 2 * screen.max_batch() + decode::Pool::threads(&config.decode);
    let max_bytes = config.storage.max_object_bytes;
    let mut reports = stream::iter(files::walk(&arguments.paths))
        .map(|file| async { report(file, max_bytes, &screen, &digests).await })
        .buffered(ahead);

    let (mut images, mut worst, mut unreadable) = (0u64, Outcome::Passed, 0u64);
    let mut counts: std::collections::BTreeMap<Outcome, u64> = std::collections::BTreeMap::new();
    while let Some(report) = reports.next().await {
        match report {
            Ok(report) => {
                images += 1;
                *counts.entry(report.judgement.outcome).or_default() += 1;
                if matches!(report.judgement.outcome, Outcome::Review | Outcome::Flagged) {
                    worst = worst.max(report.judgement.outcome);
                }
                if let Some(folder) = &arguments.save_pixels {
                    save(folder, &report)?;
                }
                output.row(&report.row())?;
            }
            Err(e) => {
                unreadable += 1;
                eprintln!("error: {e:#}");
            }
        }
    }
    output.finish()?;
    let counts_failed = counts.contains_key(&Outcome::Failed);
    let counts: Vec<_> = counts.iter().map(|(outcome, n)| format!("{n} {outcome}")).collect();
    eprintln!(
        "{images} {}: {}",
        if images == 1 { "image" } else { "images" },
        if counts.is_empty() { "none".into() } else { counts.join(", ") }
    );
    let reached = match arguments.fail_on {
        Some(FailOn::Review) => worst >= Outcome::Review,
        Some(FailOn::Flagged) => worst >= Outcome::Flagged,
        None => false,
    };
    let failed = counts_failed || unreadable > 0;
    Ok(if reached { 3 } else { u8::from(failed) })
}

/// What was found in one file.
struct Report {
    image: String,
    sha256: Option<String>,
    bytes: u64,
    sight: Option<Sight>,
    judgement: Judgement,
    shown: Vec<(String, Arc<Pixels>)>,
}

impl Report {
    fn row(&self) -> Map<String, Value> {
        let seen = self.sight.as_ref().map(|sight| sight.seen);
        let fields = [
            ("image", json!(self.image)),
            ("outcome", json!(self.judgement.outcome)),
            ("reason", json!(self.judgement.reason)),
            ("label", json!(self.judgement.label)),
            ("score", json!(self.judgement.score.map(exact))),
            ("scores", json!(self.sight.as_ref().map(|sight| exact_scores(&sight.scores)))),
            ("sha256", json!(self.sha256)),
            ("format", json!(seen.map(|seen| seen.format))),
            ("width", json!(seen.map(|seen| seen.width))),
            ("height", json!(seen.map(|seen| seen.height))),
            ("bytes", json!(self.bytes)),
            ("frames", json!(seen.map(|seen| seen.frames))),
        ];
        fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

async fn report(
    file: anyhow::Result<PathBuf>,
    max_bytes: u64,
    screen: &Screen,
    digests: &Digests,
) -> anyhow::Result<Report> {
    let path = file?;
    let image = path.display().to_string();
    let length = tokio::fs::metadata(&path).await.with_context(|| format!("reading {image}"))?.len();
    if length > max_bytes {
        let why = format!("the file has {length} bytes, the limit is {max_bytes}");
        let judgement = Judgement::unscored(Outcome::Rejected, why);
        return Ok(Report { image, sha256: None, bytes: length, sight: None, judgement, shown: Vec::new() });
    }
    let (bytes, sha256) = files::read(path).await?;
    let sha256 = Some(hex::encode(sha256));
    let length = bytes.len() as u64;
    let (sight, judgement) = match screen.look(Lane::Live, bytes, digests).await {
        Ok(sight) => (Some(sight.clone()), sight.judgement),
        Err(Unseen::Undecodable(decode::Undecodable(why))) => (None, Judgement::unscored(Outcome::Undecodable, why)),
        Err(Unseen::Unscored(e)) => (None, Judgement::unscored(Outcome::Failed, e.to_string())),
    };
    let shown = sight.as_ref().map(|sight| sight.shown.clone()).unwrap_or_default();
    Ok(Report { image, sha256, bytes: length, sight, judgement, shown })
}

fn save(folder: &Path, report: &Report) -> anyhow::Result<()> {
    for (detector, pixels) in &report.shown {
        let folder = folder.join(detector);
        std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let file = folder.join(format!("{}.png", report.sha256.as_deref().unwrap_or_default()));
        decode::save_png(&file, pixels).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}
