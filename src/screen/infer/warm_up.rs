//! What is found out about a session before it scores: what its output means, and how large its batches should be.

use std::sync::Arc;
use std::time::Duration;

use super::{InferError, ModelSession, RunClock, SessionError};
use crate::config::InferenceConfig;
use crate::detector::{Activation, Detector};
use crate::screen::pixels::Pixels;

/// The largest batch that is tried where none is configured.
pub(crate) const LARGEST_BATCH: u32 = 64;
/// Of two batch sizes the smaller is taken where it reaches this share of the larger one's images per second. Larger
/// batches take memory, and a live job waits longer for them.
const NEARLY_AS_FAST: f64 = 0.95;
/// A batch is run this often, and the shortest run counts.
const TIMED_RUNS: usize = 3;
/// How long these runs may take together.
const TIMED_RUNS_DEADLINE: Duration = Duration::from_millis(200);

/// Finds out what the output means and what the largest batch should be, by running blank images. `clock` measures each run,
/// so that one that never ends is noticed.
pub(super) fn warm_up(
    session: &mut dyn ModelSession,
    detector: &Detector,
    config: &InferenceConfig,
    clock: &RunClock,
) -> Result<(Activation, usize), InferError> {
    let (is_slow, fixed_batch) = (session.is_slow(), session.fixed_batch());
    let mut run = |batch: &[Arc<Pixels>]| clock.measure(|| session.run(batch));
    let first_run = |source: SessionError| InferError::FirstRun { detector: detector.name.clone(), source };
    let mut outputs = Vec::new();
    for shade in [0, 255, 127] {
        outputs.extend(run(&[blank_image(detector, shade)]).map_err(first_run)?.rows);
    }
    if let Some(width) = outputs.iter().map(Vec::len).find(|width| *width != detector.labels.len()) {
        return Err(InferError::Model {
            detector: detector.name.clone(),
            what: format!(
                "the package names {} labels, but the model has {width} outputs per image",
                detector.labels.len()
            ),
        });
    }
    let max_run = is_slow.then_some(Duration::from_millis(config.max_run_ms));
    let configured = (config.max_batch > 0).then(|| u32::try_from(config.max_batch).unwrap_or(u32::MAX));
    let fixed = fixed_batch.and_then(|fixed| u32::try_from(fixed).ok());
    let limits = BatchLimits {
        max_batch: fixed.unwrap_or(u32::MAX).min(configured.unwrap_or(LARGEST_BATCH)),
        is_configured: configured.is_some(),
        max_run,
    };
    // A configured batch only has to be kept within the longest run, which needs no exact figure.
    let runs = if limits.is_configured { 1 } else { TIMED_RUNS };
    let mut time_run = |size: u32| {
        let batch = vec![blank_image(detector, 127); size as usize];
        // The first run of a size allocates; single images were run above.
        if size > 1 {
            run(&batch)?;
        }
        shortest_run(runs, || Ok(run(&batch)?.took))
    };
    let max_batch = find_max_batch(limits, &mut time_run).map_err(first_run)?;
    Ok((activation(detector, session.output_name(), &outputs)?, max_batch))
}

/// The shortest of a few runs: other work of the machine only makes a run longer.
fn shortest_run(
    runs: usize,
    mut run: impl FnMut() -> Result<Duration, SessionError>,
) -> Result<Duration, SessionError> {
    let mut shortest = run()?;
    let mut spent = shortest;
    for _ in 1..runs {
        if spent > TIMED_RUNS_DEADLINE {
            break;
        }
        let took = run()?;
        (shortest, spent) = (shortest.min(took), spent + took);
    }
    Ok(shortest)
}

/// Whether a batch of `doubled` images per second is worth its size where one of half the size reaches `rate`.
#[must_use]
pub(crate) fn gains(rate: f64, doubled: f64) -> bool {
    rate <= NEARLY_AS_FAST * doubled
}

/// What bounds the largest batch.
#[derive(Clone, Copy)]
struct BatchLimits {
    max_batch: u32,
    /// Whether `max_batch` was configured, and is taken even where a smaller batch is nearly as fast.
    is_configured: bool,
    /// The longest that a run may take.
    max_run: Option<Duration>,
}

/// The largest batch to run: the configured one, or else the smallest that is nearly as fast per image as one of twice its
/// size. No run may take longer than `max_run`. A batch that does not fit in memory only ends the search.
fn find_max_batch(
    limits: BatchLimits,
    time_run: &mut dyn FnMut(u32) -> Result<Duration, SessionError>,
) -> Result<usize, SessionError> {
    let rate = |run: Duration, size: u32| f64::from(size) / run.as_secs_f64();
    let BatchLimits { max_batch, is_configured, max_run } = limits;
    let (mut size, mut run) = (1, time_run(1)?);
    while size < max_batch && max_run.is_none_or(|max_run| run * 2 <= max_run) {
        let next_size = size.saturating_mul(2).min(max_batch);
        let Ok(next_run) = time_run(next_size) else { break };
        // Trying still larger batches would only take time and memory.
        let is_worth_it = is_configured || gains(rate(run, size), rate(next_run, next_size));
        if !is_worth_it || max_run.is_some_and(|max_run| next_run > max_run) {
            break;
        }
        (size, run) = (next_size, next_run);
    }
    Ok(size as usize)
}

