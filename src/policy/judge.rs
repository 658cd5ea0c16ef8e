//! Facts → outcome and findings. Pure: the same facts under the same policy always get the same judgement.

use std::cmp::{Ordering, Reverse};
use std::fmt;

use super::{BankRule, DamagedOutcome, MIN_FLAG_QUALITY, Policy, Rule, RuleSubject, ScoreRule, decided};
use crate::job::{
    BankAnswer, BankAnswers, BankKind, BankMatch, DAMAGE, Facts, Finding, FindingOutcome, FindingSource, Judgement,
    MatchedBy, Outcome, Scores, bank_rule_text, rule_text,
};

/// Judges an image. Every rule that is reached makes a finding, and the strongest finding decides. A damaged file never
/// passes: damage is a finding too. `answers` are those of the banks that the policy names.
///
/// Scores that are not probabilities end as [`Outcome::Failed`]. Where a rule lacks a fact, or it is not known whether the
/// file is damaged, and no rule asks for review or flags, the outcome is [`Outcome::Rejected`]. Neither ever passes.
#[must_use]
pub fn judge(policy: &Policy, facts: &Facts, answers: &BankAnswers) -> Judgement {
    judge_decided(policy, facts, answers, &[])
}

/// As [`judge`], for an image about which people have decided. `earlier` are the findings of its last judgement, whose answers
/// stand: see [`decided`].
#[must_use]
pub fn judge_decided(policy: &Policy, facts: &Facts, answers: &BankAnswers, earlier: &[Finding]) -> Judgement {
    if let Some(reason) = facts.why_invalid() {
        return Judgement::unscored(Outcome::Failed, reason);
    }
    if policy.rules.is_empty() {
        return Judgement::unscored(Outcome::Rejected, "the policy has no rule");
    }
    let mut findings: Vec<Finding> = policy.rules.iter().filter_map(|rule| finding(rule, facts, answers)).collect();
    findings.extend(facts.damage().and_then(|_| damage_finding(policy.damaged)));
    let allowed_by = allow(&mut findings, policy, answers);
    decided::keep_answers(&mut findings, earlier);
    restrict(&mut findings, answers);
    decided::strongest_first(&mut findings);
    let outcome = findings.first().map_or(Outcome::Passed, |strongest| strongest.outcome.outcome());
    if outcome == Outcome::Passed
        && let Some(missing) = missing_fact(policy, facts, answers)
    {
        return Judgement::unscored(Outcome::Rejected, missing.to_string());
    }
    if outcome == Outcome::Passed && facts.damage.is_none() {
        return Judgement::unscored(Outcome::Rejected, "it is not known whether the file is damaged");
    }
    if let Some(damage) = facts.damage()
        && policy.damaged == DamagedOutcome::Undecodable
        && outcome != Outcome::Flagged
        && !decided::answers_damage(earlier)
        // Such a finding must not be lost.
        && !findings.iter().any(|finding| finding.restricted)
    {
        return Judgement::unscored(Outcome::Undecodable, damage_reason(damage, policy.damaged));
    }
    match findings.first() {
        Some(strongest) => Judgement {
            outcome,
            reason: Some(match facts.damage().filter(|_| strongest.source == FindingSource::Damage) {
                Some(damage) => damage_reason(damage, policy.damaged),
                None => reason(strongest),
            }),
            label: strongest.label.clone(),
            score: strongest.score,
            findings,
        },
        None => {
            let scored = policy.rules.iter().filter_map(Rule::score);
            let closest = scored.filter_map(|rule| Some((facts.score(&rule.detector, &rule.label)?, rule)));
            let closest = closest.max_by(|a, b| a.0.partial_cmp(&b.0).unwrap_or(Ordering::Equal));
            Judgement {
                outcome,
                reason: allowed_by,
                label: closest.map(|(_, rule)| rule.label.clone()),
                score: closest.map(|(score, _)| score),
                findings,
            }
        }
    }
}

