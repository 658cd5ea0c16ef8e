//! Facts → outcome and findings. Pure: the same facts under the same policy always get the same judgement.

use std::cmp::Ordering;

use super::{Policy, Rule};
use crate::job::{Facts, Finding, FindingOutcome, FindingSource, Judgement, Outcome, rule_text};

/// Judges an image. Every rule that is reached makes a finding, and the strongest finding decides.
///
/// Scores that are not probabilities end as [`Outcome::Failed`]. Where a rule finds no score to judge, and no other rule
/// asks for review or flags, the outcome is [`Outcome::Rejected`]. Neither ever passes.
#[must_use]
pub fn judge(policy: &Policy, facts: &Facts) -> Judgement {
    if let Some(reason) = facts.why_invalid() {
        return Judgement::unscored(Outcome::Failed, reason);
    }
    if policy.rules.is_empty() {
        return Judgement::unscored(Outcome::Rejected, "the policy has no rule");
    }
    let mut findings: Vec<Finding> = policy.rules.iter().filter_map(|rule| find(rule, facts)).collect();
    // The sort is stable, so that among equals the canonical order of the rules decides.
    findings.sort_by(|a, b| b.by_strength(a));
    let outcome = findings.first().map_or(Outcome::Passed, |strongest| strongest.outcome.outcome());
    if outcome == Outcome::Passed
        && let Some(detector) = missing_detector(policy, facts)
    {
        let reason = format!("there are no scores by the detector \"{detector}\", which the policy judges by");
        return Judgement::unscored(Outcome::Rejected, reason);
    }
    match findings.first() {
        Some(strongest) => Judgement {
            outcome,
            reason: Some(reason(strongest)),
            label: strongest.label.clone(),
            score: strongest.score,
            findings,
        },
        None => {
            let closest =
                policy.rules.iter().filter_map(|rule| Some((facts.score(&rule.detector, &rule.label)?, rule)));
            let closest = closest.max_by(|a, b| a.0.partial_cmp(&b.0).unwrap_or(Ordering::Equal));
            Judgement {
                outcome,
                reason: None,
                label: closest.map(|(_, rule)| rule.label.clone()),
                score: closest.map(|(score, _)| score),
                findings,
            }
        }
    }
}

/// The first detector whose score a rule needs and the facts lack. Without it the policy cannot say that an image passes.
#[must_use]
pub fn missing_detector<'p>(policy: &'p Policy, facts: &Facts) -> Option<&'p str> {
    let is_missing = |rule: &&Rule| facts.score(&rule.detector, &rule.label).is_none();
    policy.rules.iter().find(is_missing).map(|rule| rule.detector.as_str())
}

/// The finding of a rule, if the image reaches one of its thresholds.
fn find(rule: &Rule, facts: &Facts) -> Option<Finding> {
    let score = facts.score(&rule.detector, &rule.label)?;
    let (outcome, threshold) = rule.thresholds.reached(score)?;
    Some(Finding {
        rule: rule.name.clone(),
        category: rule.category.clone(),
        severity: rule.severity,
        outcome,
        source: FindingSource::Detector,
        detector: Some(rule.detector.clone()),
        label: Some(rule.label.clone()),
        score: Some(score),
        threshold: Some(threshold),
        view: facts.view(&rule.detector, &rule.label),
    })
}

