//! What a session is asked before it scores: what its output means, and how large its batches should be.

use std::sync::Arc;
use std::time::Duration;

use super::{InferError, Session, SessionError};
use crate::config::InferenceConfig;
use crate::detector::{Activation, Detector};
use crate::screen::pixels::Pixels;

/// The largest batch that is tried where none is told.
pub const LARGEST_BATCH: u32 = 64;
/// A larger batch has to be so much faster an image to be worth its memory, and the time that a live job waits for it.
const NEARLY: f64 = 0.95;
/// Runs of a batch of which the shortest counts, and how long they may take together.
const TRIES: usize = 3;
const TRYING: Duration = Duration::from_millis(200);

/// Finds out what the output means and how large a batch should be, by running blank images.
pub(super) fn warm_up(
    session: &mut dyn Session,
    detector: &Detector,
    config: &InferenceConfig,
) -> Result<(Activation, usize), InferError> {
    let model = |what: String| InferError::Model { detector: detector.name.clone(), what };
    let cannot = |e: SessionError| model(format!("the model cannot run a single image: {e}"));
    let mut outputs = Vec::new();
    for shade in [0, 255, 127] {
        outputs.extend(session.run(&[plain(detector, shade)]).map_err(cannot)?.rows);
    }
    if let Some(width) = outputs.iter().map(Vec::len).find(|width| *width != detector.labels.len()) {
        return Err(model(format!(
            "the package names {} labels, but the model has {width} outputs an image",
            detector.labels.len()
        )));
    }
    let bound = session.is_slow().then_some(Duration::from_millis(config.max_run_ms));
    let told = (config.max_batch > 0).then(|| u32::try_from(config.max_batch).unwrap_or(u32::MAX));
    let fixed = session.fixed_batch().and_then(|fixed| u32::try_from(fixed).ok());
    let most = fixed.unwrap_or(u32::MAX).min(told.unwrap_or(LARGEST_BATCH));
    // What was told is only to be kept within the bound.
    let tries = if told.is_some() { 1 } else { TRIES };
    let mut took = |size: u32| {
        let batch = vec![plain(detector, 127); size as usize];
        // The first run of a size allocates; single images were run above.
        if size > 1 {
            session.run(&batch)?;
        }
        fastest(tries, || Ok(session.run(&batch)?.took))
    };
    let max_batch = batch(most, bound, told.is_some(), &mut took).map_err(cannot)?;
    Ok((activation(detector, session.output_name(), &outputs)?, max_batch))
}

/// The shortest of a few runs: whatever else the machine does only makes one longer.
fn fastest(tries: usize, mut run: impl FnMut() -> Result<Duration, SessionError>) -> Result<Duration, SessionError> {
    let mut shortest = run()?;
    let mut spent = shortest;
    for _ in 1..tries {
        if spent > TRYING {
            break;
        }
        let took = run()?;
        (shortest, spent) = (shortest.min(took), spent + took);
    }
    Ok(shortest)
}

/// Whether a batch that is run at `doubled` images a second is worth it where its half is run at `rate`.
#[must_use]
pub fn gains(rate: f64, doubled: f64) -> bool {
    rate <= NEARLY * doubled
}

/// The batch to run: `most`, if that was told, or else the smallest of up to `most` that is nearly as fast an image as its
/// double. A larger one holds more memory and makes a live job wait longer. Either way no run takes longer than `bound`,
/// and one that does not fit in memory is no reason not to start.
fn batch(
    most: u32,
    bound: Option<Duration>,
    told: bool,
    took: &mut dyn FnMut(u32) -> Result<Duration, SessionError>,
) -> Result<usize, SessionError> {
    let rate = |run: Duration, size: u32| f64::from(size) / run.as_secs_f64();
    let (mut size, mut run) = (1, took(1)?);
    while size < most && bound.is_none_or(|bound| run * 2 <= bound) {
        let next = size.saturating_mul(2).min(most);
        let Ok(found) = took(next) else { break };
        // Trying still larger ones would only take time and memory.
        let worth_it = told || gains(rate(run, size), rate(found, next));
        if !worth_it || bound.is_some_and(|bound| found > bound) {
            break;
        }
        (size, run) = (next, found);
    }
    Ok(size as usize)
}

/// What the output holds: as stated, else by its name, else by values that only logits can have.
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
                "the output \"{output}\" may hold logits or probabilities\n  hint: state it in config.json: \"pixwarden\": {{\"output\": \"logits\"}} or \"probabilities\""
            ),
        })
    }
}

/// An image of one shade of grey in the detector's size.
pub(super) fn plain(detector: &Detector, shade: u8) -> Arc<Pixels> {
    let (width, height) = (detector.geometry.width, detector.geometry.height);
    Arc::new(Pixels { width, height, data: vec![shade; width as usize * height as usize * 3] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::detector;

    /// Images a run against what a run of them takes.
    fn chosen(most: u32, bound: Option<u64>, told: bool, took: impl Fn(u32) -> Option<u64>) -> usize {
        let mut took = |size| {
            let micros = took(size).ok_or_else(|| SessionError::OutOfMemory("too many".into()))?;
            Ok(Duration::from_micros(micros))
        };
        batch(most, bound.map(Duration::from_micros), told, &mut took).unwrap()
    }

    #[test]
    fn the_smallest_batch_that_is_nearly_as_fast_as_any_is_taken() {
        let linear = |size: u32| Some(1000 * u64::from(size));
        assert_eq!(chosen(64, None, false, linear), 1, "what gains nothing is not done");
        let fixed_cost = |size: u32| Some(1000 + 100 * u64::from(size));
        assert_eq!(chosen(64, None, false, fixed_cost), 64);
        assert_eq!(chosen(24, None, false, fixed_cost), 24);
        let cache = |size: u32| Some(if size <= 4 { 1000 + 100 * u64::from(size) } else { 1000 * u64::from(size) });
        assert_eq!(chosen(64, None, false, cache), 4);
    }

    #[test]
    fn no_run_takes_longer_than_allowed_or_more_memory_than_there_is() {
        let fixed_cost = |size: u32| Some(1000 + 100 * u64::from(size));
        assert_eq!(chosen(64, Some(3000), false, fixed_cost), 8);
        assert_eq!(chosen(64, Some(1), true, fixed_cost), 1);
        assert_eq!(chosen(64, None, true, |size| (size <= 16).then_some(1000)), 16);
    }

    #[test]
    fn what_was_told_is_done_even_if_it_gains_nothing() {
        let linear = |size: u32| Some(1000 * u64::from(size));
        assert_eq!(chosen(24, None, true, linear), 24);
        assert_eq!(chosen(24, Some(10_000), true, linear), 8);
        let cliff = |size: u32| Some(if size < 16 { 30 * u64::from(size) } else { 900 });
        assert_eq!(chosen(32, Some(500), true, cliff), 8, "what half the batch takes does not tell");
    }

    #[test]
    fn an_output_is_taken_for_what_it_can_only_be() {
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
