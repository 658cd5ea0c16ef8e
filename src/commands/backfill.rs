//! `pixwarden backfill`: arguments and output of [`crate::backfill`].

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Args;
use serde_json::{Map, json};
use time::OffsetDateTime;

use super::age::Age;
use super::console::note;
use super::numbers;
use super::options::{DetectorOption, ServiceOptions};
use super::output::{Format, Output};
use super::progress::{Progress, Unit};
use super::record::instant;
use super::signals::{INTERRUPTED, Signals};
use crate::backfill::source::{BackfillSource, ListLocation, SourceNameError, allowed_buckets};
use crate::backfill::{
    Backfill, BackfillCounts, BackfillEnd, BackfillOptions, ObjectFilter, PublishLimits, PublishOptions,
};
use crate::config::{Config, Overlay};

/// How often the progress bar is updated.
const DRAW_INTERVAL: Duration = Duration::from_millis(200);
/// How often progress is logged where there is no bar.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

const SUMMARY_COLUMNS: [&str; 7] = ["met", "filtered", "screened", "erased", "waiting", "published", "end"];
const DRY_RUN_COLUMNS: [&str; 7] = ["met", "filtered", "screened", "erased", "waiting", "to_publish", "end"];

#[derive(Debug, Args)]
#[command(
    after_help = "Objects are compared with the ledger by bucket, key, ETag and the detectors' digests: configure the same \
detectors as the workers. After an interruption, the same command continues where it stopped. A later run publishes jobs only for \
new images; with another detector it publishes jobs for all images again."
)]
pub struct BackfillArguments {
    /// s3://BUCKET/PREFIX, or file:///FOLDER in the folder that `objects` names; several are read concurrently
    #[arg(value_name = "SOURCE", required_unless_present_any = ["inventory", "manifest"])]
    sources: Vec<String>,
    /// The manifest.json of an S3 Inventory in CSV, as a file or as s3://BUCKET/KEY [repeatable]
    #[arg(long, value_name = "FILE")]
    inventory: Vec<String>,
    /// JSON lines with "source-ref", as Rekognition reads them, as a file or as s3://BUCKET/KEY [repeatable]
    #[arg(long, value_name = "FILE")]
    manifest: Vec<String>,
    /// Only keys that end with this text, such as .jpg, in upper or lower case [repeatable]
    #[arg(long, value_name = "TEXT")]
    suffix: Vec<String>,
    /// Only objects with at least this many bytes
    #[arg(long, value_name = "N", value_parser = numbers::whole::<u64>)]
    min_bytes: Option<u64>,
    /// Only objects with at most this many bytes
    #[arg(long, value_name = "N", value_parser = numbers::whole::<u64>)]
    max_bytes: Option<u64>,
    /// Only objects last modified at or after this time: 2026-11-25, or 2026-11-25T13:00:00Z
    #[arg(long, value_name = "TIME", value_parser = instant)]
    since: Option<OffsetDateTime>,
    /// Only objects last modified before this time
    #[arg(long, value_name = "TIME", value_parser = instant)]
    until: Option<OffsetDateTime>,
    /// Also publish jobs for objects with the outcome `missing` or `failed`
    #[arg(long)]
    retry_failed: bool,
    /// Maximum number of jobs to publish
    #[arg(long, value_name = "N", value_parser = numbers::whole::<u64>)]
    limit: Option<u64>,
    /// Only count; nothing is published or recorded
    #[arg(long)]
    dry_run: bool,
    /// Start at the beginning even if an earlier run was interrupted
    #[arg(long)]
    restart: bool,
    /// Maximum number of jobs published per second; a higher rate loads broker and ledger more
    #[arg(long, value_name = "N", value_parser = |text: &str| numbers::within(text, 0.001..=1e6))]
    rate: Option<f64>,
    /// Maximum number of jobs that wait in the lane; publishing pauses while there are more
    ///
    /// The depth is read twice per second: enough jobs must wait to keep the workers busy until the next reading. More jobs
    /// only take memory and disk on the broker.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = |text: &str| numbers::whole_within(text, 1..=u32::MAX))]
    depth: u32,
    /// A published job without a verdict counts as lost after this time: 90s, 15m, 2h or 7d
    ///
    /// With a shorter time, jobs that slow workers have not received yet are published twice. A run that was interrupted
    /// longer ago starts at the beginning.
    #[arg(long, value_name = "AGE", default_value = "1d")]
    again_after: Age,
    /// Output format of the summary
    #[arg(long, value_enum)]
    format: Option<Format>,
    #[command(flatten)]
    services: ServiceOptions,
    #[command(flatten)]
    detector: DetectorOption,
}

impl BackfillArguments {
    pub(super) fn overlay(&self, overlay: &mut Overlay) {
        self.services.set(overlay);
        self.detector.set(overlay);
    }

