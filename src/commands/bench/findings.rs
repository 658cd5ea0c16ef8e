//! What follows from the measurements: what bounds the pipeline, which settings fit, what a million images cost.

use serde::Serialize;

use crate::screen::infer::gains;
use crate::worker::default_prefetch;

/// Decoders in front of a GPU, by how many would just do: images come in batches, and differ.
const SPARE: f64 = 1.25;

/// A part that every image passes, and how many a second it does by itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Part {
    /// `decode`, `session`, `pipeline`, `storage`, `ledger` or `broker`.
    pub name: &'static str,
    /// A second.
    pub images_per_s: f64,
}

/// What the parts of the screen allow together.
pub(super) struct Allowed {
    pub cores: usize,
    /// Of decoding and of all sessions, an image.
    pub processor_ms: Option<f64>,
    /// All decoders alone, images a second.
    pub decode: f64,
    /// All sessions alone, images a second.
    pub sessions: f64,
}

impl Allowed {
    /// Images a second: no more than the slower part does alone, nor than the cores have time for.
    pub(super) fn rate(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "cores are few")]
        let cores = self.processor_ms.map_or(f64::INFINITY, |ms| self.cores as f64 * 1e3 / ms);
        cores.min(self.decode).min(self.sessions)
    }
}

/// Decoders that are kept busy and get less of the cores than this share them with something.
const BUSY: f64 = 0.7;

/// What to beware of: `processor_s` is what `decoders` were given of the cores in `seconds`, with nothing else to do.
pub(super) fn caution(processor_s: f64, seconds: f64, decoders: usize) -> Option<String> {
    #[expect(clippy::cast_precision_loss, reason = "cores are few")]
    let part = processor_s / (seconds * decoders as f64);
    (part < BUSY).then(|| {
        format!(
            "the decoders got {:.0} % of the processor time that they wanted: something else runs here, or the cores are not all ours, so figures are too low",
            part * 100.0
        )
    })
}

/// The slowest of the screen and the services: that many images a second is what a worker does at the most.
pub(super) fn bound(screen: Part, (decode, sessions): (f64, f64), services: impl Iterator<Item = Part>) -> Part {
    // Of the screen's own parts the one that is slower alone.
    let name = if decode < sessions { "decode" } else { "session" };
    let screen = Part { name, ..screen };
    services.fold(screen, |slowest, part| if part.images_per_s < slowest.images_per_s { part } else { slowest })
}

/// Options as they would be set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Recommended {
    #[serde(rename = "worker.prefetch")]
    pub prefetch: u16,
    #[serde(rename = "inference.max_batch")]
    pub max_batch: usize,
    #[serde(rename = "decode.threads")]
    pub threads: usize,
}

/// What settings are derived from.
pub(super) struct Basis<'a> {
    pub cores: usize,
    pub downloads: usize,
    /// Whether every session leaves the cores to the decoders.
    pub on_gpu: bool,
    /// Images a second of one decoder alone.
    pub one_decoder: f64,
    /// Images a second of all sessions alone.
    pub sessions: f64,
    /// For each detector, sizes ascending and images a second.
    pub batches: &'a [Vec<(usize, f64)>],
}

impl Basis<'_> {
    pub(super) fn recommend(&self) -> Recommended {
        let max_batch = self.batches.iter().map(|sizes| good_enough(sizes)).max().unwrap_or(1);
        // Sessions on the processor leave to decoders what they do not use, and there is no telling which core that is.
        let threads = if self.on_gpu {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a number of threads, bounded by the cores just below"
            )]
            let needed = (self.sessions / self.one_decoder * SPARE).ceil() as usize;
            needed.clamp(1, self.cores)
        } else {
            self.cores
        };
        let prefetch = default_prefetch(max_batch, self.batches.len(), threads + self.downloads);
        Recommended { prefetch, max_batch, threads }
    }
}

/// The size that a worker's warm-up would choose: the first whose double gains too little.
pub(super) fn good_enough(sizes: &[(usize, f64)]) -> usize {
    let mut sizes = sizes.iter();
    let Some(mut best) = sizes.next() else { return 1 };
    for next in sizes {
        if !gains(best.1, next.1) {
            break;
        }
        best = next;
    }
    best.0
}

/// A million images at a steady rate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Million {
    pub hours: f64,
    pub price_per_hour: Option<f64>,
    /// In the currency of the price.
    pub cost: Option<f64>,
}

impl Million {
    pub(super) fn at(images_per_s: f64, price_per_hour: Option<f64>) -> Self {
        let hours = 1e6 / images_per_s / 3600.0;
        Self { hours, price_per_hour, cost: price_per_hour.map(|price| hours * price) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_slowest_bounds_and_the_screen_is_told_by_its_slower_part() {
        let part = |name, images_per_s| Part { name, images_per_s };
        let screen = || part("pipeline", 50.0);
        assert_eq!(bound(screen(), (90.0, 120.0), std::iter::empty()), part("decode", 50.0));
        let services = [part("ledger", 4000.0), part("broker", 70.0)];
        assert_eq!(bound(screen(), (120.0, 90.0), services.into_iter()), part("session", 50.0));
        let services = [part("storage", 20.0), part("ledger", 40.0)];
        assert_eq!(bound(screen(), (90.0, 120.0), services.into_iter()), part("storage", 20.0));
    }

    #[test]
    fn decoders_that_do_not_get_the_cores_are_told_of() {
        assert_eq!(caution(5.4, 3.0, 2), None);
        assert!(caution(0.9, 3.0, 2).unwrap().contains("got 15 % of"));
    }

    #[test]
    fn parts_that_share_the_cores_allow_what_the_cores_have_time_for() {
        let allowed = |processor_ms| Allowed { cores: 2, processor_ms, decode: 90.0, sessions: 120.0 }.rate();
        assert!((allowed(Some(40.0)) - 50.0).abs() < 1e-9);
        assert!((allowed(Some(1.0)) - 90.0).abs() < 1e-9);
        assert!((allowed(None) - 90.0).abs() < 1e-9);
    }

    #[test]
    fn the_smallest_batch_that_is_nearly_the_fastest_is_recommended() {
        let batches = [vec![(1, 50.0), (2, 96.0), (4, 100.0)], vec![(1, 99.0), (2, 100.0)]];
        let basis =
            Basis { cores: 16, downloads: 16, on_gpu: false, one_decoder: 50.0, sessions: 100.0, batches: &batches };
        let wanted = Recommended { prefetch: 2 * 2 * 2 + 16 + 16 + 64, max_batch: 2, threads: 16 };
        assert_eq!(basis.recommend(), wanted);
        // In front of a GPU: two would just do.
        let wanted = Recommended { prefetch: wanted.prefetch - 13, threads: 3, ..wanted };
        assert_eq!(Basis { on_gpu: true, ..basis }.recommend(), wanted);
    }

    #[test]
    fn a_million_images_at_a_hundred_a_second_take_ten_thousand_seconds() {
        let million = Million::at(100.0, Some(0.9));
        assert!((million.hours - 10_000.0 / 3600.0).abs() < 1e-9 && (million.cost.unwrap() - 2.5).abs() < 1e-9);
        assert_eq!(Million::at(100.0, None).cost, None);
    }
}
