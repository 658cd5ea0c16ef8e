//! `pixwarden scan`: screens local files, without any service.

mod file;
mod measure;
mod summary;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, ValueEnum};
use futures_util::stream::{self, BoxStream, Stream, StreamExt};
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::console::note;
use super::options::{LedgerOption, ScreeningOptions};
use super::output::{Format, Output, printable};
use super::progress::{Progress, Unit};
use super::signals::{INTERRUPTED, Signals};
use super::{UsageError, files, record};
use crate::banks;
use crate::config::{Config, Overlay};
use crate::error_text;
use crate::job::{Background, Outcome, View};
use crate::ledger::{self, Ledger, LedgerError};
use crate::life::CommitQueue;
use crate::offload;
use crate::screen::{self, decode};
use file::{FileReport, Recorder, Scan};
use files::{Found, SkipCause, SkippedEntry, path_text};
use measure::Measure;
use summary::{FailOn, Gate, ScanSummary};

/// The columns of a table. Format and size are one column each, and the path comes last, so that it has all the room.
const TABLE_COLUMNS: [&str; 6] = ["outcome", "score", "format", "size", "image", "reason"];
const MEASURED_TABLE_COLUMNS: [&str; 8] =
    ["outcome", "score", "format", "size", "millis", "peak_bytes", "image", "reason"];
const CSV_COLUMNS: [&str; 8] = ["image", "outcome", "label", "score", "format", "width", "height", "reason"];
const MEASURED_CSV_COLUMNS: [&str; 10] =
    ["image", "outcome", "label", "score", "format", "width", "height", "millis", "peak_bytes", "reason"];

/// The exit status where `--fail-on` was reached.
const GATE_CLOSED: u8 = 3;

/// The path that stands for paths from stdin.
const STDIN: &str = "-";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SortBy {
    /// The highest score first; images without a score come last.
    Score,
}

#[derive(Debug, Args)]
#[command(
    after_help = "With --ledger sqlite://FILE every verdict is stored, and a later scan with the same detectors, policy \
and limits skips files that have not changed. A ledger in the configuration belongs to the worker and is not used."
)]
pub struct ScanArguments {
    /// Files and folders, or `-` to read one path per line from stdin. Results are printed in this order
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Paths on stdin end with a NUL instead of a line break, as `find -print0` writes them
    #[arg(short = '0', long)]
    null: bool,
    /// Output format
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Print only images with these outcomes; all others are counted
    #[arg(long, value_name = "OUTCOME", value_delimiter = ',', value_parser = record::outcome)]
    only: Vec<Outcome>,
    /// Print the images in another order, when all are screened; takes memory for every row
    #[arg(long, value_enum, value_name = "ORDER")]
    sort: Option<SortBy>,
    /// Exit with 3 when an image reaches this outcome, or something could not be screened
    #[arg(long, value_enum, value_name = "OUTCOME")]
    fail_on: Option<FailOn>,
    /// With --fail-on: what could not be screened passes
    #[arg(long, requires = "fail_on")]
    allow_unscreened: bool,
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

    fn reads_stdin(&self) -> bool {
        self.paths.iter().any(|path| path.as_os_str() == STDIN)
    }

    fn gate(&self) -> Result<Option<Gate>, UsageError> {
        if self.fail_on == Some(FailOn::Unscreened) && self.allow_unscreened {
            return Err(UsageError("--fail-on unscreened and --allow-unscreened contradict each other".into()));
        }
        if self.null && !self.reads_stdin() {
            return Err(UsageError("--null is for paths from stdin\n  hint: give - as PATH".into()));
        }
        Ok(self.fail_on.map(|fail_on| Gate { fail_on, allow_unscreened: self.allow_unscreened }))
    }

    fn columns(&self, format: Format) -> &'static [&'static str] {
        match (format, self.measure) {
            (Format::Table, false) => &TABLE_COLUMNS,
            (Format::Table, true) => &MEASURED_TABLE_COLUMNS,
            (_, false) => &CSV_COLUMNS,
            (_, true) => &MEASURED_CSV_COLUMNS,
        }
    }
}

pub(super) async fn run(arguments: &ScanArguments, config: &Config) -> anyhow::Result<u8> {
    let gate = arguments.gate()?;
    let ledger = if arguments.ledger.is_given() { Some(ledger::open_or_create(config).await?) } else { None };
    let (screen, policies) = screen::start(config)?;
    let banks = match &ledger {
        Some(ledger) => banks::load_for(&policies, config, ledger.as_ref()).await?,
        None => banks::without_ledger(&policies)?,
    };
    let (recorder, recording) = match ledger {
        Some(ledger) => {
            ledger.prepare().await.with_context(|| format!("cannot prepare the ledger {}", config.ledger))?;
            ledger.record_policies(&policies.texts()).await?;
            let ledger: Arc<dyn Ledger> = ledger.into();
            // Reports are printed in the order of the files, so no commit may wait for a later one.
            let (commits, writing) = CommitQueue::new(Arc::clone(&ledger), 0);
            let file = config.ledger.url.file().and_then(|file| file.canonicalize().ok());
            (Some(Recorder { ledger: Arc::clone(&ledger), commits, file }), Some((ledger, tokio::spawn(writing))))
        }
        None => (None, None),
    };
    let scan = Scan {
        ignore_earlier: arguments.save_pixels.is_some(),
        ..Scan::new(&screen, &policies, &banks, config, recorder)?
    };
    let result = files_in_order(arguments, gate, config, &scan).await;
    // Finished verdicts are stored also after an error.
    drop(scan);
    if let Some((ledger, writing)) = recording {
        writing.await?;
        ledger.close().await;
    }
    result
}

