//! `pixwarden scan`: screens local files, without any service.

mod file;
mod measure;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use clap::{Args, ValueEnum};
use futures_util::stream::{self, StreamExt};

use super::console::note;
use super::files;
use super::options::{LedgerOption, ScreeningOptions};
use super::output::{Format, Output, printable};
use super::progress::{Progress, Unit};
use super::signals::{INTERRUPTED, Signals};
use crate::config::{Config, Overlay};
use crate::error_text;
use crate::job::Outcome;
use crate::ledger::{self, Ledger, LedgerError};
use crate::life::CommitQueue;
use crate::screen::{Screen, decode};
use file::{FileReport, Recorder, Scan};
use measure::Measure;

const COLUMNS: [&str; 8] = ["image", "outcome", "label", "score", "format", "width", "height", "reason"];
const MEASURED: [&str; 10] =
    ["image", "outcome", "label", "score", "format", "width", "height", "millis", "peak_bytes", "reason"];

/// The weakest outcome with which `scan` exits with 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum FailOn {
    Review,
    Flagged,
}

#[derive(Debug, Args)]
#[command(
    after_help = "With --ledger sqlite://FILE every verdict is stored, and a later scan with the same detectors, policy \
and limits skips files that have not changed. A ledger in the configuration belongs to the worker and is not used."
)]
pub struct ScanArguments {
    /// Files and folders. Results are printed in this order
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Output format
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Exit with 3 when an image reaches this outcome
    #[arg(long, value_enum, value_name = "OUTCOME")]
    fail_on: Option<FailOn>,
    /// Write the detector's input for each image's first frame to DIR/DETECTOR/SHA256.png
    #[arg(long, value_name = "DIR")]
    save_pixels: Option<PathBuf>,
    /// Screen one image at a time, and add its time and peak memory to its row
    ///
    /// Rows gain `millis`, the time from opening the file to its outcome, and `peak_bytes`, the rise of resident memory.
    /// `peak_bytes` is null where the system is not Linux or does not allow resetting the peak. A file may reuse memory of
    /// an earlier file, so the figure is a lower bound. This is slower than a scan that screens images side by side.
    #[arg(long)]
    measure: bool,
    #[command(flatten)]
    ledger: LedgerOption,
    #[command(flatten)]
    screening: ScreeningOptions,
}

impl ScanArguments {
    pub(super) fn overlay(&self, overlay: &mut Overlay) {
        self.ledger.set(overlay);
        self.screening.set(overlay);
    }
}

pub(super) async fn run(arguments: &ScanArguments, config: &Config) -> anyhow::Result<u8> {
    let ledger = if arguments.ledger.is_given() { Some(ledger::open_or_create(config).await?) } else { None };
    let screen = Screen::start(config)?;
    let (recorder, recording) = match ledger {
        Some(ledger) => {
            ledger.prepare().await.with_context(|| format!("cannot prepare the ledger {}", config.ledger))?;
            let ledger: Arc<dyn Ledger> = ledger.into();
            // Reports are printed in the order of the files, so no commit may wait for a later one.
            let (commits, writing) = CommitQueue::new(Arc::clone(&ledger), 0);
            let file = config.ledger.file().and_then(|file| file.canonicalize().ok());
            (Some(Recorder { ledger: Arc::clone(&ledger), commits, file }), Some((ledger, tokio::spawn(writing))))
        }
        None => (None, None),
    };
    let scan = Scan { ignore_earlier: arguments.save_pixels.is_some(), ..Scan::new(&screen, config, recorder)? };
    let result = files_in_order(arguments, config, &scan).await;
    // Finished verdicts are stored also after an error.
    drop(scan);
    if let Some((ledger, writing)) = recording {
        writing.await?;
        ledger.close().await;
    }
    result
}

