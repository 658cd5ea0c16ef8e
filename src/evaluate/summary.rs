//! One subject's figures, as they are printed and drawn.

use super::findings::Findings;
use super::metrics::{Calibration, Curve, Reached, Scored, Threshold, recommend, share};
use super::subject::Subject;

/// Thresholds that are always shown.
const SWEEP: [f32; 13] = [0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99];

/// The false-positive rates that are wanted: of all negative images, the share that may be called positive by mistake.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wanted {
    /// For `review_at`; at least that of `flag_at`.
    pub review: f64,
    /// For `flag_at`.
    pub flag: f64,
}

/// A subject's figures.
#[derive(Debug, Clone)]
pub struct Summary<'a> {
    /// Whose.
    pub subject: &'a Subject,
    /// The table, a row a dataset.
    pub datasets: Vec<Row<'a>>,
    scored: &'a [Vec<Scored>],
    /// Over all datasets: accuracy, areas, thresholds.
    pub curve: Curve,
    /// Over all datasets: whether scores are probabilities.
    pub calibration: Calibration,
    /// From low to high.
    pub thresholds: Vec<(Threshold, Vec<Role>)>,
    /// The rates asked for.
    pub wanted: Wanted,
    /// The lowest threshold that keeps the rate wanted for review, where there is one.
    pub review_at: Option<f32>,
    /// The lowest threshold that keeps the rate wanted for flagging, where there is one.
    pub flag_at: Option<f32>,
}

/// A dataset under one subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'a> {
    /// Its name.
    pub name: &'a str,
    /// Those with scores, by what they are.
    pub images: Reached,
    /// Those called what they are.
    pub right: u64,
    /// Those without scores.
    pub unscored: u64,
}

impl Row<'_> {
    /// The share called what it is; `None` without an image.
    #[must_use]
    pub fn accuracy(&self) -> Option<f64> {
        share(self.right, self.images.images())
    }
}

/// Why a threshold is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The rule's, as configured.
    PolicyReview,
    /// The rule's, as configured.
    PolicyFlag,
    /// What the images recommend.
    RecommendedReview,
    /// What the images recommend.
    RecommendedFlag,
}

impl Role {
    /// In words.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PolicyReview => "policy's review_at",
            Self::PolicyFlag => "policy's flag_at",
            Self::RecommendedReview => "recommended review_at",
            Self::RecommendedFlag => "recommended flag_at",
        }
    }
}

impl<'a> Summary<'a> {
    /// Sums up what was found about the subject of this index.
    #[must_use]
    pub fn new(findings: &'a Findings, index: usize, wanted: Wanted) -> Self {
        let (subject, scored) = (&findings.subjects[index], &findings.scored[index]);
        let datasets = findings.datasets.iter().zip(scored).enumerate();
        let datasets = datasets.map(|(i, (name, scored))| row(name, scored, findings.unscored_in(i))).collect();
        let curve = Curve::new(scored.iter().flatten().copied());
        let (review_at, flag_at) = (recommend(&curve, wanted.review), recommend(&curve, wanted.flag));
        let roles = [
            (subject.thresholds.map(|(review_at, _)| review_at), Role::PolicyReview),
            (subject.thresholds.map(|(_, flag_at)| flag_at), Role::PolicyFlag),
            (review_at, Role::RecommendedReview),
            (flag_at, Role::RecommendedFlag),
        ];
        let mut at: Vec<f32> = SWEEP.into_iter().chain(roles.iter().filter_map(|(at, _)| *at)).collect();
        at.sort_by(f32::total_cmp);
        at.dedup();
        let roles_at = |at| roles.iter().filter(|(other, _)| *other == Some(at)).map(|(_, role)| *role).collect();
        let thresholds = at.into_iter().map(|at| (Threshold::new(&curve, at), roles_at(at))).collect();
        let calibration = Calibration::new(scored.iter().flatten().copied());
        Self { subject, datasets, scored, curve, calibration, thresholds, wanted, review_at, flag_at }
    }

