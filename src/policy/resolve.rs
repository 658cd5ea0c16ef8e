//! Checks the configured rules against the detectors.

use super::error::PolicyError;
use super::{
    BankRule, DEFAULT_MIN_QUALITY, Distances, Policy, Rule, RuleSubject, ScoreRule, Thresholds, quoted, usual_label,
};
use crate::config::{Config, PolicyConfig, RuleConfig};
use crate::detector::Detector;

/// What rules are checked against.
pub(super) struct Resolver<'a> {
    pub config: &'a Config,
    pub detectors: &'a [Detector],
}

impl Resolver<'_> {
    /// `[policy]`. Where it has no rule and there is a single detector, `may_default` allows the default rule.
    pub(super) fn policy(&self, may_default: bool) -> Result<Policy, PolicyError> {
        let config = &self.config.policy;
        let judged: Vec<&Detector> = self.detectors.iter().filter(|detector| !detector.shadow).collect();
        if config.rules.is_empty() && may_default && judged.len() == 1 {
            let ScoreRule { detector, label, thresholds } = self.default_rule(config, judged[0])?;
            let rule = Rule::new(&detector, &label, thresholds);
            return Ok(Policy::new(&config.name, vec![rule], config.damaged, true));
        }
        Ok(Policy::new(&config.name, self.rules(&config.rules, "policy.rules")?, config.damaged, false))
    }

    /// The rules of the list at `path`.
    pub(super) fn rules(&self, rules: &[RuleConfig], path: &str) -> Result<Vec<Rule>, PolicyError> {
        let resolve = |(index, rule): (usize, &RuleConfig)| {
            self.rule(rule).map_err(|error| error.at(&format!("{path}[{index}]"), &self.config.origins))
        };
        rules.iter().enumerate().map(resolve).collect()
    }

    fn rule(&self, rule: &RuleConfig) -> Result<Rule, PolicyError> {
        let RuleConfig { evidence, note_from, review_from, flag_from, allow_unsigned, .. } = rule;
        let is_evidence = [evidence, note_from, review_from, flag_from].iter().any(|key| key.is_some());
        if is_evidence || allow_unsigned.is_some() {
            return Err(PolicyError::NotAvailable("evidence"));
        }
        if let Some(category) = rule.category.as_deref().filter(|category| !is_category(category)) {
            return Err(PolicyError::Category(category.into()));
        }
        let severity = rule.severity.map(|severity| match u8::try_from(severity) {
            Ok(valid @ 1..=5) => Ok(valid),
            _ => Err(PolicyError::Severity(severity)),
        });
        let severity = severity.transpose()?;
        let subject = match &rule.bank {
            Some(bank) => RuleSubject::Bank(known(bank, rule)?),
            None => RuleSubject::Score(self.scored(rule)?),
        };
        Ok(Rule { name: rule.name.clone(), category: rule.category.clone(), severity, subject })
    }

    /// A rule over a detector's score.
    fn scored(&self, rule: &RuleConfig) -> Result<ScoreRule, PolicyError> {
        let RuleConfig { note_within, review_within, flag_within, min_quality, .. } = rule;
        if [note_within, review_within, flag_within, min_quality].iter().any(|key| key.is_some()) {
            return Err(PolicyError::NoBank);
        }
        let known = || quoted(self.detectors.iter().map(|detector| detector.name.as_str()));
        let name = rule.detector.clone().ok_or_else(|| PolicyError::NoDetector { known: known() })?;
        let detector = self.detectors.iter().find(|detector| detector.name == name);
        let detector = detector.ok_or_else(|| PolicyError::UnknownDetector { detector: name, known: known() })?;
        if detector.shadow {
            return Err(PolicyError::Shadow { detector: detector.name.clone() });
        }
        let thresholds = Thresholds { note_at: rule.note_at, review_at: rule.review_at, flag_at: rule.flag_at };
        scored(detector, rule.label.as_deref().unwrap_or_default(), thresholds)
    }

    fn default_rule(&self, config: &PolicyConfig, detector: &Detector) -> Result<ScoreRule, PolicyError> {
        let at = |path: &'static str| move |error: PolicyError| error.at(path, &self.config.origins);
        let label = match config.label.as_str() {
            "" => usual_label(detector).ok_or_else(|| {
                at("detectors")(PolicyError::NoUsualLabel {
                    detector: detector.name.clone(),
                    labels: labels_of(detector),
                })
            })?,
            named => named,
        };
        let thresholds = Thresholds { note_at: None, review_at: Some(config.review_at), flag_at: Some(config.flag_at) };
        scored(detector, label, thresholds).map_err(|error| match error {
            PolicyError::Thresholds { .. } => at("policy.flag_at")(error),
            error => at("policy.label")(error),
        })
    }

    /// The first detector that is no shadow and that no rule judges.
    pub(super) fn refuse_unjudged<'p>(
        &self,
        policies: impl Iterator<Item = &'p Policy> + Clone,
    ) -> Result<(), PolicyError> {
        let mut judged = self.detectors.iter().filter(|detector| !detector.shadow);
        let is_unjudged = |detector: &&Detector| {
            let mut rules = policies.clone().flat_map(|policy| policy.rules.iter().filter_map(Rule::score));
            rules.all(|rule| rule.detector != detector.name)
        };
        match judged.find(is_unjudged) {
            Some(detector) => {
                let error = PolicyError::Unjudged { detector: detector.name.clone(), labels: labels_of(detector) };
                Err(error.at("detectors", &self.config.origins))
            }
            None => Ok(()),
        }
    }
}