/// Judges a file of which nothing was scored, by what banks know of its bytes, beside what people have decided among `earlier`,
/// the findings of its last judgement. None where no such match asks for review or flags: then its outcome stays.
#[must_use]
pub(crate) fn judge_unscreened(policy: &Policy, answers: &BankAnswers, earlier: &[Finding]) -> Option<Judgement> {
    let nothing = Facts::of_one_view(Scores::new());
    let rules = policy.rules.iter().filter(|rule| rule.bank().is_some());
    let mut findings: Vec<Finding> = rules.filter_map(|rule| finding(rule, &nothing, answers)).collect();
    decided::keep_answers(&mut findings, earlier);
    restrict(&mut findings, answers);
    decided::has_question(&findings).then(|| decided::judgement_of(findings))
}

/// What a bank has found is restricted where the bank is by now, also behind the answer of a person. An answer says nothing about
/// who may see the image.
fn restrict(findings: &mut [Finding], answers: &BankAnswers) {
    for finding in findings {
        let answer = finding.bank.as_ref().and_then(|bank| answers.get(bank));
        finding.restricted |= answer.is_some_and(|answer| answer.restricted);
    }
}

/// A fact that a policy needs and that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingFact<'p> {
    /// The scores of a detector.
    Score(&'p str),
    /// The hashes, of which a bank was to be asked.
    Hashes(&'p str),
    /// The answer of a bank.
    Bank(&'p str),
}

impl fmt::Display for MissingFact<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Score(detector) => {
                write!(f, "there are no scores by the detector \"{detector}\", which the policy judges by")
            }
            Self::Hashes(bank) => {
                write!(f, "there are no hashes, and the policy looks for them in the bank \"{bank}\"")
            }
            Self::Bank(bank) => write!(f, "the bank \"{bank}\", which the policy judges by, was not asked"),
        }
    }
}

/// The first fact that a rule needs and that is not there. Without it the policy cannot say that an image passes.
#[must_use]
pub fn missing_fact<'p>(policy: &'p Policy, facts: &Facts, answers: &BankAnswers) -> Option<MissingFact<'p>> {
    policy.rules.iter().find_map(|rule| match &rule.subject {
        RuleSubject::Score(ScoreRule { detector, label, .. }) => {
            facts.score(detector, label).is_none().then_some(MissingFact::Score(detector))
        }
        RuleSubject::Bank(BankRule { bank, .. }) => match answers.get(bank) {
            None => Some(MissingFact::Bank(bank)),
            // Without hashes less is allowed, never more.
            Some(answer) if answer.kind == BankKind::Allow => None,
            Some(_) => facts.hashes.is_none().then_some(MissingFact::Hashes(bank)),
        },
    })
}

/// The finding of a rule, if the image reaches it.
pub(crate) fn finding(rule: &Rule, facts: &Facts, answers: &BankAnswers) -> Option<Finding> {
    let found = match &rule.subject {
        RuleSubject::Score(ScoreRule { detector, label, thresholds }) => {
            let score = facts.score(detector, label)?;
            let (outcome, threshold) = thresholds.reached(score)?;
            Finding {
                detector: Some(detector.clone()),
                label: Some(label.clone()),
                score: Some(score),
                threshold: Some(threshold),
                view: facts.view(detector, label),
                ..Finding::new(FindingSource::Detector, outcome)
            }
        }
        RuleSubject::Bank(bank) => known(bank, answers.get(&bank.bank)?, facts)?,
    };
    Some(Finding { rule: rule.name.clone(), category: rule.category.clone(), severity: rule.severity, ..found })
}

/// The finding of a rule over a bank that denies: the match that means most, and among those the closest.
fn known(rule: &BankRule, answer: &BankAnswer, facts: &Facts) -> Option<Finding> {
    if answer.kind != BankKind::Deny {
        return None;
    }
    let reached = answer.matches.iter().filter_map(|found| Some((found, match_reached(rule, found)?)));
    let strength =
        |(found, (outcome, _)): &(&BankMatch, (FindingOutcome, u32))| (*outcome, Reverse(found.by.distance()));
    // The first one of equals: equal files come before views.
    let (found, (outcome, within)) = reached.rev().max_by_key(strength)?;
    let has_views = facts.hashes.as_ref().is_some_and(|hashes| hashes.len() > 1);
    let view = match found.by {
        MatchedBy::Pdq { view, .. } => Some(view).filter(|_| has_views),
        MatchedBy::Sha256 | MatchedBy::Md5 => None,
    };
    #[expect(clippy::cast_precision_loss, reason = "at most 31")]
    Some(Finding {
        threshold: Some(within as f32),
        view,
        bank: Some(rule.bank.clone()),
        entry: Some(found.entry),
        distance: Some(found.by.distance()),
        restricted: answer.restricted,
        ..Finding::new(FindingSource::Bank, outcome)
    })
}