fn reason(finding: &Finding) -> String {
    let name = match finding.outcome {
        FindingOutcome::Noted => "note_at",
        FindingOutcome::Review => "review_at",
        FindingOutcome::Flagged => "flag_at",
    };
    let [detector, label] = [&finding.detector, &finding.label].map(|text| text.as_deref().unwrap_or_default());
    let says = rule_text(None, detector, label);
    let [score, threshold] = [finding.score, finding.threshold].map(Option::unwrap_or_default);
    format!("{says} {score:.4}, {name} is {threshold}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::job::{PolicyRef, Scores, View};
    use crate::policy::Thresholds;

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

    fn facts(entries: &[(&str, &str, f32)]) -> Facts {
        Facts::of_one_view(scores(entries))
    }

    fn rule(detector: &str, label: &str, review_at: f32, flag_at: f32) -> Rule {
        Rule::new(detector, label, Thresholds { note_at: None, review_at: Some(review_at), flag_at: Some(flag_at) })
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
            assert_eq!(judge(&policy, &facts(&[("d", "ai", p)])).outcome, outcome, "{p}");
        }
    }

    #[test]
    fn the_strongest_outcome_wins_over_the_highest_score_and_every_rule_that_is_reached_is_found() {
        let policy = policy(vec![rule("d", "ai", 0.5, 0.99), rule("d", "gore", 0.5, 0.9), rule("d", "nude", 0.1, 0.2)]);
        let judgement = judge(&policy, &facts(&[("d", "ai", 0.9), ("d", "gore", 0.4), ("d", "nude", 0.3)]));
        assert_eq!((judgement.outcome, judgement.label.as_deref()), (Outcome::Flagged, Some("nude")));
        assert_eq!(judgement.reason.as_deref(), Some("d says \"nude\" 0.3000, flag_at is 0.2"));
        let found: Vec<_> = judgement.findings.iter().map(|f| (f.outcome, f.label.as_deref().unwrap())).collect();
        assert_eq!(found, [(FindingOutcome::Flagged, "nude"), (FindingOutcome::Review, "ai")]);
    }

    #[test]
    fn among_equal_outcomes_the_severity_decides_and_then_the_score() {
        let severe = |severity: u8, rule: Rule| Rule { severity: Some(severity), ..rule };
        let rules = vec![
            rule("d", "a", 0.5, 0.9),
            severe(2, rule("d", "b", 0.5, 0.9)),
            severe(4, rule("d", "c", 0.5, 0.9)),
            severe(2, rule("d", "e", 0.5, 0.9)),
        ];
        let all = [("d", "a", 1.0), ("d", "b", 0.91), ("d", "c", 0.9), ("d", "e", 0.92)];
        let judgement = judge(&policy(rules), &facts(&all));
        let labels: Vec<_> = judgement.findings.iter().filter_map(|f| f.label.as_deref()).collect();
        assert_eq!(labels, ["c", "e", "b", "a"]);
        assert_eq!(judgement.label.as_deref(), Some("c"));
    }

    #[test]
    fn a_note_leaves_the_outcome_passed_and_is_the_reason() {
        let noting = Thresholds { note_at: Some(0.3), review_at: None, flag_at: Some(0.9) };
        let policy = policy(vec![Rule::new("d", "ai", noting)]);
        let noted = judge(&policy, &facts(&[("d", "ai", 0.8)]));
        assert_eq!(noted.outcome, Outcome::Passed);
        assert_eq!(noted.reason.as_deref(), Some("d says \"ai\" 0.8000, note_at is 0.3"));
        assert_eq!(noted.findings[0].outcome, FindingOutcome::Noted);
        assert!(judge(&policy, &facts(&[("d", "ai", 0.2)])).findings.is_empty());
        assert_eq!(judge(&policy, &facts(&[("d", "ai", 0.9)])).outcome, Outcome::Flagged);
    }

    #[test]
    fn a_finding_names_the_view_with_the_highest_score() {
        let policy = policy(vec![rule("d", "ai", 0.5, 0.9), rule("d", "nude", 0.5, 0.9)]);
        let frames = [("ai", 0.95, "nude", 0.1), ("ai", 0.1, "nude", 0.6)];
        let views = frames.map(|(a, p, b, q)| scores(&[("d", a, p), ("d", b, q)]));
        let facts = Facts::of_views([0, 4].map(|frame| View { frame }).into_iter().zip(views));
        let found: Vec<_> = judge(&policy, &facts).findings.iter().map(|f| (f.label.clone(), f.view)).collect();
        assert_eq!(
            found,
            [(Some("ai".into()), Some(View { frame: 0 })), (Some("nude".into()), Some(View { frame: 4 }))]
        );
    }

    #[test]
    fn scores_that_no_rule_judges_never_pass() {
        let one = policy(vec![rule("d", "ai", 0.5, 0.9)]);
        assert_eq!(judge(&one, &facts(&[("shadow", "ai", 0.0)])).outcome, Outcome::Rejected);
        assert_eq!(judge(&one, &facts(&[])).outcome, Outcome::Rejected);
        assert_eq!(judge(&policy(Vec::new()), &facts(&[("d", "ai", 0.0)])).outcome, Outcome::Rejected);
    }

    #[test]
    fn a_missing_score_never_passes_and_hides_no_other_rule() {
        let noting = Thresholds { note_at: Some(0.2), review_at: Some(0.5), flag_at: Some(0.9) };
        let policy = policy(vec![Rule::new("d", "ai", noting), rule("e", "nude", 0.5, 0.9)]);
        let only_d = |p: f32| judge(&policy, &facts(&[("d", "ai", p)]));
        assert_eq!(only_d(0.1).outcome, Outcome::Rejected);
        assert!(only_d(0.1).reason.unwrap().contains("\"e\""));
        assert_eq!(only_d(0.3).outcome, Outcome::Rejected, "a note does not say that the image passes");
        assert_eq!((only_d(0.6).outcome, only_d(0.95).outcome), (Outcome::Review, Outcome::Flagged));
        assert_eq!(missing_detector(&policy, &facts(&[("d", "ai", 0.1)])), Some("e"));
        assert_eq!(missing_detector(&policy, &facts(&[("d", "ai", 0.1), ("e", "other", 0.1)])), Some("e"));
        assert_eq!(missing_detector(&policy, &facts(&[("d", "ai", 0.1), ("e", "nude", 0.1)])), None);
    }

    const LABELS: [&str; 4] = ["a", "b", "c", "d"];

    fn thresholds() -> impl Strategy<Value = Thresholds> {
        let some = proptest::option::of(0.0f32..=1.0);
        (some.clone(), some.clone(), some).prop_map(|(note, review, flag)| {
            let mut given: Vec<f32> = [note, review, flag].into_iter().flatten().collect();
            given.sort_by(f32::total_cmp);
            let mut given = given.into_iter();
            let mut next = |before: Option<f32>| before.and_then(|_| given.next());
            Thresholds { note_at: next(note), review_at: next(review), flag_at: next(flag) }
        })
    }

    fn rules() -> impl Strategy<Value = Vec<Rule>> {
        let one = (0..LABELS.len(), thresholds(), proptest::option::of(1u8..=5), proptest::option::of("[a-c]"));
        let one = one.prop_map(|(label, thresholds, severity, category)| Rule {
            severity,
            category,
            ..Rule::new("x", LABELS[label], thresholds)
        });
        proptest::collection::vec(one, 1..6)
    }

    fn facts_of(scores: &[f32]) -> Facts {
        facts(&LABELS.iter().zip(scores).map(|(label, p)| ("x", *label, *p)).collect::<Vec<_>>())
    }

    proptest! {
        #[test]
        fn raising_a_score_never_softens_an_outcome_nor_removes_a_finding(
            rules in rules(),
            before in proptest::collection::vec(0.0f32..=1.0, 4),
            which in 0usize..4,
            raise in 0.0f32..=1.0,
        ) {
            let policy = policy(rules);
            let mut after = before.clone();
            after[which] = (after[which] + raise).min(1.0);
            let [before, after] = [before, after].map(|scores| judge(&policy, &facts_of(&scores)));
            prop_assert!(after.outcome >= before.outcome);
            prop_assert!(after.findings.len() >= before.findings.len());
        }

        #[test]
        fn the_order_of_rules_decides_nothing(
            rules in rules(),
            scores in proptest::collection::vec(0.0f32..=1.0, 4),
            rotation in 0usize..6,
        ) {
            let mut turned = rules.clone();
            turned.rotate_left(rotation % rules.len());
            let [one, other] = [rules, turned].map(|rules| policy(super::super::in_canonical_order(rules)));
            prop_assert_eq!(judge(&one, &facts_of(&scores)), judge(&other, &facts_of(&scores)));
        }

        #[test]
        fn a_missing_fact_never_passes(
            rules in rules(),
            scores in proptest::collection::vec(0.0f32..=1.0, 4),
            missing in 0usize..4,
        ) {
            let policy = policy(rules);
            let mut facts = facts_of(&scores);
            facts.scores.get_mut("x").unwrap().remove(LABELS[missing]);
            let is_needed = policy.rules.iter().any(|rule| rule.label == LABELS[missing]);
            let judgement = judge(&policy, &facts);
            prop_assert!(!is_needed || !judgement.allows());
            // What the other rules find stays as it was.
            let complete = judge(&policy, &facts_of(&scores));
            prop_assert!(is_needed || judgement == complete);
        }

        #[test]
        fn a_score_that_is_not_a_probability_never_passes(
            thresholds in thresholds(),
            bad in prop_oneof![Just(f32::NAN), Just(f32::INFINITY), Just(f32::NEG_INFINITY), Just(-0.1f32), Just(1.1f32)],
            in_rule in any::<bool>(),
        ) {
            let policy = policy(vec![Rule::new("x", "a", thresholds)]);
            let (a, b) = if in_rule { (bad, 0.0) } else { (0.0, bad) };
            let one = scores(&[("x", "a", a), ("x", "b", b)]);
            prop_assert_eq!(judge(&policy, &Facts::of_one_view(one.clone())).outcome, Outcome::Failed);
            let views = [scores(&[("x", "a", 1.0), ("x", "b", 1.0)]), one].into_iter();
            let several = Facts::of_views(views.map(|scores| (View { frame: 0 }, scores)));
            prop_assert_eq!(judge(&policy, &several).outcome, Outcome::Failed);
        }
    }
}