/// A rule for a label of a detector.
fn scored(detector: &Detector, label: &str, thresholds: Thresholds) -> Result<ScoreRule, PolicyError> {
    if !detector.labels.iter().any(|known| known == label) {
        return Err(PolicyError::UnknownLabel {
            detector: detector.name.clone(),
            label: label.into(),
            known: labels_of(detector),
        });
    }
    if !thresholds.are_valid() {
        let Thresholds { note_at, review_at, flag_at } = thresholds;
        let given = [("note_at", note_at), ("review_at", review_at), ("flag_at", flag_at)];
        let given: Vec<_> =
            given.into_iter().filter_map(|(name, value)| Some(format!("{name} = {}", value?))).collect();
        let given = if given.is_empty() { "none".into() } else { given.join(", ") };
        return Err(PolicyError::Thresholds { detector: detector.name.clone(), label: label.into(), given });
    }
    Ok(ScoreRule { detector: detector.name.clone(), label: label.into(), thresholds })
}

/// A rule over a bank. Whether the bank exists is known only to the ledger.
fn known(bank: &str, rule: &RuleConfig) -> Result<BankRule, PolicyError> {
    let RuleConfig { detector, label, note_at, review_at, flag_at, note_within, review_within, flag_within, .. } = rule;
    if detector.is_some() || label.is_some() || [note_at, review_at, flag_at].iter().any(|key| key.is_some()) {
        return Err(PolicyError::TwoSubjects { bank: bank.into() });
    }
    let distances = Distances { note_within: *note_within, review_within: *review_within, flag_within: *flag_within };
    if !distances.are_valid() {
        let given = [("flag_within", flag_within), ("review_within", review_within), ("note_within", note_within)];
        let given: Vec<_> =
            given.iter().filter_map(|(name, value)| Some(format!("{name} = {}", value.as_ref()?))).collect();
        return Err(PolicyError::Distances { bank: bank.into(), given: given.join(", ") });
    }
    let min_quality = match rule.min_quality {
        None => DEFAULT_MIN_QUALITY,
        Some(quality) => u8::try_from(quality)
            .ok()
            .filter(|quality| *quality <= 100)
            .ok_or_else(|| PolicyError::MinQuality { bank: bank.into(), given: quality })?,
    };
    Ok(BankRule { bank: bank.into(), distances, min_quality })
}

fn labels_of(detector: &Detector) -> String {
    quoted(detector.labels.iter().map(String::as_str))
}

/// Whether a text is a category: a path of lower-case words.
pub(crate) fn is_category(path: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b))
    };
    path.len() <= 200 && path.split('/').all(is_part)
}
