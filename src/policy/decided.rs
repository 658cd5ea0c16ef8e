//! What a person's decision means for a judgement, now and whenever the image is judged again.
//!
//! A decision answers findings, each by its subject: the category, or without one what the rule looks at. An answer stands
//! among the findings with the source `decision`: `flagged`, or `noted` for what was cleared. A later judgement leaves out
//! what was answered and keeps the answers. Everything else is new, and so is a match with another entry of a bank: an
//! answer to one entry says nothing about another one.

use std::cmp::Ordering;

use crate::job::{DAMAGE, Facts, Finding, FindingOutcome, FindingSource, Judgement, Outcome};

/// What a person says of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It may be shown.
    Clear,
    /// It must not be shown.
    Flag,
}

/// What a finding is about. Equal subjects are one question.
#[derive(PartialEq, Eq)]
enum AnswerSubject<'f> {
    /// An entry of a bank, whatever the rule's category is.
    Match(&'f str, i64),
    Category(&'f str),
    Damage,
    /// What a rule without a category looks at.
    Rule([Option<&'f str>; 3]),
    /// The image as a whole.
    Image,
}

impl<'f> AnswerSubject<'f> {
    fn of(finding: &'f Finding) -> Self {
        if let (Some(bank), Some(entry)) = (&finding.bank, finding.entry) {
            return Self::Match(bank, entry);
        }
        if let Some(category) = &finding.category {
            return Self::Category(category);
        }
        if finding.source == FindingSource::Damage || is_answer_to_damage(finding) {
            return Self::Damage;
        }
        let [rule, detector, label] = [&finding.rule, &finding.detector, &finding.label].map(Option::as_deref);
        match (rule, detector) {
            (None, None) => Self::Image,
            // The detector and the label, so that a rule may get another name.
            (_, Some(_)) => Self::Rule([None, detector, label]),
            (Some(_), None) => Self::Rule([rule, None, None]),
        }
    }
}

fn is_answer(finding: &Finding) -> bool {
    finding.source == FindingSource::Decision
}

fn is_answer_to_damage(finding: &Finding) -> bool {
    is_answer(finding)
        && finding.rule.as_deref() == Some(DAMAGE)
        && finding.category.is_none()
        && finding.detector.is_none()
        && finding.bank.is_none()
}

/// The answer to a finding.
fn answer_to(finding: &Finding, outcome: FindingOutcome) -> Finding {
    let is_damage = AnswerSubject::of(finding) == AnswerSubject::Damage;
    Finding {
        rule: if is_damage { Some(DAMAGE.into()) } else { finding.rule.clone() },
        category: finding.category.clone(),
        severity: finding.severity,
        detector: finding.detector.clone(),
        label: finding.label.clone(),
        bank: finding.bank.clone(),
        entry: finding.entry,
        distance: finding.distance,
        restricted: finding.restricted,
        ..Finding::new(FindingSource::Decision, outcome)
    }
}

/// Sorts findings by strength. Among equal outcomes what asks comes before what was answered. The sort is stable, so that
/// otherwise the canonical order of the rules decides.
pub(super) fn strongest_first(findings: &mut [Finding]) {
    let rank = |finding: &Finding| (finding.outcome, !is_answer(finding));
    findings.sort_by(|a, b| match rank(b).cmp(&rank(a)) {
        Ordering::Equal => b.by_strength(a),
        unequal => unequal,
    });
}

/// Leaves out the findings that were answered, and adds the answers. `earlier` are the findings of the image's last
/// judgement, or of one on equal bytes.
pub(super) fn keep_answers(findings: &mut Vec<Finding>, earlier: &[Finding]) {
    let is_answered = |finding: &Finding| {
        let subject = AnswerSubject::of(finding);
        earlier.iter().filter(|answer| is_answer(answer)).any(|answer| AnswerSubject::of(answer) == subject)
    };
    findings.retain(|finding| !is_answered(finding));
    findings.extend(earlier.iter().filter(|finding| is_answer(finding)).cloned());
}

/// Whether a person has said what becomes of a damaged file.
pub(super) fn answers_damage(earlier: &[Finding]) -> bool {
    earlier.iter().any(is_answer_to_damage)
}

/// Why a decision is the strongest finding.
pub(super) fn reason(answer: &Finding) -> String {
    let word = if answer.outcome == FindingOutcome::Noted { "cleared" } else { answer.outcome.as_str() };
    match AnswerSubject::of(answer) {
        AnswerSubject::Image => format!("{word} by a person"),
        AnswerSubject::Category(category) => format!("{category}: {word} by a person"),
        _ => format!("{}: {word} by a person", answer.rule_text()),
    }
}

/// The judgement of an image about which a person has decided.
///
/// To clear answers everything that asks or flags; notes stay. To flag answers the same, or with a `category` only that one:
/// a person who names one category has said nothing of the others.
#[must_use]
pub fn decide(judgement: &Judgement, facts: Option<&Facts>, answer: Answer, category: Option<&str>) -> Judgement {
    let mut findings = judgement.findings.clone();
    // A file that is undecodable because it is damaged has no finding.
    let is_damaged = facts.and_then(Facts::damage).is_some();
    if is_damaged && judgement.outcome == Outcome::Undecodable && !answers_damage(&findings) {
        findings.push(Finding::new(FindingSource::Damage, FindingOutcome::Review));
    }
    let outcome = match answer {
        Answer::Clear => FindingOutcome::Noted,
        Answer::Flag => FindingOutcome::Flagged,
    };
    let is_meant = |finding: &Finding| match (answer, category) {
        (Answer::Flag, Some(category)) => finding.category.as_deref() == Some(category),
        _ => is_answer(finding) || asks_or_flags(finding),
    };
    let mut decided: Vec<Finding> = Vec::with_capacity(findings.len() + 1);
    for finding in &findings {
        let finding = if is_meant(finding) { answer_to(finding, outcome) } else { finding.clone() };
        let is_known = |known: &Finding| is_answer(known) && AnswerSubject::of(known) == AnswerSubject::of(&finding);
        if !is_answer(&finding) || !decided.iter().any(is_known) {
            decided.push(finding);
        }
    }
    // What is new by this decision: a category that no rule has found, or a word on an image without any finding.
    let is_new = match (answer, category) {
        (Answer::Flag, Some(category)) => !decided.iter().any(|known| known.category.as_deref() == Some(category)),
        _ => !decided.iter().any(|known| is_answer(known) && known.outcome == outcome),
    };
    if is_new {
        let category = category.filter(|_| answer == Answer::Flag).map(str::to_owned);
        decided.push(Finding { category, ..Finding::new(FindingSource::Decision, outcome) });
    }
    judgement_of(decided)
}

/// The judgement that equal bytes take over from a decision: `judged` by the policy itself, with the answers among `earlier`, the
/// findings about which a person has decided. None where something was not answered, where the image is restricted, and
/// where nothing was asked and nothing changes.
#[must_use]
pub fn carried(judged: &Judgement, earlier: &[Finding]) -> Option<Judgement> {
    let is_screened = matches!(judged.outcome, Outcome::Passed | Outcome::Review | Outcome::Flagged);
    if !is_screened || judged.is_restricted() || !earlier.iter().any(is_answer) {
        return None;
    }
    let mut findings = judged.findings.clone();
    keep_answers(&mut findings, earlier);
    let decided = (!has_question(&findings)).then(|| judgement_of(findings))?;
    (has_question(&judged.findings) || decided.outcome != judged.outcome).then_some(decided)
}

/// The judgement that equal bytes of which nothing was scored take over from a decision. `was_unscreened`: the person has
/// decided about a file of which nothing was scored. Otherwise only a flag is taken over: the person who has cleared the image
/// has seen it, and here nothing shows it.
#[must_use]
pub fn carried_unscreened(earlier: &[Finding], was_unscreened: bool) -> Option<Judgement> {
    let answers: Vec<Finding> = earlier.iter().filter(|finding| is_answer(finding)).cloned().collect();
    let is_restricted = answers.iter().any(|answer| answer.restricted);
    let has_flag = answers.iter().any(asks_or_flags);
    let is_taken_over = !answers.is_empty() && !is_restricted && (was_unscreened || has_flag);
    is_taken_over.then(|| judgement_of(answers))
}

/// Whether something asks for review or flags that no person has answered.
pub(crate) fn has_question(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| !is_answer(finding) && asks_or_flags(finding))
}

fn asks_or_flags(finding: &Finding) -> bool {
    finding.outcome != FindingOutcome::Noted
}

pub(super) fn judgement_of(mut findings: Vec<Finding>) -> Judgement {
    strongest_first(&mut findings);
    let strongest = findings.first();
    Judgement {
        outcome: strongest.map_or(Outcome::Passed, |strongest| strongest.outcome.outcome()),
        reason: strongest.map(super::judge::reason),
        label: strongest.and_then(|strongest| strongest.label.clone()),
        score: strongest.and_then(|strongest| strongest.score),
        findings,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::judge::{judge_decided, judge_unscreened};
    use super::super::{BankRule, DamagedOutcome, Distances, Policy, Rule, RuleSubject, Thresholds};
    use super::*;
    use crate::job::{BankAnswer, BankAnswers, BankKind, BankMatch, MatchedBy, PolicyRef, Scores};

    const LABELS: [&str; 4] = ["a", "b", "c", "d"];

    fn rule(label: &str, category: Option<&str>, review_at: f32, flag_at: f32) -> Rule {
        let thresholds = Thresholds { note_at: None, review_at: Some(review_at), flag_at: Some(flag_at) };
        Rule { category: category.map(str::to_owned), ..Rule::new("x", label, thresholds) }
    }

    fn policy(rules: Vec<Rule>) -> Policy {
        Policy { rules, damaged: DamagedOutcome::Review, reference: PolicyRef::new("p", ""), is_default: false }
    }

    fn facts(scores: &[f32]) -> Facts {
        let scores = LABELS.iter().zip(scores).map(|(label, score)| ((*label).to_owned(), *score)).collect();
        Facts { hashes: Some(Vec::new()), ..Facts::of_one_view(Scores::from([("x".to_owned(), scores)])) }
    }

    fn damaged(scores: &[f32]) -> Facts {
        Facts { damage: Some("PNG: cut".into()), ..facts(scores) }
    }

    /// What a bank that denies knows by equal bytes.
    fn denies(entries: &[i64]) -> BankAnswers {
        let matches = entries.iter().map(|entry| BankMatch { entry: *entry, by: MatchedBy::Sha256 }).collect();
        BankAnswers::from([(
            "known".to_owned(),
            BankAnswer { kind: BankKind::Deny, restricted: false, version: 1, matches },
        )])
    }

    fn bank_rule(category: Option<&str>) -> Rule {
        let distances = Distances { flag_within: Some(15), ..Distances::default() };
        let subject = RuleSubject::Bank(BankRule { bank: "known".into(), distances, min_quality: 50 });
        Rule { name: None, category: category.map(str::to_owned), severity: None, subject }
    }

    fn judged(policy: &Policy, facts: &Facts, answers: &BankAnswers, earlier: &[Finding]) -> Judgement {
        judge_decided(policy, facts, answers, earlier)
    }

    fn sources(judgement: &Judgement) -> Vec<(FindingSource, FindingOutcome)> {
        judgement.findings.iter().map(|finding| (finding.source, finding.outcome)).collect()
    }

    #[test]
    fn what_was_cleared_stays_cleared_under_stricter_rules_and_another_category_is_new() {
        let none = BankAnswers::new();
        let image = facts(&[0.6, 0.6, 0.0, 0.0]);
        let one = policy(vec![rule("a", Some("nudity"), 0.5, 0.9)]);
        let first = judged(&one, &image, &none, &[]);
        let cleared = decide(&first, Some(&image), Answer::Clear, None);
        assert_eq!((cleared.outcome, cleared.allows(), cleared.has_notes()), (Outcome::Passed, true, false));
        assert_eq!(sources(&cleared), [(FindingSource::Decision, FindingOutcome::Noted)]);
        assert_eq!(cleared.reason.as_deref(), Some("nudity: cleared by a person"));

        let stricter = policy(vec![rule("a", Some("nudity"), 0.1, 0.2)]);
        assert_eq!(judged(&stricter, &image, &none, &cleared.findings), cleared);
        let wider = policy(vec![rule("a", Some("nudity"), 0.1, 0.2), rule("b", Some("violence"), 0.5, 0.9)]);
        let reopened = judged(&wider, &image, &none, &cleared.findings);
        assert_eq!(reopened.outcome, Outcome::Review);
        let both =
            [(FindingSource::Detector, FindingOutcome::Review), (FindingSource::Decision, FindingOutcome::Noted)];
        assert_eq!(sources(&reopened), both, "with the earlier decision beside it");
        // A category below or above is another one.
        let below = policy(vec![rule("a", Some("nudity/explicit"), 0.5, 0.9)]);
        assert_eq!(judged(&below, &image, &none, &cleared.findings).outcome, Outcome::Review);
    }

    #[test]
    fn rules_without_a_category_are_questions_of_their_own() {
        let none = BankAnswers::new();
        let image = facts(&[0.6, 0.6, 0.0, 0.0]);
        let first = judged(&policy(vec![rule("a", None, 0.5, 0.9)]), &image, &none, &[]);
        let cleared = decide(&first, Some(&image), Answer::Clear, None);
        let both = policy(vec![rule("a", None, 0.1, 0.2), rule("b", None, 0.5, 0.9)]);
        let reopened = judged(&both, &image, &none, &cleared.findings);
        assert_eq!((reopened.outcome, reopened.label.as_deref()), (Outcome::Review, Some("b")));
    }

    #[test]
    fn a_match_is_answered_by_its_entry_and_any_other_reopens() {
        let rules = policy(vec![rule("a", Some("nudity"), 0.5, 0.9), bank_rule(Some("nudity"))]);
        let image = facts(&[0.6, 0.0, 0.0, 0.0]);
        let cleared = decide(&judged(&rules, &image, &denies(&[]), &[]), Some(&image), Answer::Clear, None);
        let matched = judged(&rules, &image, &denies(&[7]), &cleared.findings);
        assert_eq!(matched.outcome, Outcome::Flagged, "the category was answered, the match was not");
        let false_match = decide(&matched, Some(&image), Answer::Clear, None);
        assert_eq!(false_match.outcome, Outcome::Passed);
        assert_eq!(judged(&rules, &image, &denies(&[7]), &false_match.findings), false_match);
        assert_eq!(judged(&rules, &image, &denies(&[8]), &false_match.findings).outcome, Outcome::Flagged);
    }

    #[test]
    fn damage_is_cleared_by_a_person_alone_and_hides_nothing_else() {
        let none = BankAnswers::new();
        for word in [DamagedOutcome::Review, DamagedOutcome::Flagged, DamagedOutcome::Undecodable] {
            let rules = Policy { damaged: word, ..policy(vec![rule("a", Some("nudity"), 0.5, 0.9)]) };
            let image = damaged(&[0.1, 0.0, 0.0, 0.0]);
            let first = judged(&rules, &image, &none, &[]);
            assert_ne!(first.outcome, Outcome::Passed);
            let cleared = decide(&first, Some(&image), Answer::Clear, None);
            assert_eq!(cleared.outcome, Outcome::Passed, "{word:?}");
            assert_eq!(judged(&rules, &image, &none, &cleared.findings).outcome, Outcome::Passed, "{word:?}");
            let stricter = Policy { damaged: word, ..policy(vec![rule("a", Some("nudity"), 0.05, 0.9)]) };
            assert_eq!(judged(&stricter, &image, &none, &cleared.findings).outcome, Outcome::Review, "{word:?}");
        }
        // A rule with the name "damage" is not damage.
        let named = Rule { name: Some("damage".into()), ..rule("a", None, 0.5, 0.9) };
        let image = damaged(&[0.6, 0.0, 0.0, 0.0]);
        let of_rule = judged(&policy(vec![named.clone()]), &facts(&[0.6, 0.0, 0.0, 0.0]), &none, &[]);
        let cleared = decide(&of_rule, None, Answer::Clear, None);
        let still = judged(&policy(vec![named]), &image, &none, &cleared.findings);
        assert_eq!(sources(&still)[0], (FindingSource::Damage, FindingOutcome::Review));
    }

    #[test]
    fn a_flag_of_one_category_leaves_the_others_and_a_later_word_replaces_an_earlier_one() {
        let none = BankAnswers::new();
        let image = facts(&[0.6, 0.6, 0.0, 0.0]);
        let rules = policy(vec![rule("a", Some("nudity"), 0.5, 0.9), rule("b", Some("violence"), 0.5, 0.9)]);
        let first = judged(&rules, &image, &none, &[]);
        let flagged = decide(&first, Some(&image), Answer::Flag, Some("violence"));
        assert_eq!(flagged.outcome, Outcome::Flagged);
        let both =
            [(FindingSource::Decision, FindingOutcome::Flagged), (FindingSource::Detector, FindingOutcome::Review)];
        assert_eq!(sources(&flagged), both);
        assert_eq!(flagged.reason.as_deref(), Some("violence: flagged by a person"));
        assert_eq!(judged(&rules, &image, &none, &flagged.findings), flagged);
        let cleared = decide(&flagged, Some(&image), Answer::Clear, None);
        assert_eq!(cleared.outcome, Outcome::Passed);
        let again = decide(&cleared, Some(&image), Answer::Flag, None);
        assert_eq!((again.outcome, again.findings.len()), (Outcome::Flagged, 2));
        // Where nothing was found, the word is of the image, or of the category that is named.
        let passed = judged(&rules, &facts(&[0.0; 4]), &none, &[]);
        for (category, reason) in [(None, "flagged by a person"), (Some("hate"), "hate: flagged by a person")] {
            let flagged = decide(&passed, None, Answer::Flag, category);
            assert_eq!((flagged.outcome, flagged.reason.as_deref()), (Outcome::Flagged, Some(reason)));
            assert_eq!(judged(&rules, &facts(&[0.0; 4]), &none, &flagged.findings).outcome, Outcome::Flagged);
        }
    }

    #[test]
    fn a_note_stays_beside_a_decision_and_is_not_answered_by_it() {
        let noting = Thresholds { note_at: Some(0.3), review_at: Some(0.8), flag_at: None };
        let note = Rule { category: Some("synthetic".into()), ..Rule::new("x", "b", noting) };
        let rules = policy(vec![rule("a", Some("nudity"), 0.5, 0.9), note]);
        let image = facts(&[0.6, 0.4, 0.0, 0.0]);
        let none = BankAnswers::new();
        let cleared = decide(&judged(&rules, &image, &none, &[]), Some(&image), Answer::Clear, None);
        assert_eq!((cleared.outcome, cleared.has_notes()), (Outcome::Passed, true));
        assert_eq!(cleared.label.as_deref(), Some("b"), "the note comes first");
        assert_eq!(judged(&rules, &facts(&[0.6, 0.9, 0.0, 0.0]), &none, &cleared.findings).outcome, Outcome::Review);
    }

    #[test]
    fn equal_bytes_take_over_what_was_answered_and_nothing_that_was_not() {
        let rules = policy(vec![rule("a", Some("nudity"), 0.5, 0.9), bank_rule(None)]);
        let image = facts(&[0.6, 0.0, 0.0, 0.0]);
        let first = judged(&rules, &image, &denies(&[]), &[]);
        let cleared = decide(&first, Some(&image), Answer::Clear, None);
        assert_eq!(carried(&first, &cleared.findings).unwrap(), cleared);
        assert_eq!(carried(&first, &first.findings), None, "there is no decision");
        let matched = judged(&rules, &image, &denies(&[7]), &[]);
        assert_eq!(carried(&matched, &cleared.findings), None, "a later match");
        let passed = judged(&rules, &facts(&[0.0; 4]), &denies(&[]), &[]);
        assert_eq!(carried(&passed, &cleared.findings), None, "nothing changes");
        let flagged = decide(&passed, None, Answer::Flag, Some("hate"));
        assert_eq!(carried(&passed, &flagged.findings).unwrap().outcome, Outcome::Flagged);
        let mut restricted = first.clone();
        restricted.findings[0].restricted = true;
        assert_eq!(carried(&restricted, &cleared.findings), None);
        let failed = Judgement::unscored(Outcome::Failed, "no scores");
        assert_eq!(carried(&failed, &cleared.findings), None);
    }

    #[test]
    fn a_file_that_shows_nothing_is_known_by_its_bytes_and_takes_over_only_what_was_decided_about_bytes() {
        let undecodable = Judgement::unscored(Outcome::Undecodable, "no image");
        let cleared = decide(&undecodable, None, Answer::Clear, None);
        assert_eq!(carried_unscreened(&cleared.findings, true).unwrap(), cleared);
        assert_eq!(carried_unscreened(&cleared.findings, false), None, "that person has seen the image");
        assert_eq!(carried_unscreened(&[], true), None, "no person has decided");
        let flagged = decide(&undecodable, None, Answer::Flag, Some("hate"));
        for was_unscreened in [true, false] {
            assert_eq!(carried_unscreened(&flagged.findings, was_unscreened).unwrap().outcome, Outcome::Flagged);
        }
        let mut restricted = flagged.findings.clone();
        restricted[0].restricted = true;
        assert_eq!(carried_unscreened(&restricted, true), None);

        let rules = policy(vec![rule("a", Some("nudity"), 0.5, 0.9), bank_rule(None)]);
        assert_eq!(judge_unscreened(&rules, &denies(&[]), &cleared.findings), None, "its outcome stays");
        let matched = judge_unscreened(&rules, &denies(&[7]), &cleared.findings).unwrap();
        let both = [(FindingSource::Bank, FindingOutcome::Flagged), (FindingSource::Decision, FindingOutcome::Noted)];
        assert_eq!((matched.outcome, sources(&matched)), (Outcome::Flagged, both.to_vec()));
        let false_match = decide(&matched, None, Answer::Clear, None);
        assert_eq!(judge_unscreened(&rules, &denies(&[7]), &false_match.findings), None, "it was answered");
        assert!(judge_unscreened(&rules, &denies(&[8]), &false_match.findings).is_some());
    }

    #[test]
    fn an_answer_hides_no_bank_that_becomes_restricted() {
        let rules = policy(vec![rule("a", Some("nudity"), 0.5, 0.9), bank_rule(Some("nudity"))]);
        let image = facts(&[0.6, 0.0, 0.0, 0.0]);
        let cleared = decide(&judged(&rules, &image, &denies(&[7]), &[]), Some(&image), Answer::Clear, None);
        let mut now = denies(&[]);
        assert!(!judged(&rules, &image, &now, &cleared.findings).is_restricted());
        now.get_mut("known").unwrap().restricted = true;
        let restricted = judged(&rules, &image, &now, &cleared.findings);
        assert_eq!((restricted.outcome, restricted.is_restricted()), (Outcome::Passed, true));
        assert!(!restricted.says_same_as(&cleared), "it is written and announced");
        // Without its restriction the bank takes nothing back: only a rejudgement without the answer would.
        now.get_mut("known").unwrap().restricted = false;
        assert!(judged(&rules, &image, &now, &restricted.findings).is_restricted());
    }

    fn rules() -> impl Strategy<Value = Vec<Rule>> {
        let category = proptest::option::of("[a-b]");
        let one = (0..LABELS.len(), 0.0f32..=1.0, 0.0f32..=1.0, category).prop_map(|(label, one, other, category)| {
            rule(LABELS[label], category.as_deref(), one.min(other), one.max(other))
        });
        proptest::collection::vec(one, 1..6)
    }

    fn answer() -> impl Strategy<Value = Answer> {
        prop_oneof![Just(Answer::Clear), Just(Answer::Flag)]
    }

    fn answered(finding: &Finding, earlier: &[Finding]) -> bool {
        earlier.iter().any(|answer| is_answer(answer) && AnswerSubject::of(answer) == AnswerSubject::of(finding))
    }

    proptest! {
        /// Whatever the rules become, a decision hides no finding that it has not answered, and nothing softens one.
        #[test]
        fn a_decision_hides_only_what_it_has_answered(
            before in rules(),
            after in rules(),
            scores in proptest::collection::vec(0.0f32..=1.0, 4),
            answer in answer(),
            is_damaged in any::<bool>(),
        ) {
            let image = if is_damaged { damaged(&scores) } else { facts(&scores) };
            let none = BankAnswers::new();
            let first = judged(&policy(before), &facts(&scores), &none, &[]);
            let decided = decide(&first, Some(&facts(&scores)), answer, None);
            let expected = if answer == Answer::Clear { Outcome::Passed } else { Outcome::Flagged };
            prop_assert_eq!(decided.outcome, expected);
            let fresh = judged(&policy(after.clone()), &image, &none, &[]);
            let again = judged(&policy(after), &image, &none, &decided.findings);
            let unanswered: Vec<_> =
                fresh.findings.iter().filter(|finding| !answered(finding, &decided.findings)).collect();
            for finding in &unanswered {
                prop_assert!(again.findings.contains(finding));
                prop_assert!(again.outcome >= finding.outcome.outcome());
            }
            // Every answer stands, and with it the outcome that it asks for.
            for answer in decided.findings.iter().filter(|finding| is_answer(finding)) {
                prop_assert!(again.findings.contains(answer));
            }
            if answer == Answer::Flag {
                prop_assert_eq!(again.outcome, Outcome::Flagged);
            }
            if is_damaged && answer == Answer::Clear {
                prop_assert!(!again.allows(), "damage was not seen by that person");
            }
            if unanswered.is_empty() && answer == Answer::Clear {
                prop_assert_eq!(again.outcome, Outcome::Passed);
            }
        }

        #[test]
        fn a_match_in_a_bank_that_denies_always_reopens(
            rules in rules(),
            scores in proptest::collection::vec(0.0f32..=1.0, 4),
            category in proptest::option::of("[a-b]"),
        ) {
            let image = facts(&scores);
            let mut all = rules;
            all.push(bank_rule(category.as_deref()));
            let policy = policy(all);
            let first = judged(&policy, &image, &denies(&[]), &[]);
            let cleared = decide(&first, Some(&image), Answer::Clear, None);
            let matched = judged(&policy, &image, &denies(&[3]), &cleared.findings);
            prop_assert_eq!(matched.outcome, Outcome::Flagged);
            prop_assert!(!matched.says_same_as(&cleared));
            prop_assert_eq!(carried(&judged(&policy, &image, &denies(&[3]), &[]), &cleared.findings), None);
        }

        /// Also beside a decision, a higher score never softens what is asked.
        #[test]
        fn raising_a_score_never_softens_an_outcome(
            rules in rules(),
            before in proptest::collection::vec(0.0f32..=1.0, 4),
            which in 0usize..4,
            raise in 0.0f32..=1.0,
            answer in answer(),
        ) {
            let policy = policy(rules);
            let none = BankAnswers::new();
            let mut after = before.clone();
            after[which] = (after[which] + raise).min(1.0);
            let decided = decide(&judged(&policy, &facts(&before), &none, &[]), None, answer, None);
            let [before, after] =
                [before, after].map(|scores| judged(&policy, &facts(&scores), &none, &decided.findings));
            prop_assert!(after.outcome >= before.outcome);
            prop_assert!(after.findings.len() >= before.findings.len());
        }

        #[test]
        fn to_decide_twice_is_to_decide_once(
            rules in rules(),
            scores in proptest::collection::vec(0.0f32..=1.0, 4),
            answer in answer(),
        ) {
            let first = judged(&policy(rules), &facts(&scores), &BankAnswers::new(), &[]);
            let once = decide(&first, None, answer, None);
            prop_assert_eq!(decide(&once, None, answer, None), once);
        }
    }
}
