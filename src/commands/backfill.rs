//! `pixwarden backfill`: an archive → jobs for whatever has no verdict yet.

mod sources;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Args;
use serde_json::{Map, json};
use time::OffsetDateTime;

use super::age::Age;
use super::output::{Format, Output};
use super::progress::{Progress, Unit};
use super::record::instant;
use super::signals::{INTERRUPTED, Signals};
use crate::backfill::{Backfill, Bounds, End, Filter, IN_FLIGHT, Options, Tally};
use crate::broker::{Publisher, Topology, connect};
use crate::config::Config;
use crate::job::{Digests, Lane};
use crate::ledger;
use crate::objects::Fetcher;
use crate::screen::packages;

/// How often a bar is drawn, and how often a line is logged where there is none.
const DRAW: Duration = Duration::from_millis(200);
const LOG: Duration = Duration::from_secs(60);

const COLUMNS: [&str; 6] = ["met", "filtered", "screened", "waiting", "published", "end"];

/// Options of `backfill`.
#[derive(Debug, Args)]
#[command(
    after_help = "What is there is compared with the ledger by bucket, key, ETag and the detectors' digests, so the \
detectors must be the worker's. The same command goes on after an interruption, fills gaps later, and screens all \
anew once there is another detector."
)]
pub struct Arguments {
    /// s3://BUCKET/PREFIX, or file:///FOLDER within the folder that `objects` names; several are read side by side
    #[arg(value_name = "SOURCE", required_unless_present_any = ["inventory", "manifest"])]
    sources: Vec<String>,
    /// The manifest.json of an S3 Inventory in CSV, here or as s3://BUCKET/KEY [repeatable]
    #[arg(long, value_name = "FILE")]
    inventory: Vec<String>,
    /// JSON lines with "source-ref", as Rekognition takes them, here or as s3://BUCKET/KEY [repeatable]
    #[arg(long, value_name = "FILE")]
    manifest: Vec<String>,
    /// Only keys with this ending, such as .jpg, in capitals or not [repeatable]
    #[arg(long, value_name = "TEXT")]
    suffix: Vec<String>,
    /// Only objects of at least so many bytes
    #[arg(long, value_name = "N")]
    min_bytes: Option<u64>,
    /// Only objects of at most so many bytes
    #[arg(long, value_name = "N")]
    max_bytes: Option<u64>,
    /// Only objects written then or later: 2026-11-25, or 2026-11-25T13:00:00Z
    #[arg(long, value_name = "TIME", value_parser = instant)]
    since: Option<OffsetDateTime>,
    /// Only objects written before then
    #[arg(long, value_name = "TIME", value_parser = instant)]
    until: Option<OffsetDateTime>,
    /// Also where the verdict is `missing` or `failed`
    #[arg(long)]
    retry_failed: bool,
    /// Jobs published at the most
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Only count; nothing is published or written down
    #[arg(long)]
    dry_run: bool,
    /// Begin anew where an earlier run was interrupted
    #[arg(long)]
    restart: bool,
    /// Jobs published a second at the most
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<f64>,
    /// Jobs that may wait in the lane; while there are more, publishing pauses
    ///
    /// Enough keeps the workers busy between two looks; more only fills the broker.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    depth: u32,
    /// A published job without a verdict is taken for lost after this: 90s, 15m, 2h or 7d
    ///
    /// Less publishes twice what a slow worker has not come to yet. A run that was interrupted longer ago begins anew.
    #[arg(long, value_name = "AGE", default_value = "1d")]
    again_after: Age,
    /// How the summary is printed
    #[arg(long, value_enum)]
    format: Option<Format>,
}

impl Arguments {
    fn filter(&self) -> Filter {
        Filter {
            suffixes: self.suffix.clone(),
            min_bytes: self.min_bytes,
            max_bytes: self.max_bytes,
            since: self.since,
            until: self.until,
        }
    }
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.001..=1e6).contains(rate));
    rate.ok_or_else(|| "it must be a number from 0.001 to 1000000".into())
}

