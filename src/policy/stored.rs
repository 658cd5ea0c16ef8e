//! What a policy makes of an image that was judged before.

use super::{Policy, judge};
use crate::job::{BankAnswers, Finding, FindingSource, Judgement, Outcome, Verdict};

/// What a policy makes of the stored facts of an image.
#[derive(Debug)]
pub(crate) enum StoredJudgement {
    /// Nothing was scored, because nothing could be shown. No policy changes that.
    Unscored,
    /// This policy has judged it before.
    Current,
    /// A fact is missing that one of the policy's rules needs. A rule whose fact is missing must never count as passed.
    Lacking,
    Judged(Judgement),
}

/// Judges a file by its bytes, of which nothing was scored because it shows nothing, or because only a person has decided about
/// it. None where no bank asks for more than was said. A file that could not be fetched or was given up is tried once more
/// instead.
#[must_use]
pub(crate) fn judge_stored_bytes(policy: &Policy, verdict: &Verdict, answers: &BankAnswers) -> Option<Judgement> {
    let is_known = |finding: &Finding| matches!(finding.source, FindingSource::Bank | FindingSource::Decision);
    let earlier = &verdict.judgement;
    let is_judged = earlier.outcome == Outcome::Undecodable || earlier.findings.iter().any(is_known);
    let may_judge = is_judged && verdict.facts.is_none() && verdict.sha256.is_some();
    judge::judge_unscreened(policy, answers, &earlier.findings).filter(|_| may_judge)
}

impl Policy {
    /// Judges the stored facts of a verdict, for whose image this policy holds. `answers` are those of its banks.
    #[must_use]
    pub(crate) fn judge_stored(&self, verdict: &Verdict, answers: &BankAnswers) -> StoredJudgement {
        let Some(facts) = &verdict.facts else {
            // A bank may know the bytes by now.
            return match judge_stored_bytes(self, verdict, answers) {
                Some(_) if verdict.policy == self.reference.with_banks(answers) => StoredJudgement::Current,
                Some(judgement) => StoredJudgement::Judged(judgement),
                None => StoredJudgement::Unscored,
            };
        };
        if verdict.policy == self.reference.with_banks(answers) {
            return StoredJudgement::Current;
        }
        // An earlier release chose the frame of an animation by the policy of that day.
        let lacks_views = facts.views.is_none() && verdict.policy.sha256 != self.reference.sha256;
        let judgement = judge::judge_decided(self, facts, answers, &verdict.judgement.findings);
        let is_unusable = matches!(judgement.outcome, Outcome::Failed | Outcome::Rejected);
        if lacks_views || is_unusable || judge::missing_fact(self, facts, answers).is_some() {
            return StoredJudgement::Lacking;
        }
        StoredJudgement::Judged(judgement)
    }
}