/// What the scan does with one entry.
enum Scanned {
    /// A file with its outcome.
    File(Box<FileReport>),
    /// The ledger's own file.
    Ignored,
    Skipped(SkippedEntry),
    Unreadable(anyhow::Error),
    /// Everything below this path was scanned.
    End(PathBuf),
}

/// Scans files side by side, and reports them in the order of the arguments.
async fn files_in_order(
    arguments: &ScanArguments,
    gate: Option<Gate>,
    config: &Config,
    scan: &Scan<'_>,
) -> anyhow::Result<u8> {
    let mut rows = Rows::new(arguments)?;
    let progress = Progress::new(Unit::Images);
    count_files(arguments, &progress);
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
    let stopped = Cell::new(false);
    let found = until_stopped(find(arguments), arguments.reads_stdin(), &stop, &stopped);
    let mut scanned = pin!(found.map(|found| scan_entry(scan, found, arguments.measure)).buffered(ahead));

    let mut summary = ScanSummary::default();
    let mut broken = None;
    while let Some(scanned) = scanned.next().await {
        match scanned {
            Ok(Scanned::File(report)) => {
                progress.advance(1);
                summary.add(&report);
                progress.around_row(|| rows.add(&report))?;
                if let Some(folder) = &arguments.save_pixels
                    && let Err(e) = save(folder, &report)
                {
                    broken = Some(e);
                    break;
                }
            }
            Ok(Scanned::Ignored) => progress.advance(1),
            // Its files are found under another path.
            Ok(Scanned::Skipped(SkippedEntry { cause: SkipCause::FolderLinkWithin, .. })) => {}
            Ok(Scanned::Skipped(SkippedEntry { path, cause })) => {
                summary.add_skipped(cause);
                progress.around(|| note!("skipped {}: {cause}", printable(&path_text(&path))));
            }
            Ok(Scanned::Unreadable(e)) => {
                progress.advance(1);
                summary.add_unreadable();
                progress.around(|| note!("error: {}", printable(&error_text(e.as_ref()))));
            }
            Ok(Scanned::End(path)) => {
                if summary.end_of_path() {
                    progress.around(|| note!("no image in {}", printable(&path_text(&path))));
                }
            }
            // A ledger that is down affects every file.
            Err(e) => {
                broken = Some(e.context(format!("cannot store verdicts in {}", config.ledger)));
                break;
            }
        }
    }
    progress.finish();
    rows.finish()?;
    note!("{}", summary.text());
    if let Some(e) = broken {
        return Err(e);
    }
    if stopped.get() {
        let kept = if scan.recorder.is_some() { "; run the same command to continue" } else { "" };
        note!("stopped before the end{kept}");
        return Ok(INTERRUPTED);
    }
    if let Some(words) = gate.and_then(|gate| summary.closed_gate(gate)) {
        note!("{words}");
        return Ok(GATE_CLOSED);
    }
    Ok(u8::from(summary.has_failures()))
}

/// Scans one entry. An error ends the scan.
async fn scan_entry(scan: &Scan<'_>, found: Found, measures: bool) -> anyhow::Result<Scanned> {
    let file = match found {
        Found::File(file) => file,
        Found::Skipped(entry) => return Ok(Scanned::Skipped(entry)),
        Found::Unreadable(e) => return Ok(Scanned::Unreadable(e)),
        Found::End(path) => return Ok(Scanned::End(path)),
    };
    let measure = measures.then(Measure::begin);
    match scan.file(file).await {
        Ok(Some(report)) => {
            let cost = measure.map(|measure| measure.end());
            Ok(Scanned::File(Box::new(FileReport { cost, ..report })))
        }
        Ok(None) => Ok(Scanned::Ignored),
        Err(e) if e.downcast_ref().is_some_and(LedgerError::may_pass) => Err(e),
        // Any other error affects this file.
        Err(e) => Ok(Scanned::Unreadable(e)),
    }
}

