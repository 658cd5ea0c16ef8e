//! `pixwarden bench`: what this machine does with these detectors, what bounds it, and what a million images cost.
//!
//! Each part is measured alone (`parts`, `services`), under a steady load (`load`) and with the same images (`sample`);
//! then the screen as a whole. What follows from that is in `findings`.

mod findings;
mod load;
mod parts;
mod print;
mod sample;
mod services;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio_util::sync::CancellationToken;

use super::progress::{Progress, Unit};
use super::signals::{INTERRUPTED, Signals};
use crate::config::{Config, ConfigError};
use crate::screen::decode::DecoderPool;
use crate::screen::infer::LARGEST_BATCH;
use crate::screen::{Screen, StartError};
use findings::good_enough;
use load::{Interrupted, Load};
use parts::{Decoding, Pipeline, Session, geometries, one_decoder, sizes};
use sample::{Candidates, Origin, Sample};
use services::{Service, Storage};

/// Options of `bench`.
#[derive(Debug, Args)]
#[command(
    after_help = "Everything is measured with images in memory: at most 100 of them, as many as one decoder decodes in \
--seconds. Services are measured where they are configured: commits go to a schema or a file of their own, messages \
through a queue of their own, and all of these are gone afterwards. Objects are only read, and only where a PATH names \
s3://. The machine should have nothing else to do."
)]
pub struct Arguments {
    /// Files and folders of your pictures, or s3://bucket/prefix, whose fetching is measured too; without any, the
    /// bundled samples
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// How long each part is measured; longer is steadier
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    seconds: f64,
    /// What an hour of this machine costs, in any currency
    #[arg(long, value_name = "PRICE")]
    price_per_hour: Option<f64>,
    /// How the figures are printed
    #[arg(long, value_enum)]
    format: Option<Format>,
}

/// One result, and not rows: so it is a document or a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people; the default on a terminal
    Table,
    /// One JSON object on one line; the default elsewhere
    #[value(alias = "jsonl")]
    Json,
}

impl Arguments {
    fn check(&self) -> Result<Duration, ConfigError> {
        let wrong = |option: &str, what: &str| Err(ConfigError::Invalid { option: option.into(), what: what.into() });
        // Written so that what is no number is refused too.
        if !(0.01..=3600.0).contains(&self.seconds) {
            return wrong("--seconds", "it must be from 0.01 to 3600");
        }
        if self.price_per_hour.is_some_and(|price| !(price.is_finite() && price >= 0.0)) {
            return wrong("--price-per-hour", "it must be a number, at least 0");
        }
        Ok(Duration::from_secs_f64(self.seconds))
    }
}

/// What every measurement needs.
struct Bench<'a> {
    config: &'a Config,
    screen: &'a Screen,
    time: Duration,
    stop: CancellationToken,
    progress: Progress,
}

/// All that was measured.
struct Report {
    sample: Sample,
    one: Decoding,
    all: Decoding,
    sessions: Vec<Session>,
    pipeline: Pipeline,
    storage: Measured,
    /// Where storage was measured.
    objects: Option<Objects>,
    ledger: Measured,
    broker: Measured,
}

/// The objects that were fetched.
struct Objects {
    different: usize,
    mean_bytes: f64,
}