/// Scans files side by side, and reports them in the order of the arguments.
async fn files_in_order(arguments: &ScanArguments, config: &Config, scan: &Scan<'_>) -> anyhow::Result<u8> {
    let columns: &[&str] = if arguments.measure { &MEASURED } else { &COLUMNS };
    let mut output = Output::new(Format::or_default(arguments.format), columns)?;
    let progress = Progress::new(Unit::Images);
    count_files(&arguments.paths, &progress);
    let bar = progress.clone();
    let stop = Signals::listen()?.stop(move || {
        bar.around(|| {
            note!("stopping after the images that are being screened; a second signal stops at once");
        });
    });
    // Enough to keep decoders and sessions busy. When measuring, one image at a time.
    let ahead = if arguments.measure {
        1
    } else {
        2 * scan.screen.max_batch() + decode::DecoderPool::thread_count(&config.decode)
    };
    let stopped = OnceCell::new();
    let mut reports = stream::iter(files::walk(arguments.paths.clone()))
        // The scan counts as stopped if a file was left out. A signal after the last file changes nothing.
        .take_while(|_| std::future::ready(!stop.is_cancelled() || stopped.set(()).is_err()))
        .map(|path| async move {
            let measure = arguments.measure.then(Measure::begin);
            let report = scan.file(path?).await?;
            anyhow::Ok(report.map(|report| FileReport { cost: measure.map(|measure| measure.end()), ..report }))
        })
        .buffered(ahead);

    let mut summary = ScanSummary::default();
    let mut broken = None;
    while let Some(report) = reports.next().await {
        progress.advance(1);
        match report {
            Ok(None) => {}
            Ok(Some(report)) => {
                summary.add(&report);
                progress.around_row(|| output.row(&report.row()))?;
                if let Some(folder) = &arguments.save_pixels
                    && let Err(e) = save(folder, &report)
                {
                    broken = Some(e);
                    break;
                }
            }
            // A ledger that is down affects every file. Any other error affects this file.
            Err(e) if e.downcast_ref().is_some_and(LedgerError::may_pass) => {
                broken = Some(e.context(format!("cannot store verdicts in {}", config.ledger)));
                break;
            }
            Err(e) => {
                summary.unreadable += 1;
                progress.around(|| note!("error: {}", printable(&error_text(e.as_ref()))));
            }
        }
    }
    drop(reports);
    progress.finish();
    output.finish()?;
    note!("{}", summary.text());
    if let Some(e) = broken {
        return Err(e);
    }
    if stopped.get().is_some() {
        let kept = if scan.recorder.is_some() { "; run the same command to continue" } else { "" };
        note!("stopped before the end{kept}");
        return Ok(INTERRUPTED);
    }
    Ok(summary.status(arguments.fail_on))
}

/// Counts the files for the progress bar, while the scan runs.
fn count_files(paths: &[PathBuf], progress: &Progress) {
    if progress.is_visible() {
        let (walk, progress) = (files::walk(paths.to_vec()), progress.clone());
        drop(tokio::task::spawn_blocking(move || progress.expect(walk.count() as u64)));
    }
}

/// Counts of what was scanned.
struct ScanSummary {
    began: Instant,
    images: u64,
    unchanged: u64,
    unreadable: u64,
    outcomes: BTreeMap<Outcome, u64>,
}

impl Default for ScanSummary {
    fn default() -> Self {
        Self { began: Instant::now(), images: 0, unchanged: 0, unreadable: 0, outcomes: BTreeMap::new() }
    }
}

impl ScanSummary {
    fn add(&mut self, report: &FileReport) {
        self.images += 1;
        self.unchanged += u64::from(report.unchanged);
        *self.outcomes.entry(report.verdict.judgement.outcome).or_default() += 1;
    }

    fn text(&self) -> String {
        let seconds = self.began.elapsed().as_secs_f64();
        let outcomes: Vec<_> = self.outcomes.iter().map(|(outcome, n)| format!("{n} {outcome}")).collect();
        let mut words = format!("{} {}", self.images, if self.images == 1 { "image" } else { "images" });
        if !outcomes.is_empty() {
            words += &format!(": {}", outcomes.join(", "));
        }
        if self.unchanged > 0 {
            words += &format!("; {} unchanged since an earlier scan", self.unchanged);
        }
        if self.unreadable > 0 {
            words += &format!("; {} could not be read", self.unreadable);
        }
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = self.images as f64 / seconds.max(0.001);
        format!("{words}; {seconds:.1} s, {rate:.0} per second")
    }

    fn status(&self, fail_on: Option<FailOn>) -> u8 {
        let any = |outcome| self.outcomes.contains_key(&outcome);
        let reached = match fail_on {
            Some(FailOn::Review) => any(Outcome::Review) || any(Outcome::Flagged),
            Some(FailOn::Flagged) => any(Outcome::Flagged),
            None => false,
        };
        let failed = any(Outcome::Failed) || self.unreadable > 0;
        if reached { 3 } else { u8::from(failed) }
    }
}

fn save(folder: &Path, report: &FileReport) -> anyhow::Result<()> {
    for (detector, pixels) in &report.shown {
        let folder = folder.join(detector);
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let file = folder.join(format!("{}.png", hex::encode(report.verdict.sha256.unwrap_or_default())));
        decode::save_png(&file, pixels).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}