/// Everything at or below the paths, found on another thread: stdin and folders can be slow.
fn find(arguments: &ScanArguments) -> BoxStream<'static, Found> {
    let (paths, null) = (arguments.paths.clone(), arguments.null);
    offload::stream_from_thread(move |sink| {
        let searched: Vec<PathBuf> = paths.iter().filter(|path| path.as_os_str() != STDIN).cloned().collect();
        for path in paths {
            if path.as_os_str() != STDIN {
                files::find_within([path], searched.clone()).try_for_each(|found| sink.put(found))?;
                continue;
            }
            let mut is_empty = true;
            for path in files::read_paths(std::io::stdin().lock(), if null { 0 } else { b'\n' }) {
                is_empty = false;
                match path {
                    Ok(path) => files::find_within([path], searched.clone()).try_for_each(|found| sink.put(found))?,
                    Err(e) => {
                        sink.put(Found::Unreadable(anyhow::Error::new(e).context("cannot read stdin")))?;
                        break;
                    }
                }
            }
            // No path at all is as an empty folder: nothing was screened.
            if is_empty {
                note!("no path on stdin");
                sink.put(Found::End(path))?;
            }
        }
        Ok(())
    })
}

/// Ends a stream when `stop` is set, and sets `stopped` if something was left out. A stream that `waits` for a person or
/// a program ends at once; any other stream is first asked for its next item, because a signal after the last one
/// changes nothing.
fn until_stopped<'a>(
    found: BoxStream<'static, Found>,
    waits: bool,
    stop: &'a CancellationToken,
    stopped: &'a Cell<bool>,
) -> impl Stream<Item = Found> + 'a {
    stream::unfold(found, move |mut found| async move {
        let next = tokio::select! {
            biased;
            next = found.next() => Some(next?),
            () = stop.cancelled(), if waits => None,
        };
        let is_last = matches!(next, Some(Found::End(_)));
        match next {
            Some(next) if is_last || !stop.is_cancelled() => Some((next, found)),
            _ => {
                stopped.set(true);
                None
            }
        }
    })
}

/// The rows on stdout.
struct Rows {
    output: Output,
    format: Format,
    only: Vec<Outcome>,
    /// Rows that are printed at the end.
    sorted: Option<Vec<SortedRow>>,
}

struct SortedRow {
    score: Option<f32>,
    fields: Map<String, Value>,
}

impl Rows {
    fn new(arguments: &ScanArguments) -> std::io::Result<Self> {
        let format = Format::or_default(arguments.format);
        let output = Output::new(format, arguments.columns(format))?;
        let sorted = arguments.sort.map(|SortBy::Score| Vec::new());
        Ok(Self { output, format, only: arguments.only.clone(), sorted })
    }

    fn add(&mut self, report: &FileReport) -> std::io::Result<()> {
        let judgement = &report.verdict.judgement;
        if !self.only.is_empty() && !self.only.contains(&judgement.outcome) {
            return Ok(());
        }
        let row = if self.format == Format::Table { report.table_row() } else { report.row() };
        match &mut self.sorted {
            Some(rows) => rows.push(SortedRow { score: judgement.score, fields: row }),
            None => self.output.row(&row)?,
        }
        Ok(())
    }

    fn finish(mut self) -> std::io::Result<()> {
        let mut rows = self.sorted.unwrap_or_default();
        // The sort is stable: equal scores stay in the order of the paths.
        rows.sort_by(|a, b| b.score.unwrap_or(-1.0).total_cmp(&a.score.unwrap_or(-1.0)));
        rows.iter().try_for_each(|row| self.output.row(&row.fields))?;
        self.output.finish()
    }
}

/// Counts the files for the progress bar, while the scan runs. Paths on stdin cannot be read twice.
fn count_files(arguments: &ScanArguments, progress: &Progress) {
    if progress.is_visible() && !arguments.reads_stdin() {
        let (walk, progress) = (files::walk(arguments.paths.clone()), progress.clone());
        drop(tokio::task::spawn_blocking(move || progress.expect(walk.count() as u64)));
    }
}

fn save(folder: &Path, report: &FileReport) -> anyhow::Result<()> {
    let sha256 = hex::encode(report.verdict.sha256.unwrap_or_default());
    for (index, seen) in report.pictures.views().iter().enumerate() {
        let name =
            if index == 0 { format!("{sha256}.png") } else { format!("{sha256}.{}.png", file_name_of(seen.view)) };
        for (detector, pixels) in &seen.by_detector {
            let folder = folder.join(detector);
            std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
            let file = folder.join(&name);
            decode::save_png(&file, pixels).with_context(|| format!("cannot write {}", file.display()))?;
        }
    }
    Ok(())
}

/// A view in the name of a file: `frame-3`, `frame-3-black`, `frame-0-white-turned-6`.
fn file_name_of(View { frame, background, orientation }: View) -> String {
    let background = match background {
        Background::White if orientation == 1 => "",
        Background::White => "-white",
        Background::Black => "-black",
    };
    let turned = if orientation == 1 { String::new() } else { format!("-turned-{orientation}") };
    format!("frame-{frame}{background}{turned}")
}