    /// Every image with a score, dataset by dataset.
    pub fn scored(&self) -> impl Iterator<Item = Scored> + '_ {
        self.scored.iter().flatten().copied()
    }

    /// All datasets together.
    #[must_use]
    pub fn overall(&self) -> Row<'static> {
        let unscored = self.datasets.iter().map(|row| row.unscored).sum();
        Row { name: "all", images: self.curve.total(), right: self.curve.right(), unscored }
    }

    /// Why the recommendation is to be taken with care, or missing; `None` where nothing speaks against it.
    #[must_use]
    pub fn caution(&self) -> Option<String> {
        /// Fewer false alarms than these say little about a rate.
        const ENOUGH: f64 = 10.0;
        let negatives = self.curve.total().negatives;
        if negatives == 0 {
            return Some("no image is negative, so there are no false alarms to count".into());
        }
        let missing: Vec<_> = [("review_at", self.review_at), ("flag_at", self.flag_at)]
            .into_iter()
            .filter_map(|(name, at)| at.is_none().then_some(name))
            .collect();
        if !missing.is_empty() {
            return Some(format!(
                "no {} keeps the rate: too many negative images have the score 1",
                missing.join(" and no ")
            ));
        }
        #[expect(clippy::cast_precision_loss, reason = "counts of images stay far below 2^53")]
        let allowed = negatives as f64 * self.wanted.flag;
        (allowed < ENOUGH).then(|| {
            let rate = self.wanted.flag;
            format!(
                "of {negatives} negative images a rate of {rate} is {allowed:.1}; measure on more before relying on it"
            )
        })
    }
}

fn row<'a>(name: &'a str, scored: &[Scored], unscored: u64) -> Row<'a> {
    let count = |counts: fn(&Scored) -> bool| scored.iter().filter(|image| counts(image)).count() as u64;
    let images = Reached { positives: count(|image| image.positive), negatives: count(|image| !image.positive) };
    Row { name, images, right: count(|image| image.is_right()), unscored }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::evaluate::findings::{Mistake, Unscored};

    /// Two datasets of made-up scores, with one image that could not be read and one mistake that is worth showing.
    pub(crate) fn findings() -> Findings {
        let subject = Subject {
            detector: "synthetic-2.0".into(),
            labels: vec!["by human".into(), "by AI".into()],
            positive: "by AI".into(),
            thresholds: Some((0.5, 0.9)),
        };
        let mut findings = Findings::new([subject].into(), vec!["photos".into(), "faces <b>".into()], 3);
        for i in 0u8..200 {
            let score = f32::from(i) / 199.0;
            findings.scored[0][0].push(Scored { score: score * score * 0.8, positive: false });
            findings.scored[0][1].push(Scored { score: 1.0 - score * score * 0.75, positive: true });
        }
        let mistake = Mistake {
            dataset: 0,
            image: "photos/<script>alert(1)</script>.jpg".into(),
            score: 0.8,
            picture: Some("data:image/png;base64,AAAA".into()),
        };
        findings.worst[0].offer(Scored { score: 0.8, positive: false }, || mistake);
        let reason = "damaged JPEG: <i>cut short</i>".into();
        findings.unscored.push(Unscored { dataset: 1, image: "faces/7.jpg".into(), reason, images: 1 });
        findings
    }

    pub(crate) const WANTED: Wanted = Wanted { review: 0.05, flag: 0.01 };

    #[test]
    fn rows_add_up() {
        let findings = findings();
        let summary = Summary::new(&findings, 0, WANTED);
        let overall = summary.overall();
        assert_eq!(overall.images.images(), summary.datasets.iter().map(|row| row.images.images()).sum::<u64>());
        assert_eq!(overall.right, summary.datasets.iter().map(|row| row.right).sum::<u64>());
        assert_eq!((summary.datasets[0].unscored, summary.datasets[1].unscored, overall.unscored), (0, 1, 1));
    }

    #[test]
    fn every_threshold_with_a_role_is_in_the_table_once_and_in_order() {
        let findings = findings();
        let summary = Summary::new(&findings, 0, WANTED);
        let roles: Vec<Role> = summary.thresholds.iter().flat_map(|(_, roles)| roles.clone()).collect();
        assert_eq!(roles.len(), 4, "{roles:?}");
        assert!(summary.thresholds.windows(2).all(|pair| pair[0].0.at < pair[1].0.at));
        assert!(summary.review_at.unwrap() <= summary.flag_at.unwrap());
    }

    #[test]
    fn a_rate_that_few_images_carry_is_no_sound_one() {
        let findings = findings();
        let caution = |flag| Summary::new(&findings, 0, Wanted { review: 0.5, flag }).caution();
        assert!(caution(0.01).is_some_and(|words| words.starts_with("of 200 negative images a rate of 0.01 is 2.0")));
        assert_eq!(caution(0.05), None);
    }
}
