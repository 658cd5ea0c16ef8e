//! What the policies make of an image that was judged before.

use super::set::ImageContext;
use super::{Policy, PolicySet, judge};
use crate::job::{Judgement, Outcome, Verdict};

/// What the policy that holds for an image makes of its stored facts.
#[derive(Debug)]
pub(crate) enum StoredJudgement<'p> {
    /// Nothing was scored, because nothing could be shown. No policy changes that.
    Unscored,
    /// This policy has judged it before.
    Current,
    /// A fact is missing that one of the policy's rules needs. A rule whose fact is missing must never count as passed.
    Lacking,
    Judged(&'p Policy, Judgement),
}

impl PolicySet {
    /// Judges the stored facts of a verdict by the policy that holds for its image.
    #[must_use]
    pub(crate) fn judge_stored(&self, verdict: &Verdict) -> StoredJudgement<'_> {
        let policy = self.policy_for(&ImageContext::of(verdict));
        let Some(facts) = &verdict.facts else { return StoredJudgement::Unscored };
        if verdict.policy == policy.reference {
            return StoredJudgement::Current;
        }
        // An earlier release chose the frame of an animation by the policy of that day.
        let lacks_views = facts.views.is_none() && verdict.policy.sha256 != policy.reference.sha256;
        let judgement = judge::judge(policy, facts);
        let is_unusable = matches!(judgement.outcome, Outcome::Failed | Outcome::Rejected);
        if lacks_views || is_unusable || judge::missing_detector(policy, facts).is_some() {
            return StoredJudgement::Lacking;
        }
        StoredJudgement::Judged(policy, judgement)
    }
}
