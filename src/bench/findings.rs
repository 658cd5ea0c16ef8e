//! Conclusions from the measurements: the bottleneck, recommended options, and what a million images cost.

use serde::Serialize;

use super::load::as_f64;
use super::parts::SessionResult;
use super::{BenchReport, ServiceMeasurement};
use crate::config::Config;
use crate::screen::infer::gains;
use crate::worker::default_prefetch;

/// Decoders recommended in front of a GPU, as a multiple of the number that would just keep up: images arrive in
/// batches and differ in size.
const DECODER_HEADROOM: f64 = 1.25;
/// Busy decoders that get a smaller share of the cores than this compete with another program.
const MIN_PROCESSOR_SHARE: f64 = 0.7;

/// Everything that follows from a report.
pub(crate) struct Conclusions {
    pub cores: usize,
    /// What the parts of the screen allow together, in images per second.
    pub capacity: f64,
    /// Decoding's share of the processor time per image; `None` where the system does not report processor time.
    pub decode_share: Option<f64>,
    pub bottleneck: PartRate,
    pub recommended: RecommendedOptions,
    pub million: MillionImages,
    /// Why the figures may be too low.
    pub warning: Option<String>,
}

impl Conclusions {
    pub(crate) fn of(config: &Config, report: &BenchReport, price_per_hour: Option<f64>) -> Self {
        let BenchReport { sample, one_decoder, all_decoders, sessions, pipeline, storage, ledger, broker, .. } = report;
        let cores = num_cpus::get();
        let frames = sample.mean(|image| as_f64(image.frames as u64));
        let on_gpu = sessions.iter().all(|session| !session.is_on_cpu());
        // Sessions on one GPU take turns. On the CPU each session has its own thread, and they compete for the cores.
        let rates = sessions.iter().map(|session| session.fastest().images_per_s() / frames);
        let sessions_rate =
            if on_gpu { 1.0 / rates.map(|rate| 1.0 / rate).sum::<f64>() } else { rates.fold(f64::INFINITY, f64::min) };
        let decode_ms = all_decoders.result.processor_ms();
        let sessions_ms: Option<f64> = sessions.iter().map(|session| session.fastest().processor_ms()).sum();
        let processor_ms = decode_ms.zip(sessions_ms).map(|(decode, sessions)| decode + sessions * frames);
        let decode_rate = all_decoders.result.per_second();
        let capacity = ScreenCapacity { cores, processor_ms, decode: decode_rate, sessions: sessions_rate };

        let services = [("storage", storage), ("ledger", ledger), ("broker", broker)];
        let services = services.into_iter().filter_map(|(name, measurement)| match measurement {
            ServiceMeasurement::Measured(service) => Some(PartRate { name, images_per_s: service.result.per_second() }),
            ServiceMeasurement::Skipped(_) | ServiceMeasurement::Failed(_) => None,
        });
        let screen = PartRate { name: "pipeline", images_per_s: pipeline.result.per_second() };
        let bottleneck = bottleneck(screen, (decode_rate, sessions_rate), services);

        let batches: Vec<Vec<(usize, f64)>> = sessions.iter().map(SessionResult::rates).collect();
        let inputs = RecommendationInputs {
            cores,
            downloads: config.storage.downloads,
            on_gpu,
            one_decoder: one_decoder.result.per_second(),
            sessions: sessions_rate,
            batches: &batches,
        };
        let warning = all_decoders.result.processor_s.and_then(|used| {
            processor_share_warning(used, all_decoders.result.seconds, all_decoders.decoders.min(cores))
        });
        Self {
            cores,
            capacity: capacity.images_per_s(),
            decode_share: decode_ms.zip(processor_ms).map(|(decode, all)| decode / all),
            recommended: inputs.recommend(),
            million: MillionImages::at(bottleneck.images_per_s, price_per_hour),
            warning,
            bottleneck,
        }
    }
}

/// The rate of one part that every image passes through, measured alone.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct PartRate {
    /// `decode`, `session`, `pipeline`, `storage`, `ledger` or `broker`.
    pub name: &'static str,
    pub images_per_s: f64,
}

/// What the parts of the screen allow together.
struct ScreenCapacity {
    cores: usize,
    /// Of decoding and of all sessions, per image.
    processor_ms: Option<f64>,
    /// All decoders alone, in images per second.
    decode: f64,
    /// All sessions alone, in images per second.
    sessions: f64,
}

impl ScreenCapacity {
    /// The slower part alone is a limit, and so is the processor time of the cores.
    fn images_per_s(&self) -> f64 {
        let cores = self.processor_ms.map_or(f64::INFINITY, |ms| as_f64(self.cores as u64) * 1e3 / ms);
        cores.min(self.decode).min(self.sessions)
    }
}

/// A warning where `decoders` busy decoders received much less than `seconds` of processor time each.
fn processor_share_warning(processor_s: f64, seconds: f64, decoders: usize) -> Option<String> {
    let share = processor_s / (seconds * as_f64(decoders as u64));
    (share < MIN_PROCESSOR_SHARE).then(|| {
        format!(
            "the decoders received only {:.0} % of the processor time that they could use: another program is running, or the cores are shared or limited; the figures are too low",
            share * 100.0
        )
    })
}