/// What a match means under a rule, with the distance that it is within. Likeness alone flags only pictures with much
/// detail; others that are as close go to a person.
fn match_reached(rule: &BankRule, found: &BankMatch) -> Option<(FindingOutcome, u32)> {
    let reached = rule.distances.reached(found.by.distance())?;
    match found.by {
        MatchedBy::Pdq { quality, .. } if quality < rule.min_quality => None,
        MatchedBy::Pdq { quality, .. } if quality < MIN_FLAG_QUALITY => {
            Some((reached.0.min(FindingOutcome::Review), reached.1))
        }
        _ => Some(reached),
    }
}

/// Applies the banks that allow. Where one knows the whole file by its SHA-256, the findings of its category are taken
/// away; where a view only resembles an entry, those that flag ask for review. Damage, matches of banks that deny, and what
/// is restricted stay. Returns why something was taken away.
fn allow(findings: &mut Vec<Finding>, policy: &Policy, answers: &BankAnswers) -> Option<String> {
    let mut reason = None;
    for (category, rule) in policy.rules.iter().filter_map(|rule| Some((rule.category.as_deref()?, rule.bank()?))) {
        let Some(answer) = answers.get(&rule.bank).filter(|answer| answer.kind == BankKind::Allow) else { continue };
        let is_covered = |finding: &Finding| {
            matches!(finding.source, FindingSource::Detector | FindingSource::Evidence)
                && !finding.restricted
                && finding.category.as_deref().is_some_and(|found| is_within(found, category))
        };
        if let Some(file) = answer.matches.iter().find(|found| found.by == MatchedBy::Sha256) {
            let before = findings.len();
            findings.retain(|finding| !is_covered(finding));
            if findings.len() < before && reason.is_none() {
                reason = Some(format!("entry {} of the bank \"{}\" allows {category}", file.entry, rule.bank));
            }
        }
        let resembles = |found: &BankMatch| {
            matches!(found.by, MatchedBy::Pdq { distance, quality, .. }
                if quality >= rule.min_quality && rule.distances.widest().is_some_and(|widest| distance <= widest))
        };
        if answer.matches.iter().any(resembles) {
            for finding in findings.iter_mut().filter(|finding| is_covered(finding)) {
                finding.outcome = finding.outcome.min(FindingOutcome::Review);
            }
        }
    }
    reason
}