/// A service, or why there are no figures of it.
enum Measured {
    Yes(Service),
    /// Nobody asked for it.
    Not(&'static str),
    /// It is configured, and does not do.
    Failed(String),
}

pub(super) async fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<u8> {
    let time = arguments.check()?;
    // Whatever is configured has to make sense, before anything is measured.
    for (url, wrong) in [(&config.queue, config.queue().err()), (&config.ledger, config.ledger().err())] {
        if let Some(e) = wrong.filter(|_| !url.is_empty()) {
            return Err(e.into());
        }
    }
    let mut measured = config.clone();
    if config.inference.max_batch == 0 {
        measured.inference.max_batch = LARGEST_BATCH as usize;
    }
    let screen = Screen::start(&measured)?;
    let progress = Progress::new(Unit::Measurements);
    let bar = progress.clone();
    let stop = Signals::listen()?.stop(move || bar.around(|| eprintln!("stopping; once more stops at once")));
    let bench = Bench { config, screen: &screen, time, stop, progress };
    let report = bench.measure(arguments).await;
    bench.progress.finish();
    let report = match report {
        Ok(report) => report,
        Err(e) if e.is::<Interrupted>() => {
            eprintln!("stopped before the end, so there are no figures");
            return Ok(INTERRUPTED);
        }
        Err(e) => return Err(e),
    };
    let default = if std::io::stdout().is_terminal() { Format::Table } else { Format::Json };
    print::print(arguments.format.unwrap_or(default), &print::Context::of(&bench, &report, arguments.price_per_hour))?;
    let failed = [&report.ledger, &report.broker].into_iter().filter_map(|measured| match measured {
        Measured::Failed(why) => Some(why),
        Measured::Yes(_) | Measured::Not(_) => None,
    });
    Ok(u8::from(failed.inspect(|why| eprintln!("error: {why}")).count() > 0))
}

impl Bench<'_> {
    /// One measurement after another; no two at a time.
    async fn measure(&self, arguments: &Arguments) -> anyhow::Result<Report> {
        let config = self.config;
        let (has_ledger, has_queue) = (!config.ledger.is_empty(), !config.queue.is_empty());
        let (local, references) = services::sort(&arguments.paths);
        let batches: usize = self.screen.engines().iter().map(|engine| sizes(engine.max_batch()).len()).sum();
        let services = [!references.is_empty(), has_ledger, has_queue].into_iter().filter(|is| *is).count();
        self.progress.expect((4 + batches + services) as u64);

        let storage = match references[..] {
            [] => None,
            _ => Some(self.stop.run_until_cancelled(Storage::open(&references, config)).await.ok_or(Interrupted)??),
        };
        let pool = one_decoder(&config.decode).map_err(StartError::from)?;
        let sample = self.step("choosing images".into(), self.sample(local, storage.as_ref(), &pool)).await?;
        let one = self.step("one decoder".into(), self.decoding(&sample, &pool, 1)).await?;
        drop(pool);
        let decoders = DecoderPool::thread_count(&config.decode);
        let decoding = self.decoding(&sample, self.screen.decoders(), decoders);
        let all = self.step(format!("{decoders} decoders"), decoding).await?;

        let mut sessions = Vec::new();
        for engine in self.screen.engines() {
            let mut batches = Vec::new();
            for size in sizes(engine.max_batch()) {
                let what = format!("{}, batches of {size}", engine.detector.name);
                batches.push(self.step(what, self.batch(&sample, engine, size)).await?);
            }
            let session = Session {
                detector: engine.detector.name.clone(),
                digest: engine.detector.digest.clone(),
                place: engine.device.clone(),
                batches,
            };
            if config.inference.max_batch == 0 {
                // All of it is to run about as a worker would, which stops doubling where that gains nothing.
                engine.lower_max_batch(good_enough(&session.rates()));
            }
            sessions.push(session);
        }
        let pipeline = self.step("all of it, from memory".into(), self.pipeline(&sample)).await?;

        let (storage, objects) = match &storage {
            None => (Measured::Not("no PATH names s3://"), None),
            Some(storage) => {
                let fetched = self.step("storage".into(), self.fetching(storage)).await?;
                (Measured::Yes(fetched), Some(storage.fetched()))
            }
        };
        let ledger = match has_ledger {
            true => configured(self.step("ledger".into(), self.committing(&sample, &pipeline)).await)?,
            false => Measured::Not("no `ledger` is configured"),
        };
        let broker = match has_queue {
            true => configured(self.step("broker".into(), self.echoing()).await)?,
            false => Measured::Not("no `queue` is configured"),
        };
        Ok(Report { sample, one, all, sessions, pipeline, storage, objects, ledger, broker })
    }

    /// The images: files, or else objects where those are named, or else what is bundled.
    async fn sample(
        &self,
        paths: Vec<PathBuf>,
        storage: Option<&Storage>,
        pool: &DecoderPool,
    ) -> anyhow::Result<Sample> {
        let candidates = match storage {
            Some(storage) if paths.is_empty() => {
                let files = self.some_objects(storage).await?;
                Candidates { origin: Origin::Paths, found: storage.objects(), files }
            }
            _ => Candidates::of(paths, self.config.storage.max_object_bytes, &self.stop).await?,
        };
        let geometries = geometries(self.screen.engines());
        Sample::of(candidates, (pool, &geometries), self.time, &self.stop).await
    }

    /// Shows what is being measured, and that it was.
    async fn step<T>(&self, what: String, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        self.progress.tell(what);
        let done = work.await;
        self.progress.advance(1);
        done
    }

    /// A load of this many at a time, in rounds of so many.
    fn load(&self, in_flight: usize, round: usize) -> Load<'_> {
        Load { in_flight, round, time: self.time, stop: &self.stop }
    }
}

/// A service that does not do is told of, and costs no other figure.
fn configured(measured: anyhow::Result<Service>) -> anyhow::Result<Measured> {
    match measured {
        Ok(service) => Ok(Measured::Yes(service)),
        Err(e) if e.is::<Interrupted>() => Err(e),
        Err(e) => Ok(Measured::Failed(super::error_text(&e))),
    }
}
