//! Scores → outcome. Pure: the same scores under the same policy always get the same judgement.

use std::cmp::Ordering;

use super::{Policy, Rule};
use crate::job::{Judgement, Outcome, Scores};

/// Judges one frame's scores. The strongest outcome wins, among equals the highest score.
///
/// Scores that are not probabilities end as [`Outcome::Failed`]. Where a rule finds no score to judge, and no other rule is
/// reached, the outcome is [`Outcome::Rejected`]. Neither ever passes.
#[must_use]
pub fn judge(policy: &Policy, scores: &Scores) -> Judgement {
    for (detector, labels) in scores {
        if let Some((label, score)) = labels.iter().find(|(_, score)| !(0.0..=1.0).contains(*score)) {
            let reason = format!("{detector} gave {score} for \"{label}\", which is not a probability");
            return Judgement::unscored(Outcome::Failed, reason);
        }
    }
    let judged = policy.rules.iter().filter_map(|rule| {
        let score = *scores.get(&rule.detector)?.get(&rule.label)?;
        Some((apply(rule, score), score, rule))
    });
    let strongest = judged.max_by(|a, b| (a.0, a.1).partial_cmp(&(b.0, b.1)).unwrap_or(Ordering::Equal));
    match (strongest, missing_detector(policy, scores)) {
        (None, None) => Judgement::unscored(Outcome::Rejected, "the policy has no rule"),
        (None | Some((Outcome::Passed, ..)), Some(detector)) => {
            let reason = format!("there are no scores by the detector \"{detector}\", which the policy judges by");
            Judgement::unscored(Outcome::Rejected, reason)
        }
        (Some((outcome, score, rule)), _) => Judgement {
            outcome,
            reason: reason(outcome, score, rule),
            label: Some(rule.label.clone()),
            score: Some(score),
        },
    }
}

/// The first detector whose score a rule needs and `scores` lack. Without it the policy cannot say that an image passes.
#[must_use]
pub fn missing_detector<'p>(policy: &'p Policy, scores: &Scores) -> Option<&'p str> {
    let has_score = |rule: &Rule| scores.get(&rule.detector).is_some_and(|labels| labels.contains_key(&rule.label));
    policy.rules.iter().find(|rule| !has_score(rule)).map(|rule| rule.detector.as_str())
}

/// Judges every frame and returns the index and judgement of the most severe one. Without a frame the outcome is
/// [`Outcome::Failed`].
#[must_use]
pub fn most_severe(policy: &Policy, frames: &[Scores]) -> (usize, Judgement) {
    let judged = frames.iter().map(|scores| judge(policy, scores)).enumerate();
    // `max_by` returns the last of equals. Reversed, that is the first frame.
    let worst = judged.rev().max_by(|(_, a), (_, b)| severity(a).partial_cmp(&severity(b)).unwrap_or(Ordering::Equal));
    worst.unwrap_or_else(|| (0, Judgement::unscored(Outcome::Failed, "no frame was scored")))
}

/// A failure outranks everything: a frame that could not be judged must not be hidden by one that passed.
fn severity(judgement: &Judgement) -> (Outcome, f32) {
    (judgement.outcome, judgement.score.unwrap_or(0.0))
}

fn apply(rule: &Rule, score: f32) -> Outcome {
    if score >= rule.flag_at {
        Outcome::Flagged
    } else if score >= rule.review_at {
        Outcome::Review
    } else {
        Outcome::Passed
    }
}

