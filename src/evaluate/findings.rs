//! What an evaluation gathers: a few bytes an image and detector, and more only of the worst mistakes.

use std::sync::Arc;

use super::metrics::Scored;
use super::subject::Subject;

/// Everything found so far.
#[derive(Debug)]
pub struct Findings {
    /// Who is evaluated.
    pub subjects: Arc<[Subject]>,
    /// The datasets, in the order in which they were named first.
    pub datasets: Vec<String>,
    /// `[subject][dataset]`: the scores.
    pub scored: Vec<Vec<Vec<Scored>>>,
    /// `[subject]`: the mistakes worth looking at.
    pub worst: Vec<Worst>,
    /// Images without scores, in the order in which they came.
    pub unscored: Vec<Unscored>,
}

/// An image that could not be scored, or rows that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unscored {
    /// Index of the dataset.
    pub dataset: usize,
    /// Which image, or from which on.
    pub image: String,
    /// Why, in one line.
    pub reason: String,
    /// How many images that is: more than one where the rest of a file cannot be read.
    pub images: u64,
}

/// An image that was called what it is not.
#[derive(Debug, Clone, PartialEq)]
pub struct Mistake {
    /// Index of the dataset.
    pub dataset: usize,
    /// Which image.
    pub image: String,
    /// Probability of the positive class.
    pub score: f32,
    /// What the detector saw, as a `data:` URI.
    pub picture: Option<String>,
}

impl Findings {
    /// Nothing yet. `keep` mistakes of either kind are kept a subject.
    #[must_use]
    pub fn new(subjects: Arc<[Subject]>, datasets: Vec<String>, keep: usize) -> Self {
        let scored = vec![vec![Vec::new(); datasets.len()]; subjects.len()];
        let worst = subjects.iter().map(|_| Worst::new(keep)).collect();
        Self { subjects, datasets, scored, worst, unscored: Vec::new() }
    }

    /// Whether no image has a score.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.scored.iter().flatten().all(Vec::is_empty)
    }

    /// How many images of a dataset have no score.
    #[must_use]
    pub fn unscored_in(&self, dataset: usize) -> u64 {
        self.unscored.iter().filter(|found| found.dataset == dataset).map(|found| found.images).sum()
    }
}

/// The mistakes that are farthest off, the worst first; of equals, those that came first.
#[derive(Debug)]
pub struct Worst {
    keep: usize,
    /// Negative images of the highest scores.
    pub false_alarms: Vec<Mistake>,
    /// Positive images of the lowest scores.
    pub missed: Vec<Mistake>,
}

impl Worst {
    fn new(keep: usize) -> Self {
        Self { keep, false_alarms: Vec::new(), missed: Vec::new() }
    }

    /// Takes an image if it is a mistake, and among the worst so far; only then it is made.
    pub fn offer(&mut self, image: Scored, make: impl FnOnce() -> Mistake) {
        if image.is_right() {
            return;
        }
        let off = |score: f32| if image.positive { 1.0 - score } else { score };
        let list = if image.positive { &mut self.missed } else { &mut self.false_alarms };
        let place = list.partition_point(|other| off(other.score) >= off(image.score));
        if place < self.keep {
            list.insert(place, make());
            list.truncate(self.keep);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_worst_mistakes_are_kept_and_only_they_are_made() {
        let mut worst = Worst::new(2);
        let mut made = 0;
        let offered = [
            (0.6, false),
            (0.9, false),
            (0.4, false),
            (0.9, false),
            (0.7, false),
            (0.3, true),
            (0.1, true),
            (0.8, true),
        ];
        for (i, (score, positive)) in offered.into_iter().enumerate() {
            worst.offer(Scored { score, positive }, || {
                made += 1;
                Mistake { dataset: 0, image: i.to_string(), score, picture: None }
            });
        }
        let names = |list: &[Mistake]| list.iter().map(|mistake| mistake.image.clone()).collect::<Vec<_>>();
        assert_eq!(
            (names(&worst.false_alarms), names(&worst.missed)),
            (vec!["1".into(), "3".into()], vec!["6".into(), "5".into()])
        );
        assert_eq!(made, 5, "what is right or not bad enough is never made");
    }
}