/// The slowest of the screen and the services. A worker reaches no more images per second than this.
fn bottleneck(screen: PartRate, (decode, sessions): (f64, f64), services: impl Iterator<Item = PartRate>) -> PartRate {
    // The screen is reported by the slower of its two parts.
    let name = if decode < sessions { "decode" } else { "session" };
    let screen = PartRate { name, ..screen };
    services.fold(screen, |slowest, part| if part.images_per_s < slowest.images_per_s { part } else { slowest })
}

/// Options, by the names that the configuration file has for them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct RecommendedOptions {
    #[serde(rename = "worker.prefetch")]
    pub prefetch: u16,
    #[serde(rename = "inference.max_batch")]
    pub max_batch: usize,
    #[serde(rename = "decode.threads")]
    pub threads: usize,
}

/// What the recommended options are computed from.
struct RecommendationInputs<'a> {
    cores: usize,
    downloads: usize,
    /// Whether every session runs on a GPU, so that the decoders have the cores to themselves.
    on_gpu: bool,
    /// Images per second of one decoder alone.
    one_decoder: f64,
    /// Images per second of all sessions alone.
    sessions: f64,
    /// For each detector: batch sizes, ascending, with images per second.
    batches: &'a [Vec<(usize, f64)>],
}

impl RecommendationInputs<'_> {
    fn recommend(&self) -> RecommendedOptions {
        let max_batch = self.batches.iter().map(|rates| smallest_efficient_batch(rates)).max().unwrap_or(1);
        // Sessions on the CPU leave some processor time to the decoders, but not on cores that are known beforehand.
        let threads = if self.on_gpu {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a number of threads, bounded by the cores just below"
            )]
            let needed = (self.sessions / self.one_decoder * DECODER_HEADROOM).ceil() as usize;
            needed.clamp(1, self.cores)
        } else {
            self.cores
        };
        let prefetch = default_prefetch(max_batch, self.batches.len(), threads + self.downloads);
        RecommendedOptions { prefetch, max_batch, threads }
    }
}

/// The batch size that a worker's warm-up would choose: the first one that gains too little from being doubled.
pub(super) fn smallest_efficient_batch(rates: &[(usize, f64)]) -> usize {
    let mut rates = rates.iter();
    let Some(mut best) = rates.next() else { return 1 };
    for next in rates {
        if !gains(best.1, next.1) {
            break;
        }
        best = next;
    }
    best.0
}

/// The time and cost of a million images at a steady rate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct MillionImages {
    pub hours: f64,
    pub price_per_hour: Option<f64>,
    /// In the currency of the price.
    pub cost: Option<f64>,
}

impl MillionImages {
    fn at(images_per_s: f64, price_per_hour: Option<f64>) -> Self {
        let hours = 1e6 / images_per_s / 3600.0;
        Self { hours, price_per_hour, cost: price_per_hour.map(|price| hours * price) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_part_is_the_bottleneck_and_the_screen_is_named_by_its_slower_half() {
        let part = |name, images_per_s| PartRate { name, images_per_s };
        let screen = || part("pipeline", 50.0);
        assert_eq!(bottleneck(screen(), (90.0, 120.0), std::iter::empty()), part("decode", 50.0));
        let services = [part("ledger", 4000.0), part("broker", 70.0)];
        assert_eq!(bottleneck(screen(), (120.0, 90.0), services.into_iter()), part("session", 50.0));
        let services = [part("storage", 20.0), part("ledger", 40.0)];
        assert_eq!(bottleneck(screen(), (90.0, 120.0), services.into_iter()), part("storage", 20.0));
    }

    #[test]
    fn decoders_that_do_not_get_the_cores_cause_a_warning() {
        assert_eq!(processor_share_warning(5.4, 3.0, 2), None);
        assert!(processor_share_warning(0.9, 3.0, 2).unwrap().contains("received only 15 % of"));
    }

    #[test]
    fn parts_that_share_the_cores_are_limited_by_their_processor_time() {
        let capacity =
            |processor_ms| ScreenCapacity { cores: 2, processor_ms, decode: 90.0, sessions: 120.0 }.images_per_s();
        assert!((capacity(Some(40.0)) - 50.0).abs() < 1e-9);
        assert!((capacity(Some(1.0)) - 90.0).abs() < 1e-9);
        assert!((capacity(None) - 90.0).abs() < 1e-9);
    }

    #[test]
    fn the_smallest_batch_that_is_nearly_the_fastest_is_recommended() {
        let batches = [vec![(1, 50.0), (2, 96.0), (4, 100.0)], vec![(1, 99.0), (2, 100.0)]];
        let inputs = RecommendationInputs {
            cores: 16,
            downloads: 16,
            on_gpu: false,
            one_decoder: 50.0,
            sessions: 100.0,
            batches: &batches,
        };
        let expected = RecommendedOptions { prefetch: 2 * 2 * 2 + 16 + 16 + 64, max_batch: 2, threads: 16 };
        assert_eq!(inputs.recommend(), expected);
        // In front of a GPU two decoders would just keep up, so three are recommended.
        let expected = RecommendedOptions { prefetch: expected.prefetch - 13, threads: 3, ..expected };
        assert_eq!(RecommendationInputs { on_gpu: true, ..inputs }.recommend(), expected);
    }

    #[test]
    fn a_million_images_at_a_hundred_per_second_take_ten_thousand_seconds() {
        let million = MillionImages::at(100.0, Some(0.9));
        assert!((million.hours - 10_000.0 / 3600.0).abs() < 1e-9 && (million.cost.unwrap() - 2.5).abs() < 1e-9);
        assert_eq!(MillionImages::at(100.0, None).cost, None);
    }
}