pub(super) async fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<u8> {
    let (config, named) = sources::resolve(arguments, config)?;
    let queue = config.queue()?.clone();
    let detectors = packages(&config)?;
    let digests: Digests = detectors.into_iter().map(|detector| (detector.name, detector.digest)).collect();
    let fetcher = Arc::new(Fetcher::open(&config).await?);
    let mut sources = Vec::new();
    for source in named {
        sources.push(source.pin(&fetcher).await?);
    }
    let ledger: Arc<dyn ledger::Ledger> = ledger::open(&config).await?.into();
    ledger.check_schema().await?;
    let topology = Topology::new(&config.prefix, config.events.default_queue);
    if !arguments.dry_run {
        topology.ensure(&connect(&queue, "backfill").await?, &topology.lane(Lane::Backfill)).await?;
    }

    let backfill = Arc::new(Backfill {
        publisher: Arc::new(Publisher::new(queue.clone(), "backfill", IN_FLIGHT)),
        ledger: Arc::clone(&ledger),
        fetcher,
        queue,
        topology,
        digests,
        options: Options {
            sources,
            filter: arguments.filter(),
            retry_failed: arguments.retry_failed,
            limit: arguments.limit,
            dry_run: arguments.dry_run,
            restart: arguments.restart,
            bounds: Bounds { rate: arguments.rate, depth: arguments.depth },
            again_after: arguments.again_after.0,
        },
        began: OffsetDateTime::now_utc(),
        tally: Arc::default(),
    });
    let progress = Progress::new(Unit::Images);
    let bar = progress.clone();
    let stop = Signals::listen()?.stop(move || {
        bar.around(|| eprintln!("stopping behind the jobs that are on their way; once more stops at once"));
    });
    let telling = tokio::spawn(tell(Arc::clone(&backfill), progress.clone()));
    let ended = backfill.run(&stop).await;
    telling.abort();
    progress.finish();
    backfill.publisher.close().await;
    ledger.close().await;
    summary(arguments, &backfill.tally, ended.as_ref().ok().copied())?;
    Ok(if ended? == End::Stopped { INTERRUPTED } else { 0 })
}

/// Says how far the run is: on a bar, whose end is known once a second listing has counted it, or a line a minute.
async fn tell(backfill: Arc<Backfill>, progress: Progress) {
    let mut last = 0;
    if progress.is_visible() {
        let (counted, bar) = (Arc::clone(&backfill), progress.clone());
        let _counting = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
            if let Ok(total) = counted.count().await {
                bar.expect(total);
            }
        }));
        loop {
            tokio::time::sleep(DRAW).await;
            let met = backfill.tally.met();
            progress.advance(met - last);
            last = met;
        }
    }
    loop {
        tokio::time::sleep(LOG).await;
        let Tally { filtered, screened, waiting, published } = &*backfill.tally;
        let [filtered, screened, waiting, published] =
            [filtered, screened, waiting, published].map(|n| n.load(Ordering::Relaxed));
        let met = backfill.tally.met();
        let a_second = (met - last) / LOG.as_secs();
        last = met;
        tracing::info!(met, filtered, screened, waiting, published, a_second, "backfilling");
    }
}

fn summary(arguments: &Arguments, tally: &Tally, end: Option<End>) -> anyhow::Result<()> {
    let Tally { filtered, screened, waiting, published } = tally;
    let [filtered, screened, waiting, published] =
        [filtered, screened, waiting, published].map(|n| n.load(Ordering::Relaxed));
    let (end, words) = match end {
        _ if arguments.dry_run => ("counted", ""),
        Some(End::Done) => ("done", ""),
        Some(End::Limit) => ("limit", "; the limit is reached, the same command goes on from here"),
        Some(End::Stopped) => ("stopped", "; stopped, the same command goes on from here"),
        None => ("failed", "; the same command goes on from here"),
    };
    let values = [json!(tally.met()), json!(filtered), json!(screened), json!(waiting), json!(published), json!(end)];
    let row: Map<_, _> = COLUMNS.iter().map(|column| (*column).to_owned()).zip(values).collect();
    let mut output = Output::new(Format::or_default(arguments.format), &COLUMNS)?;
    output.row(&row)?;
    output.finish()?;
    let would = if arguments.dry_run { "would be published" } else { "published" };
    eprintln!(
        "{} objects: {published} {would}, {screened} have a verdict, {waiting} wait for theirs, {filtered} were not meant{words}",
        tally.met()
    );
    Ok(())
}