/// What the output holds: as the package states, else by the output's name, else by values that only logits can have.
fn activation(detector: &Detector, output: &str, rows: &[Vec<f32>]) -> Result<Activation, InferError> {
    if let Some(stated) = detector.activation {
        return Ok(stated);
    }
    let logits = if detector.multi_label { Activation::Sigmoid } else { Activation::Softmax };
    let name = output.to_ascii_lowercase();
    let outside = rows.iter().flatten().any(|x| !(0.0..=1.0).contains(x));
    if name.contains("logit") || outside {
        Ok(logits)
    } else if name.contains("prob") || name.contains("softmax") || name.contains("sigmoid") {
        Ok(Activation::Identity)
    } else {
        Err(InferError::Model {
            detector: detector.name.clone(),
            what: format!(
                "the output \"{output}\" may hold logits or probabilities\n  hint: state which in config.json: \"pixwarden\": {{\"output\": \"logits\"}} or \"probabilities\""
            ),
        })
    }
}

/// An image of one shade of grey, in the detector's size.
pub(super) fn blank_image(detector: &Detector, shade: u8) -> Arc<Pixels> {
    let (width, height) = (detector.geometry.width, detector.geometry.height);
    Arc::new(Pixels { width, height, data: vec![shade; width as usize * height as usize * 3] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::detector;

    /// The largest batch that is found where a run of each size takes so many microseconds, or fails.
    fn found(max_batch: u32, max_run: Option<u64>, is_configured: bool, took: impl Fn(u32) -> Option<u64>) -> usize {
        let mut time_run = |size| {
            let micros = took(size).ok_or_else(|| SessionError::OutOfMemory("too many".into()))?;
            Ok(Duration::from_micros(micros))
        };
        let limits = BatchLimits { max_batch, is_configured, max_run: max_run.map(Duration::from_micros) };
        find_max_batch(limits, &mut time_run).unwrap()
    }

    #[test]
    fn the_smallest_batch_that_is_nearly_as_fast_as_any_is_taken() {
        let linear = |size: u32| Some(1000 * u64::from(size));
        assert_eq!(found(64, None, false, linear), 1, "a larger batch gains nothing");
        let fixed_cost = |size: u32| Some(1000 + 100 * u64::from(size));
        assert_eq!(found(64, None, false, fixed_cost), 64);
        assert_eq!(found(24, None, false, fixed_cost), 24);
        let cache = |size: u32| Some(if size <= 4 { 1000 + 100 * u64::from(size) } else { 1000 * u64::from(size) });
        assert_eq!(found(64, None, false, cache), 4);
    }

    #[test]
    fn a_batch_is_bounded_by_time_and_memory() {
        let fixed_cost = |size: u32| Some(1000 + 100 * u64::from(size));
        assert_eq!(found(64, Some(3000), false, fixed_cost), 8);
        assert_eq!(found(64, Some(1), true, fixed_cost), 1);
        assert_eq!(found(64, None, true, |size| (size <= 16).then_some(1000)), 16);
    }

    #[test]
    fn a_configured_batch_is_taken_even_where_it_gains_nothing() {
        let linear = |size: u32| Some(1000 * u64::from(size));
        assert_eq!(found(24, None, true, linear), 24);
        assert_eq!(found(24, Some(10_000), true, linear), 8);
        let cliff = |size: u32| Some(if size < 16 { 30 * u64::from(size) } else { 900 });
        assert_eq!(found(32, Some(500), true, cliff), 8, "the run itself is timed, not only that of half the batch");
    }

    #[test]
    fn an_output_is_recognised_by_statement_name_or_values() {
        let ambiguous = [vec![0.3, 0.7]];
        let mut d = detector("d", &["a", "b"]);
        assert!(activation(&d, "output", &ambiguous).is_err());
        assert_eq!(activation(&d, "logits", &ambiguous).unwrap(), Activation::Softmax);
        assert_eq!(activation(&d, "probabilities", &ambiguous).unwrap(), Activation::Identity);
        assert_eq!(activation(&d, "output", &[vec![0.3, 1.2]]).unwrap(), Activation::Softmax);
        d.multi_label = true;
        assert_eq!(activation(&d, "output", &[vec![-3.0, 0.5]]).unwrap(), Activation::Sigmoid);
    }
}
