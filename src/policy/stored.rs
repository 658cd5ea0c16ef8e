//! What a policy makes of an image that was judged before.

use super::{Policy, judge};
use crate::job::{BankAnswers, Judgement, Outcome, Verdict};

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

impl Policy {
    /// Judges the stored facts of a verdict, for whose image this policy holds. `answers` are those of its banks.
    #[must_use]
    pub(crate) fn judge_stored(&self, verdict: &Verdict, answers: &BankAnswers) -> StoredJudgement {
        let Some(facts) = &verdict.facts else { return StoredJudgement::Unscored };
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