/// Whether a category is another one or below it.
fn is_within(category: &str, other: &str) -> bool {
    category.strip_prefix(other).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// What damage adds to the findings.
fn damage_finding(damaged: DamagedOutcome) -> Option<Finding> {
    let outcome = match damaged {
        DamagedOutcome::Review => FindingOutcome::Review,
        DamagedOutcome::Flagged => FindingOutcome::Flagged,
        DamagedOutcome::Undecodable => return None,
    };
    Some(Finding::new(FindingSource::Damage, outcome))
}

fn damage_reason(damage: &str, damaged: DamagedOutcome) -> String {
    format!("damaged {damage} (policy.damaged is {})", damaged.as_str())
}

pub(super) fn reason(finding: &Finding) -> String {
    match finding.source {
        FindingSource::Decision => return decided::reason(finding),
        FindingSource::Damage => return DAMAGE.into(),
        FindingSource::Detector | FindingSource::Evidence | FindingSource::Bank => {}
    }
    let threshold = finding.threshold.unwrap_or_default();
    if let (Some(bank), Some(entry), Some(distance)) = (&finding.bank, finding.entry, finding.distance) {
        let bank = bank_rule_text(bank);
        return format!("{bank}: entry {entry} at distance {distance}, within {threshold}");
    }
    let name = match finding.outcome {
        FindingOutcome::Noted => "note_at",
        FindingOutcome::Review => "review_at",
        FindingOutcome::Flagged => "flag_at",
    };
    let [detector, label] = [&finding.detector, &finding.label].map(|text| text.as_deref().unwrap_or_default());
    let says = rule_text(None, detector, label);
    let score = finding.score.unwrap_or_default();
    format!("{says} {score:.4}, {name} is {threshold}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::job::{PolicyRef, View};
    use crate::policy::{Distances, Thresholds};

    /// By a policy that asks no bank.
    fn judged(policy: &Policy, facts: &Facts) -> Judgement {
        judge(policy, facts, &BankAnswers::new())
    }

    fn missing<'p>(policy: &'p Policy, facts: &Facts) -> Option<MissingFact<'p>> {
        missing_fact(policy, facts, &BankAnswers::new())
    }

    fn policy(rules: Vec<Rule>) -> Policy {
        Policy { rules, damaged: DamagedOutcome::Review, reference: PolicyRef::new("p", ""), is_default: false }
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
            assert_eq!(judged(&policy, &facts(&[("d", "ai", p)])).outcome, outcome, "{p}");
        }
    }

    #[test]
    fn the_strongest_outcome_wins_over_the_highest_score_and_every_rule_that_is_reached_is_found() {
        let policy = policy(vec![rule("d", "ai", 0.5, 0.99), rule("d", "gore", 0.5, 0.9), rule("d", "nude", 0.1, 0.2)]);
        let judgement = judged(&policy, &facts(&[("d", "ai", 0.9), ("d", "gore", 0.4), ("d", "nude", 0.3)]));
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
        let judgement = judged(&policy(rules), &facts(&all));
        let labels: Vec<_> = judgement.findings.iter().filter_map(|f| f.label.as_deref()).collect();
        assert_eq!(labels, ["c", "e", "b", "a"]);
        assert_eq!(judgement.label.as_deref(), Some("c"));
    }

    #[test]
    fn a_note_leaves_the_outcome_passed_and_is_the_reason() {
        let noting = Thresholds { note_at: Some(0.3), review_at: None, flag_at: Some(0.9) };
        let policy = policy(vec![Rule::new("d", "ai", noting)]);
        let noted = judged(&policy, &facts(&[("d", "ai", 0.8)]));
        assert_eq!(noted.outcome, Outcome::Passed);
        assert_eq!(noted.reason.as_deref(), Some("d says \"ai\" 0.8000, note_at is 0.3"));
        assert_eq!(noted.findings[0].outcome, FindingOutcome::Noted);
        assert!(judged(&policy, &facts(&[("d", "ai", 0.2)])).findings.is_empty());
        assert_eq!(judged(&policy, &facts(&[("d", "ai", 0.9)])).outcome, Outcome::Flagged);
    }

    #[test]
    fn a_finding_names_the_view_with_the_highest_score() {
        let policy = policy(vec![rule("d", "ai", 0.5, 0.9), rule("d", "nude", 0.5, 0.9)]);
        let frames = [("ai", 0.95, "nude", 0.1), ("ai", 0.1, "nude", 0.6)];
        let views = frames.map(|(a, p, b, q)| scores(&[("d", a, p), ("d", b, q)]));
        let facts = Facts::of_views([0, 4].map(View::of_frame).into_iter().zip(views));
        let found: Vec<_> = judged(&policy, &facts).findings.iter().map(|f| (f.label.clone(), f.view)).collect();
        assert_eq!(
            found,
            [(Some("ai".into()), Some(View::of_frame(0))), (Some("nude".into()), Some(View::of_frame(4)))]
        );
    }

    #[test]
    fn a_damaged_file_never_passes_and_keeps_the_findings_of_its_rules() {
        let damaged = |score: f32| Facts {
            damage: Some("JPEG: the file ends before the image does".into()),
            ..facts(&[("d", "ai", score)])
        };
        let noting = Thresholds { note_at: Some(0.2), review_at: Some(0.5), flag_at: Some(0.9) };
        for (word, outcomes) in [
            (DamagedOutcome::Review, [Outcome::Review, Outcome::Review, Outcome::Review, Outcome::Flagged]),
            (DamagedOutcome::Flagged, [Outcome::Flagged; 4]),
            (
                DamagedOutcome::Undecodable,
                [Outcome::Undecodable, Outcome::Undecodable, Outcome::Undecodable, Outcome::Flagged],
            ),
        ] {
            let policy = Policy { damaged: word, ..policy(vec![Rule::new("d", "ai", noting)]) };
            let judged = [0.1, 0.3, 0.6, 0.95].map(|score| judged(&policy, &damaged(score)));
            assert_eq!(judged.each_ref().map(|judgement| judgement.outcome), outcomes, "{word:?}");
            let reason = judged[0].reason.as_deref().unwrap();
            let expected =
                format!("damaged JPEG: the file ends before the image does (policy.damaged is {})", word.as_str());
            assert_eq!(reason, expected);
        }
        let both = judged(&policy(vec![rule("d", "ai", 0.5, 0.9)]), &damaged(0.6));
        let sources: Vec<_> = both.findings.iter().map(|finding| finding.source).collect();
        assert_eq!(sources, [FindingSource::Detector, FindingSource::Damage], "a score comes before damage");
        assert_eq!(both.label.as_deref(), Some("ai"));
    }

    /// As in the rows of earlier releases.
    #[test]
    fn an_image_of_which_it_is_not_known_whether_it_is_damaged_never_passes() {
        let policy = policy(vec![rule("d", "ai", 0.5, 0.9)]);
        let judged = [0.1, 0.6, 0.95].map(|score| {
            let unknown = Facts { damage: None, ..facts(&[("d", "ai", score)]) };
            judged(&policy, &unknown).outcome
        });
        assert_eq!(judged, [Outcome::Rejected, Outcome::Review, Outcome::Flagged]);
    }

    #[test]
    fn scores_that_no_rule_judges_never_pass() {
        let one = policy(vec![rule("d", "ai", 0.5, 0.9)]);
        assert_eq!(judged(&one, &facts(&[("shadow", "ai", 0.0)])).outcome, Outcome::Rejected);
        assert_eq!(judged(&one, &facts(&[])).outcome, Outcome::Rejected);
        assert_eq!(judged(&policy(Vec::new()), &facts(&[("d", "ai", 0.0)])).outcome, Outcome::Rejected);
    }

    #[test]
    fn a_missing_score_never_passes_and_hides_no_other_rule() {
        let noting = Thresholds { note_at: Some(0.2), review_at: Some(0.5), flag_at: Some(0.9) };
        let policy = policy(vec![Rule::new("d", "ai", noting), rule("e", "nude", 0.5, 0.9)]);
        let only_d = |p: f32| judged(&policy, &facts(&[("d", "ai", p)]));
        assert_eq!(only_d(0.1).outcome, Outcome::Rejected);
        assert!(only_d(0.1).reason.unwrap().contains("\"e\""));
        assert_eq!(only_d(0.3).outcome, Outcome::Rejected, "a note does not say that the image passes");
        assert_eq!((only_d(0.6).outcome, only_d(0.95).outcome), (Outcome::Review, Outcome::Flagged));
        assert_eq!(missing(&policy, &facts(&[("d", "ai", 0.1)])), Some(MissingFact::Score("e")));
        assert_eq!(missing(&policy, &facts(&[("d", "ai", 0.1), ("e", "other", 0.1)])), Some(MissingFact::Score("e")));
        assert_eq!(missing(&policy, &facts(&[("d", "ai", 0.1), ("e", "nude", 0.1)])), None);
    }

    fn bank_rule(bank: &str, distances: Distances) -> Rule {
        let subject = RuleSubject::Bank(BankRule { bank: bank.into(), distances, min_quality: 50 });
        Rule { name: None, category: None, severity: None, subject }
    }

    fn denies(review_within: u32, flag_within: u32) -> Rule {
        let some = Some(review_within);
        bank_rule("known", Distances { note_within: None, review_within: some, flag_within: Some(flag_within) })
    }

    fn answers(bank: &str, kind: BankKind, matches: &[MatchedBy]) -> BankAnswers {
        let matches = (1..).zip(matches).map(|(entry, by)| BankMatch { entry, by: *by }).collect();
        BankAnswers::from([(bank.to_owned(), BankAnswer { kind, restricted: false, version: 3, matches })])
    }

    fn like(distance: u32, quality: u8) -> MatchedBy {
        MatchedBy::Pdq { view: View::of_frame(0), quality, distance }
    }

    /// Facts with hashes, of which the judgement only needs to know that they were made.
    fn hashed(entries: &[(&str, &str, f32)]) -> Facts {
        Facts { hashes: Some(Vec::new()), ..facts(entries) }
    }

    #[test]
    fn a_match_is_judged_by_distance_and_flags_by_likeness_only_at_a_high_quality() {
        let policy = policy(vec![denies(31, 15)]);
        for (by, outcome) in [
            (like(15, 70), Outcome::Flagged),
            (like(15, 69), Outcome::Review),
            (like(16, 100), Outcome::Review),
            (like(31, 50), Outcome::Review),
            (like(31, 49), Outcome::Passed),
            (like(32, 100), Outcome::Passed),
            (like(0, 49), Outcome::Passed),
            (MatchedBy::Sha256, Outcome::Flagged),
            (MatchedBy::Md5, Outcome::Flagged),
        ] {
            let judgement = judge(&policy, &hashed(&[]), &answers("known", BankKind::Deny, &[by]));
            assert_eq!(judgement.outcome, outcome, "{by:?}");
        }
    }

    #[test]
    fn the_match_that_means_most_is_the_finding_and_among_those_the_closest() {
        let policy = policy(vec![denies(31, 15)]);
        let matches = [like(2, 60), like(14, 90), like(9, 90), like(20, 90)];
        let judgement = judge(&policy, &hashed(&[]), &answers("known", BankKind::Deny, &matches));
        let found = &judgement.findings[0];
        assert_eq!((found.entry, found.distance, found.threshold), (Some(3), Some(9), Some(15.0)));
        assert_eq!(judgement.reason.as_deref(), Some("bank \"known\": entry 3 at distance 9, within 15"));
        assert_eq!((found.source, found.rule_text().as_ref()), (FindingSource::Bank, "bank \"known\""));
    }

    #[test]
    fn what_a_restricted_bank_finds_is_restricted() {
        let mut known = answers("known", BankKind::Deny, &[MatchedBy::Sha256]);
        known.get_mut("known").unwrap().restricted = true;
        let policy = policy(vec![denies(0, 0)]);
        assert!(judge(&policy, &hashed(&[]), &known).is_restricted());
        assert!(!judge(&policy, &hashed(&[]), &answers("known", BankKind::Deny, &[MatchedBy::Sha256])).is_restricted());
    }

    #[test]
    fn what_a_restricted_bank_finds_is_not_lost_behind_damage() {
        let mut known = answers("known", BankKind::Deny, &[like(20, 90)]);
        let damaged = Facts { damage: Some("PNG: cut".into()), ..hashed(&[]) };
        let policy = Policy { damaged: DamagedOutcome::Undecodable, ..policy(vec![denies(31, 15)]) };
        assert_eq!(judge(&policy, &damaged, &known).outcome, Outcome::Undecodable);
        known.get_mut("known").unwrap().restricted = true;
        let judgement = judge(&policy, &damaged, &known);
        assert_eq!((judgement.outcome, judgement.is_restricted()), (Outcome::Review, true));
    }

    #[test]
    fn an_image_whose_bank_was_not_asked_or_that_has_no_hashes_never_passes() {
        let policy = policy(vec![rule("d", "ai", 0.5, 0.9), denies(31, 15)]);
        let entries = [("d", "ai", 0.1)];
        let nothing = answers("known", BankKind::Deny, &[]);
        assert_eq!(judge(&policy, &hashed(&entries), &nothing).outcome, Outcome::Passed);
        let unasked = judge(&policy, &hashed(&entries), &BankAnswers::new());
        assert_eq!(unasked.outcome, Outcome::Rejected);
        assert!(unasked.reason.unwrap().contains("the bank \"known\""));
        let unhashed = judge(&policy, &facts(&entries), &nothing);
        assert_eq!(unhashed.outcome, Outcome::Rejected);
        assert!(unhashed.reason.unwrap().starts_with("there are no hashes"));
        let known = answers("known", BankKind::Deny, &[MatchedBy::Sha256]);
        assert_eq!(judge(&policy, &facts(&entries), &known).outcome, Outcome::Flagged, "the file itself is known");
        assert_eq!(missing_fact(&policy, &facts(&entries), &known), Some(MissingFact::Hashes("known")));
    }

    /// A policy that judges one score in `category`, and a bank that allows `sexual`.
    fn allowing(category: &str) -> Policy {
        let allows = bank_rule("fine", Distances { review_within: Some(10), ..Distances::default() });
        let judged = Rule { category: Some(category.into()), ..rule("d", "ai", 0.5, 0.9) };
        policy(vec![judged, Rule { category: Some("sexual".into()), ..allows }])
    }

    #[test]
    fn an_allowed_file_loses_the_findings_of_its_category_only() {
        let by = |by| answers("fine", BankKind::Allow, &[by]);
        for (category, known, outcome) in [
            ("sexual", by(MatchedBy::Sha256), Outcome::Passed),
            ("sexual/nudity", by(MatchedBy::Sha256), Outcome::Passed),
            ("sexualised", by(MatchedBy::Sha256), Outcome::Flagged),
            ("violence", by(MatchedBy::Sha256), Outcome::Flagged),
            ("sexual", by(MatchedBy::Md5), Outcome::Flagged),
            ("sexual", by(like(0, 100)), Outcome::Review),
            ("sexual", by(like(10, 50)), Outcome::Review),
            ("sexual", by(like(11, 100)), Outcome::Flagged),
            ("sexual", by(like(0, 49)), Outcome::Flagged),
            ("violence", by(like(0, 100)), Outcome::Flagged),
        ] {
            let judgement = judge(&allowing(category), &hashed(&[("d", "ai", 0.95)]), &known);
            assert_eq!(judgement.outcome, outcome, "{category} {known:?}");
        }
        let allowed = judge(&allowing("sexual"), &hashed(&[("d", "ai", 0.95)]), &by(MatchedBy::Sha256));
        assert_eq!(allowed.reason.as_deref(), Some("entry 1 of the bank \"fine\" allows sexual"));
        let silent = judge(&allowing("sexual"), &hashed(&[("d", "ai", 0.1)]), &by(MatchedBy::Sha256));
        assert_eq!((silent.outcome, silent.reason), (Outcome::Passed, None), "nothing was taken away");
    }

    #[test]
    fn damage_and_a_match_that_denies_are_never_taken_away() {
        let mut policy = allowing("sexual");
        policy.rules.push(Rule { category: Some("sexual".into()), ..denies(0, 0) });
        let mut known = answers("fine", BankKind::Allow, &[MatchedBy::Sha256]);
        known.extend(answers("known", BankKind::Deny, &[MatchedBy::Sha256]));
        assert_eq!(judge(&policy, &hashed(&[("d", "ai", 0.95)]), &known).outcome, Outcome::Flagged);

        let damaged = Facts { damage: Some("PNG: cut".into()), ..hashed(&[("d", "ai", 0.95)]) };
        let known = answers("fine", BankKind::Allow, &[MatchedBy::Sha256]);
        assert_eq!(judge(&allowing("sexual"), &damaged, &known).outcome, Outcome::Review);
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
            let [before, after] = [before, after].map(|scores| judged(&policy, &facts_of(&scores)));
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
            prop_assert_eq!(judged(&one, &facts_of(&scores)), judged(&other, &facts_of(&scores)));
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
            let is_needed = policy.rules.iter().filter_map(Rule::score).any(|rule| rule.label == LABELS[missing]);
            let judgement = judged(&policy, &facts);
            prop_assert!(!is_needed || !judgement.allows());
            // What the other rules find stays as it was.
            let complete = judged(&policy, &facts_of(&scores));
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
            prop_assert_eq!(judged(&policy, &Facts::of_one_view(one.clone())).outcome, Outcome::Failed);
            let views = [scores(&[("x", "a", 1.0), ("x", "b", 1.0)]), one].into_iter();
            let several = Facts::of_views(views.map(|scores| (View::of_frame(0), scores)));
            prop_assert_eq!(judged(&policy, &several).outcome, Outcome::Failed);
        }
    }
}
