//! Facts: what was found out about an image, whatever a policy makes of it.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::hash::ViewHash;

/// Detector name to label to probability in `0..=1`.
pub type Scores = BTreeMap<String, BTreeMap<String, f32>>;

/// Detector name to label to the view with the highest score. Empty if the image has a single view.
pub type Views = BTreeMap<String, BTreeMap<String, View>>;

/// One of the pictures that a file may show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// The number of the frame, counted from 0.
    pub frame: u32,
    /// What is behind a transparent image.
    #[serde(default)]
    pub background: Background,
    /// EXIF's code, 1 to 8, by which the image was turned.
    #[serde(default = "upright")]
    pub orientation: u8,
}

/// What is behind a transparent image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Background {
    #[default]
    White,
    Black,
}

/// EXIF's code for an image that is not turned.
const fn upright() -> u8 {
    1
}

impl View {
    /// A frame as it is, over white.
    #[must_use]
    pub fn of_frame(frame: u32) -> Self {
        Self { frame, background: Background::White, orientation: upright() }
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frame {}", self.frame)?;
        if self.background == Background::Black {
            write!(f, " over black")?;
        }
        if self.orientation != upright() {
            write!(f, ", turned by EXIF's code {}", self.orientation)?;
        }
        Ok(())
    }
}

/// What was found out about an image. Any policy may judge facts, also years later.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// Of each label the highest score of all views.
    pub scores: Scores,
    /// `None` for an animation whose scores are those of one frame only, as earlier releases stored them.
    pub views: Option<Views>,
    /// What is wrong with a file that still shows something; empty where nothing is. `None` where it was not looked for, as
    /// in earlier releases.
    pub damage: Option<String>,
    /// The hash of each view. `None` where none were made, as in earlier releases.
    pub hashes: Option<Vec<ViewHash>>,
}

impl Facts {
    /// Takes the highest score of each label. A score that is no probability counts as higher than all others: it must not
    /// be hidden.
    #[must_use]
    pub fn of_views(views: impl IntoIterator<Item = (View, Scores)>) -> Self {
        let (mut highest, mut best_views) = (Scores::new(), Views::new());
        let mut count = 0;
        for (view, scores) in views {
            count += 1;
            for (detector, labels) in scores {
                let (known, known_views) =
                    (highest.entry(detector.clone()).or_default(), best_views.entry(detector).or_default());
                for (label, score) in labels {
                    if known.get(&label).is_none_or(|before| is_higher(score, *before)) {
                        known.insert(label.clone(), score);
                        known_views.insert(label, view);
                    }
                }
            }
        }
        if count < 2 {
            best_views.clear();
        }
        Self { scores: highest, views: Some(best_views), damage: Some(String::new()), hashes: None }
    }

    /// The facts of an image with a single view.
    #[must_use]
    pub fn of_one_view(scores: Scores) -> Self {
        Self { scores, views: Some(Views::new()), damage: Some(String::new()), hashes: None }
    }

    /// The highest score for a label.
    #[must_use]
    pub fn score(&self, detector: &str, label: &str) -> Option<f32> {
        self.scores.get(detector)?.get(label).copied()
    }

    /// The view that has the highest score for a label, if the image has several.
    #[must_use]
    pub fn view(&self, detector: &str, label: &str) -> Option<View> {
        self.views.as_ref()?.get(detector)?.get(label).copied()
    }

    /// What is wrong with the file, if anything is.
    #[must_use]
    pub fn damage(&self) -> Option<&str> {
        self.damage.as_deref().filter(|damage| !damage.is_empty())
    }

    /// Why the facts cannot be judged: the first score that is no probability, in one line.
    #[must_use]
    pub fn why_invalid(&self) -> Option<String> {
        self.scores.iter().find_map(|(detector, labels)| {
            let (label, score) = labels.iter().find(|(_, score)| !is_probability(**score))?;
            Some(format!("{detector} gave {score} for \"{label}\", which is not a probability"))
        })
    }
}

fn is_probability(score: f32) -> bool {
    (0.0..=1.0).contains(&score)
}

fn is_higher(score: f32, before: f32) -> bool {
    is_probability(before) && (score > before || !is_probability(score))
}

/// A probability as JSON, in the shortest decimal form that parses to the same float32. Converted to a double, 0.1 would be
/// written as 0.10000000149011612.
#[must_use]
pub fn exact(p: f32) -> serde_json::Value {
    serde_json::from_str(&p.to_string()).unwrap_or(serde_json::Value::Null)
}

/// All scores as JSON, each in the form of [`exact`].
#[must_use]
pub fn exact_scores(scores: &Scores) -> serde_json::Value {
    let labels = |labels: &BTreeMap<String, f32>| {
        labels.iter().map(|(label, p)| (label.clone(), exact(*p))).collect::<serde_json::Map<_, _>>()
    };
    scores
        .iter()
        .map(|(name, by_label)| (name.clone(), serde_json::Value::from(labels(by_label))))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(ai: f32, nude: f32) -> Scores {
        Scores::from([("d".to_owned(), [("ai".to_owned(), ai), ("nude".to_owned(), nude)].into())])
    }

    #[test]
    fn of_several_views_each_label_has_its_highest_score_and_the_view_of_it() {
        let views = [(0.1, 0.9), (0.7, 0.2), (0.7, 0.1)];
        let facts = Facts::of_views((0..).map(View::of_frame).zip(views.map(|(ai, nude)| scores(ai, nude))));
        assert_eq!(facts.scores, scores(0.7, 0.9));
        assert_eq!(facts.view("d", "ai"), Some(View::of_frame(1)), "the first of equals");
        assert_eq!(facts.view("d", "nude"), Some(View::of_frame(0)));
    }

    #[test]
    fn a_single_view_is_not_named() {
        let facts = Facts::of_views([(View::of_frame(0), scores(0.5, 0.5))]);
        assert_eq!(facts, Facts::of_one_view(scores(0.5, 0.5)));
    }

    #[test]
    fn a_score_that_is_no_probability_is_never_hidden_by_another_view() {
        for bad in [f32::NAN, f32::INFINITY, -0.1, 1.1] {
            for order in [[bad, 1.0], [1.0, bad]] {
                let facts = Facts::of_views(order.map(|score| (View::of_frame(0), scores(score, 0.0))));
                assert!(facts.why_invalid().is_some(), "{order:?}");
            }
        }
        assert_eq!(Facts::of_one_view(scores(0.0, 1.0)).why_invalid(), None);
    }

    #[test]
    fn a_float32_keeps_its_own_digits() {
        assert_eq!(exact_scores(&scores(0.1, 0.25)).to_string(), r#"{"d":{"ai":0.1,"nude":0.25}}"#);
    }
}
