//! The start-up proof: a package's golden image goes the whole way on the device that will be used, and has to score
//! what it scored where the package was made.
//!
//! It catches what no field can tell: another model under the same name, a package whose preprocessing was edited, a
//! provider or a driver that computes something else. Its image is decoded exactly in every mode, as it was where the
//! scores were made: a fast decoder's own, known error says nothing of the package.

use std::sync::Arc;

use super::decode::Pool;
use super::infer::Engine;
use crate::config::DecodeMode;
use crate::detector::Golden;
use crate::job::Lane;

/// How a detector did on its golden image.
#[derive(Debug, Clone, PartialEq)]
pub enum Proof {
    /// Every probability is within the tolerance.
    Proved(Deviation),
    /// The package has no golden image, so there is nothing to compare with.
    Unproved,
}

/// The largest difference between what was scored and what is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Deviation {
    /// The label it was found at.
    pub label: String,
    /// The probability scored here.
    pub found: f32,
    /// The probability in `golden.json`.
    pub stored: f32,
    /// What `golden.json` allows.
    pub tolerance: f32,
}

impl Deviation {
    /// The difference; not a number where the score is none.
    #[must_use]
    pub fn size(&self) -> f32 {
        (self.found - self.stored).abs()
    }

    /// Written so that a score that is not a number is not within anything.
    fn is_within(&self) -> bool {
        self.size() <= self.tolerance
    }

    /// Finds the label that differs most.
    fn largest(labels: &[String], found: &[f32], golden: &Golden) -> Option<Self> {
        let deviations = labels.iter().zip(found).zip(&golden.scores).map(|((label, found), stored)| Self {
            label: label.clone(),
            found: *found,
            stored: *stored,
            tolerance: golden.tolerance,
        });
        // In this order NaN is above every number.
        deviations.max_by(|a, b| a.size().total_cmp(&b.size()))
    }
}

impl std::fmt::Display for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Proved(deviation) => {
                write!(f, "its golden image agrees within {:.6} of {}", deviation.size(), deviation.tolerance)
            }
            Self::Unproved => write!(f, "unproved, the package has no golden.json"),
        }
    }
}

/// Why a detector is not to be trusted here.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// The scores are not those of the package's maker.
    #[error(
        "detector {detector} on {device}: its golden image scores {} for \"{}\", but golden.json says {} (tolerance {})\n  hint: fetch or convert the package anew, which replaces model and golden.json together; if it is whole, try --device cpu: where that agrees, the device or its driver computes wrongly",
        .deviation.found, .deviation.label, .deviation.stored, .deviation.tolerance
    )]
    Deviates {
        /// The detector.
        detector: String,
        /// Where it ran, for people.
        device: String,
        /// Which figure, and how far off.
        deviation: Deviation,
    },
    /// There are no scores to compare.
    #[error(
        "detector {detector} on {device}: its golden image cannot be screened: {why}\n  hint: replace it, and golden.json with it, by converting the package anew"
    )]
    Unscreened {
        /// The detector.
        detector: String,
        /// Where it ran, for people.
        device: String,
        /// What the decoder or the session said.
        why: String,
    },
}

/// Runs a detector's golden image, if it has one, through the decoders and the detector's own session.
pub(super) async fn prove(engine: &Engine, decoders: &Pool) -> Result<Proof, ProofError> {
    let detector = &engine.detector;
    let Some(golden) = &detector.golden else { return Ok(Proof::Unproved) };
    let unscreened =
        |why: String| ProofError::Unscreened { detector: detector.name.clone(), device: engine.place.clone(), why };

    let decoded = decoders
        .decode_in(DecodeMode::Exact, Lane::Live, golden.image.clone(), Arc::from([detector.geometry]))
        .await
        .map_err(|e| unscreened(e.to_string()))?;
    // Of several frames the most severe would count, and severity is the policy's business.
    let [frame] = &decoded.frames[..] else {
        return Err(unscreened(format!("it has {} frames, and a still image is needed", decoded.seen.frames)));
    };
    let found = engine.score(Lane::Live, Arc::clone(&frame[0])).await.map_err(|e| unscreened(e.to_string()))?;
    let deviation = Deviation::largest(&detector.labels, &found, golden)
        .ok_or_else(|| unscreened("the model gives no scores".into()))?;
    if deviation.is_within() {
        Ok(Proof::Proved(deviation))
    } else {
        Err(ProofError::Deviates { detector: detector.name.clone(), device: engine.place.clone(), deviation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn largest(found: [f32; 2], tolerance: f32) -> Deviation {
        let golden = Golden { image: bytes::Bytes::new(), scores: vec![0.25, 0.75], tolerance };
        Deviation::largest(&["real".into(), "fake".into()], &found, &golden).unwrap()
    }

    #[test]
    fn the_label_that_differs_most_decides() {
        let deviation = largest([0.26, 0.70], 0.02);
        assert_eq!((deviation.label.as_str(), deviation.is_within()), ("fake", false));
        assert!(largest([0.26, 0.74], 0.02).is_within());
    }

    #[test]
    fn a_score_that_is_not_a_number_proves_nothing() {
        for found in [[f32::NAN, 0.75], [0.25, f32::NAN], [-f32::NAN, 0.75]] {
            assert!(!largest(found, 0.49).is_within(), "{found:?}");
        }
    }
}