    fn sources(&self, config: &Config) -> anyhow::Result<Vec<BackfillSource>> {
        let objects = config.objects()?;
        let mut sources = Vec::new();
        for text in &self.sources {
            sources.extend(BackfillSource::parse(text, &objects, &config.buckets)?);
        }
        sources.extend(self.inventory.iter().map(|text| BackfillSource::Inventory(ListLocation::parse(text))));
        sources.extend(self.manifest.iter().map(|text| BackfillSource::Manifest(ListLocation::parse(text))));
        Ok(sources)
    }

    fn options(&self, sources: Vec<BackfillSource>) -> BackfillOptions {
        BackfillOptions {
            sources,
            filter: ObjectFilter {
                suffixes: self.suffix.clone(),
                min_bytes: self.min_bytes,
                max_bytes: self.max_bytes,
                since: self.since,
                until: self.until,
            },
            restart: self.restart,
            publish: PublishOptions {
                retry_failed: self.retry_failed,
                limit: self.limit,
                dry_run: self.dry_run,
                limits: PublishLimits { rate: self.rate, depth: self.depth },
                again_after: self.again_after.0,
            },
        }
    }
}

/// Whether an error is about the arguments, for the exit status.
pub(super) fn is_usage_error(error: &anyhow::Error) -> bool {
    error.is::<SourceNameError>()
}

pub(super) async fn run(arguments: &BackfillArguments, config: &Config) -> anyhow::Result<u8> {
    let sources = arguments.sources(config)?;
    let mut config = config.clone();
    config.buckets = allowed_buckets(&sources, &config.buckets)?;
    let backfill = Arc::new(Backfill::open(&config, arguments.options(sources)).await?);
    let progress = Progress::new(Unit::Images);
    let bar = progress.clone();
    let stop = Signals::listen()?.stop(move || {
        bar.around(|| note!("stopping after the jobs that are being published; a second signal stops at once"));
    });
    let showing = tokio::spawn(show_progress(Arc::clone(&backfill), progress.clone()));
    let ended = backfill.run(&stop).await;
    showing.abort();
    progress.finish();
    backfill.close().await;
    // Half a listing says nothing about what a run would publish.
    if ended.is_ok() || !arguments.dry_run {
        summary(arguments, backfill.counts(), ended.as_ref().ok().copied())?;
    }
    Ok(if ended? == BackfillEnd::Stopped { INTERRUPTED } else { 0 })
}

/// Shows progress on a bar, whose end is known once a second listing has counted the entries, or logs a line per minute.
async fn show_progress(backfill: Arc<Backfill>, progress: Progress) {
    let mut last = 0;
    if progress.is_visible() {
        let (counted, bar) = (Arc::clone(&backfill), progress.clone());
        let _counting = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
            if let Ok(total) = counted.count_entries().await {
                bar.expect(total);
            }
        }));
        loop {
            tokio::time::sleep(DRAW_INTERVAL).await;
            let total = backfill.counts().total();
            progress.advance(total - last);
            last = total;
        }
    }
    loop {
        tokio::time::sleep(LOG_INTERVAL).await;
        let BackfillCounts { filtered, screened, erased, waiting, published } = backfill.counts();
        let [filtered, screened, erased, waiting, published] =
            [filtered, screened, erased, waiting, published].map(|n| n.load(Ordering::Relaxed));
        let met = backfill.counts().total();
        let per_second = (met - last) / LOG_INTERVAL.as_secs();
        last = met;
        tracing::info!(met, filtered, screened, erased, waiting, published, per_second, "backfill progress");
    }
}

fn summary(arguments: &BackfillArguments, counts: &BackfillCounts, end: Option<BackfillEnd>) -> anyhow::Result<()> {
    let BackfillCounts { filtered, screened, erased, waiting, published } = counts;
    let [filtered, screened, erased, waiting, published] =
        [filtered, screened, erased, waiting, published].map(|n| n.load(Ordering::Relaxed));
    let (end, words) = match end {
        _ if arguments.dry_run => ("counted", ""),
        Some(BackfillEnd::Done) => ("done", ""),
        Some(BackfillEnd::Limit) => ("limit", "; the limit is reached, the same command continues from here"),
        Some(BackfillEnd::Stopped) => ("stopped", "; stopped, the same command continues from here"),
        None => ("failed", "; the same command continues from here"),
    };
    let total = counts.total();
    let values =
        [json!(total), json!(filtered), json!(screened), json!(erased), json!(waiting), json!(published), json!(end)];
    let columns = if arguments.dry_run { &DRY_RUN_COLUMNS } else { &SUMMARY_COLUMNS };
    let row: Map<_, _> = columns.iter().map(|column| (*column).to_owned()).zip(values).collect();
    let mut output = Output::new(Format::or_default(arguments.format), columns)?;
    output.row(&row)?;
    output.finish()?;
    let would = if arguments.dry_run { "would be published" } else { "published" };
    let erased = if erased > 0 { format!(", {erased} had a verdict that was erased") } else { String::new() };
    note!(
        "{total} objects: {published} {would}, {screened} have a verdict, {waiting} have a job without a verdict yet, {filtered} excluded{erased}{words}"
    );
    Ok(())
}