fn reason(outcome: Outcome, score: f32, rule: &Rule) -> Option<String> {
    let (threshold, name) = match outcome {
        Outcome::Flagged => (rule.flag_at, "flag_at"),
        Outcome::Review => (rule.review_at, "review_at"),
        _ => return None,
    };
    Some(format!("{} says \"{}\" {score:.4}, {name} is {threshold}", rule.detector, rule.label))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::job::PolicyRef;

    fn policy(rules: Vec<Rule>) -> Policy {
        Policy { rules, reference: PolicyRef { name: "p".into(), sha256: String::new() }, is_default: false }
    }

    fn scores(entries: &[(&str, &str, f32)]) -> Scores {
        let mut scores = Scores::new();
        for (detector, label, p) in entries {
            scores.entry((*detector).into()).or_default().insert((*label).into(), *p);
        }
        scores
    }

    fn rule(detector: &str, label: &str, review_at: f32, flag_at: f32) -> Rule {
        Rule { detector: detector.into(), label: label.into(), review_at, flag_at }
    }

    #[test]
    fn a_threshold_is_reached_by_being_equal() {
        let policy = policy(vec![rule("d", "ai", 0.5, 0.9)]);
        for (p, outcome) in [
            (0.0, Outcome::Passed),
            (0.499_999, Outcome::Passed),
            (0.5, Outcome::Review),
            (0.9, Outcome::Flagged),
            (1.0, Outcome::Flagged),
        ] {
            assert_eq!(judge(&policy, &scores(&[("d", "ai", p)])).outcome, outcome, "{p}");
        }
    }

    #[test]
    fn the_strongest_outcome_wins_over_the_highest_score() {
        let policy = policy(vec![rule("d", "ai", 0.5, 0.99), rule("d", "nude", 0.1, 0.2)]);
        let judgement = judge(&policy, &scores(&[("d", "ai", 0.9), ("d", "nude", 0.3)]));
        assert_eq!((judgement.outcome, judgement.label.as_deref()), (Outcome::Flagged, Some("nude")));
        assert_eq!(judgement.reason.as_deref(), Some("d says \"nude\" 0.3000, flag_at is 0.2"));
    }

    #[test]
    fn the_most_severe_frame_counts_and_among_equals_the_first() {
        let policy = policy(vec![rule("d", "ai", 0.5, 0.9)]);
        let frames: Vec<_> = [0.1, 0.95, 0.6, 0.95].iter().map(|p| scores(&[("d", "ai", *p)])).collect();
        assert_eq!(most_severe(&policy, &frames).0, 1);
    }

    #[test]
    fn scores_that_no_rule_judges_never_pass() {
        let policy = policy(vec![rule("d", "ai", 0.5, 0.9)]);
        assert_eq!(judge(&policy, &scores(&[("shadow", "ai", 0.0)])).outcome, Outcome::Rejected);
        assert_eq!(judge(&policy, &Scores::new()).outcome, Outcome::Rejected);
    }

    #[test]
    fn a_missing_score_never_passes_and_hides_no_other_rule() {
        let policy = policy(vec![rule("d", "ai", 0.5, 0.9), rule("e", "nude", 0.5, 0.9)]);
        let only_d = |p: f32| judge(&policy, &scores(&[("d", "ai", p)]));
        assert_eq!(only_d(0.1).outcome, Outcome::Rejected);
        assert!(only_d(0.1).reason.unwrap().contains("\"e\""));
        assert_eq!((only_d(0.6).outcome, only_d(0.95).outcome), (Outcome::Review, Outcome::Flagged));
        assert_eq!(missing_detector(&policy, &scores(&[("d", "ai", 0.1)])), Some("e"));
        assert_eq!(missing_detector(&policy, &scores(&[("d", "ai", 0.1), ("e", "other", 0.1)])), Some("e"));
        assert_eq!(missing_detector(&policy, &scores(&[("d", "ai", 0.1), ("e", "nude", 0.1)])), None);
    }

    fn thresholds() -> impl Strategy<Value = (f32, f32)> {
        (0.0f32..=1.0, 0.0f32..=1.0).prop_map(|(a, b)| (a.min(b), a.max(b)))
    }

    proptest! {
        #[test]
        fn raising_a_score_never_softens_an_outcome(
            rules in proptest::collection::vec(thresholds(), 1..4),
            before in proptest::collection::vec(0.0f32..=1.0, 4),
            which in 0usize..4,
            raise in 0.0f32..=1.0,
        ) {
            let names = ["a", "b", "c", "d"];
            let rules = rules.iter().enumerate().map(|(i, (review, flag))| rule("x", names[i], *review, *flag)).collect();
            let policy = policy(rules);
            let entries = |p: &[f32]| scores(&names.iter().zip(p).map(|(label, p)| ("x", *label, *p)).collect::<Vec<_>>());
            let mut after = before.clone();
            after[which] = (after[which] + raise).min(1.0);
            prop_assert!(judge(&policy, &entries(&after)).outcome >= judge(&policy, &entries(&before)).outcome);
        }

        #[test]
        fn a_score_that_is_not_a_probability_never_passes(
            (review, flag) in thresholds(),
            bad in prop_oneof![Just(f32::NAN), Just(f32::INFINITY), Just(f32::NEG_INFINITY), Just(-0.1f32), Just(1.1f32)],
            in_rule in any::<bool>(),
        ) {
            let policy = policy(vec![rule("x", "a", review, flag)]);
            let (a, b) = if in_rule { (bad, 0.0) } else { (0.0, bad) };
            let one = scores(&[("x", "a", a), ("x", "b", b)]);
            prop_assert_eq!(judge(&policy, &one).outcome, Outcome::Failed);
            prop_assert_eq!(most_severe(&policy, &[scores(&[("x", "a", 1.0)]), one]).1.outcome, Outcome::Failed);
        }
    }
}
