//! The policies of a deployment, and which of them judges a job.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::Value;
use wildmatch::WildMatch;

use super::error::PolicyError;
use super::resolve::Resolver;
use super::{DamagedOutcome, Policy, Rule, ScoreRule, quoted};
use crate::config::{AnyOf, Config, RuleConfig, WhenConfig};
use crate::detector::Detector;
use crate::job::{BankKind, Lane, Verdict};

/// What decides which policy judges an image.
#[derive(Debug, Clone, Copy)]
pub struct ImageContext<'a> {
    /// Empty for a file of a scan.
    pub bucket: &'a str,
    pub key: &'a str,
    pub lane: Lane,
    pub metadata: Option<&'a Value>,
}

impl<'a> ImageContext<'a> {
    /// What decided, and decides now, which policy judges the image of a verdict.
    #[must_use]
    pub fn of(verdict: &'a Verdict) -> Self {
        let Verdict { image, lane, metadata, .. } = verdict;
        Self { bucket: &image.bucket, key: &image.key, lane: *lane, metadata: metadata.as_ref() }
    }
}

/// All policies. The first one whose conditions hold judges a job, and `[policy]` judges what is left.
#[derive(Debug, Clone)]
pub struct PolicySet {
    scoped: Vec<ScopedPolicy>,
    fallback: Policy,
}

/// A policy for some jobs.
#[derive(Debug, Clone)]
struct ScopedPolicy {
    when: When,
    policy: Policy,
}

/// Conditions that must all hold. A list is empty where there is no such condition.
#[derive(Debug, Clone)]
struct When {
    buckets: Vec<WildMatch>,
    key_prefixes: Vec<String>,
    lanes: Vec<Lane>,
    metadata: Vec<(String, Vec<String>)>,
}

impl PolicySet {
    /// Checks all configured rules against the detectors. Where `[policy]` has no rule and there is a single detector,
    /// `may_default` allows the default rule.
    ///
    /// # Errors
    /// When a rule does not fit the detectors, a condition cannot be used, or a detector is judged by no rule and not marked
    /// as shadow.
    pub fn resolve(config: &Config, detectors: &[Detector], may_default: bool) -> Result<Self, PolicyError> {
        let resolver = Resolver { config, detectors };
        let fallback = resolver.policy(may_default)?;
        let mut scoped: Vec<ScopedPolicy> = Vec::new();
        for (index, entry) in config.policies.iter().enumerate() {
            let at = |key: &str, error: PolicyError| error.at(&format!("policies[{index}]{key}"), &config.origins);
            let has_name = |policy: &Policy| policy.reference.name == entry.name;
            if entry.name.is_empty() || has_name(&fallback) || scoped.iter().any(|other| has_name(&other.policy)) {
                return Err(at(".name", PolicyError::Name(entry.name.clone())));
            }
            if let Some(before) = scoped.last().filter(|before| before.when.holds_always()) {
                let before = before.policy.reference.name.clone();
                return Err(at("", PolicyError::NeverHolds { policy: entry.name.clone(), before }));
            }
            let when = When::of(&entry.when, config.trusted_metadata).map_err(|error| at(".when", error))?;
            let mut rules = resolver.rules(&entry.rules, &format!("policies[{index}].rules"))?;
            if entry.inherit {
                rules.extend(fallback.rules.iter().cloned());
            }
            let inherited = if entry.inherit { fallback.damaged } else { DamagedOutcome::Review };
            let policy = Policy::new(&entry.name, rules, entry.damaged.unwrap_or(inherited), false);
            scoped.push(ScopedPolicy { when, policy });
        }
        let policies = Self { scoped, fallback };
        resolver.refuse_unjudged(policies.that_can_hold())?;
        Ok(policies)
    }

    /// Refuses a policy that judges nothing: everything that it holds for would pass. An evaluation needs no rule.
    ///
    /// # Errors
    /// When a policy that can apply has no rule.
    pub(crate) fn require_rules(&self, config: &Config, detectors: &[Detector]) -> Result<(), PolicyError> {
        if self.all().all(|policy| policy.rules.is_empty()) {
            let shadows = quoted(detectors.iter().map(|detector| detector.name.as_str()));
            return Err(PolicyError::JudgesNothing { shadows }.at("detectors", &config.origins));
        }
        if let Some(index) = self.scoped.iter().position(|scoped| scoped.policy.rules.is_empty()) {
            let policy = self.scoped[index].policy.reference.name.clone();
            let error = PolicyError::NoRule { policy, other: ", or set `inherit = true`" };
            return Err(error.at(&format!("policies[{index}]"), &config.origins));
        }
        if self.can_fall_back() && self.fallback.rules.is_empty() {
            let policy = self.fallback.reference.name.clone();
            let other = ", or give the last one of `[[policies]]` no `when`, so that it holds for all other jobs";
            return Err(PolicyError::NoRule { policy, other }.at("policy", &config.origins));
        }
        Ok(())
    }

    /// Refuses rules that do not fit the banks of the ledger.
    ///
    /// # Errors
    /// When a rule names a bank that is not there or says what its kind cannot mean, and when a policy only allows.
    pub(crate) fn require_banks(&self, config: &Config, banks: &BTreeMap<String, BankKind>) -> Result<(), PolicyError> {
        let lists = config.policies.iter().enumerate();
        let lists = lists.map(|(index, policy)| (format!("policies[{index}].rules"), &policy.rules));
        for (path, rules) in [("policy.rules".to_owned(), &config.policy.rules)].into_iter().chain(lists) {
            for (index, rule) in rules.iter().enumerate() {
                let Some(bank) = &rule.bank else { continue };
                if let Some(error) = why_unfit(rule, bank, banks) {
                    return Err(error.at(&format!("{path}[{index}]"), &config.origins));
                }
            }
        }
        let allows = |rule: &Rule| rule.bank().is_some_and(|rule| banks.get(&rule.bank) == Some(&BankKind::Allow));
        match self.that_can_hold().find(|policy| policy.rules.iter().all(allows)) {
            Some(policy) => Err(PolicyError::OnlyAllows { policy: policy.reference.name.clone() }),
            None => Ok(()),
        }
    }

    /// The names of all banks that a policy asks.
    pub(crate) fn banks(&self) -> BTreeSet<&str> {
        self.all().flat_map(Policy::bank_rules).map(|rule| rule.bank.as_str()).collect()
    }

    /// The policy that judges an image.
    #[must_use]
    pub fn policy_for(&self, image: &ImageContext<'_>) -> &Policy {
        let scoped = self.scoped.iter().find(|scoped| scoped.when.holds(image));
        scoped.map_or(&self.fallback, |scoped| &scoped.policy)
    }

    /// `[policy]`: what judges a job that no other policy holds for.
    #[must_use]
    pub fn fallback(&self) -> &Policy {
        &self.fallback
    }

    /// Whether `[policy]` judges any job.
    fn can_fall_back(&self) -> bool {
        !self.scoped.iter().any(|scoped| scoped.when.holds_always())
    }

    /// The policies that judge any job.
    fn that_can_hold(&self) -> impl Iterator<Item = &Policy> + Clone {
        self.all().take(self.scoped.len() + usize::from(self.can_fall_back()))
    }

    /// For each policy of [`PolicySet::all`] the jobs that it holds for, as text.
    pub(crate) fn conditions(&self) -> impl Iterator<Item = String> {
        let rest = match self.can_fall_back() {
            _ if self.scoped.is_empty() => "every job",
            true => "every other job",
            false => "no job",
        };
        self.scoped.iter().map(|scoped| scoped.when.to_string()).chain([rest.to_owned()])
    }

    /// The SHA-256 and the canonical text of each policy.
    pub(crate) fn texts(&self) -> Vec<(String, String)> {
        self.all().map(|policy| (policy.reference.sha256.clone(), policy.canonical_text())).collect()
    }

    /// Logs the default rule, where it judges.
    pub(crate) fn log(&self) {
        if !self.fallback.is_default {
            return;
        }
        for ScoreRule { detector, label, thresholds } in self.fallback.rules.iter().filter_map(Rule::score) {
            tracing::info!(
                detector,
                label,
                review_at = thresholds.review_at.map(tracing::field::display),
                flag_at = thresholds.flag_at.map(tracing::field::display),
                "no policy is configured, using the default rule"
            );
        }
    }

    /// The policies in the order in which they are tried.
    pub fn all(&self) -> impl Iterator<Item = &Policy> + Clone {
        self.scoped.iter().map(|scoped| &scoped.policy).chain([&self.fallback])
    }
}

/// What is wrong with a rule over a bank, among these banks.
fn why_unfit(rule: &RuleConfig, bank: &str, banks: &BTreeMap<String, BankKind>) -> Option<PolicyError> {
    let RuleConfig { note_within, review_within, flag_within, category, .. } = rule;
    let bank = bank.to_owned();
    match banks.get(&bank) {
        None => {
            let known = if banks.is_empty() { "none".into() } else { quoted(banks.keys().map(String::as_str)) };
            Some(PolicyError::UnknownBank { bank, known: format!("has {known}") })
        }
        Some(BankKind::Deny) if [note_within, review_within, flag_within].iter().all(|key| key.is_none()) => {
            Some(PolicyError::NoDistance { bank })
        }
        Some(BankKind::Allow) if category.is_none() => Some(PolicyError::AllowsEverything { bank }),
        Some(BankKind::Allow) if note_within.is_some() || flag_within.is_some() => {
            Some(PolicyError::AllowDistances { bank })
        }
        Some(_) => None,
    }
}

impl When {
    fn of(config: &WhenConfig, trusted_metadata: bool) -> Result<Self, PolicyError> {
        let WhenConfig { bucket: AnyOf(buckets), key_prefix: AnyOf(key_prefixes), lane: AnyOf(lanes), metadata } =
            config;
        if !metadata.is_empty() && !trusted_metadata {
            return Err(PolicyError::UntrustedMetadata);
        }
        let lane = |name: &String| {
            let found = Lane::ALL.into_iter().find(|lane| lane.as_str() == name);
            found.ok_or_else(|| PolicyError::Lane(name.clone()))
        };
        Ok(Self {
            buckets: buckets.iter().map(|bucket| WildMatch::new(bucket)).collect(),
            key_prefixes: key_prefixes.clone(),
            lanes: lanes.iter().map(lane).collect::<Result<_, _>>()?,
            metadata: metadata.iter().map(|(field, AnyOf(values))| (field.clone(), values.clone())).collect(),
        })
    }

    fn holds(&self, image: &ImageContext<'_>) -> bool {
        let any = |are_none: bool, holds: bool| are_none || holds;
        any(self.buckets.is_empty(), self.buckets.iter().any(|pattern| pattern.matches(image.bucket)))
            && any(self.key_prefixes.is_empty(), self.key_prefixes.iter().any(|text| image.key.starts_with(text)))
            && any(self.lanes.is_empty(), self.lanes.contains(&image.lane))
            && self.metadata.iter().all(|(field, values)| {
                let given = image.metadata.and_then(|metadata| metadata.get(field)).and_then(text);
                given.is_some_and(|given| values.contains(&given))
            })
    }

    fn holds_always(&self) -> bool {
        self.buckets.is_empty() && self.key_prefixes.is_empty() && self.lanes.is_empty() && self.metadata.is_empty()
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let any_of = |values: &[String]| {
            let quoted: Vec<_> = values.iter().map(|value| format!("\"{value}\"")).collect();
            quoted.join(" or ")
        };
        let buckets: Vec<String> = self.buckets.iter().map(|pattern| pattern.pattern()).collect();
        let lanes: Vec<String> = self.lanes.iter().map(|lane| lane.as_str().to_owned()).collect();
        let named = [("bucket", &buckets), ("key begins with", &self.key_prefixes), ("lane", &lanes)];
        let named = named.into_iter().map(|(name, values)| (name.to_owned(), values));
        let metadata = self.metadata.iter().map(|(field, values)| (format!("metadata.{field}"), values));
        let all = named.filter(|(_, values)| !values.is_empty()).chain(metadata);
        let all: Vec<_> = all.map(|(name, values)| format!("{name} {}", any_of(values))).collect();
        f.write_str(&if all.is_empty() { "every job".to_owned() } else { all.join(", ") })
    }
}

/// A field of the metadata as text, if it is a text, a number, or true or false.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::{PolicyConfig, RuleConfig};
    use crate::policy::tests::detector;

    fn with_rules(rules: &[RuleConfig]) -> Config {
        Config { policy: PolicyConfig { rules: rules.to_vec(), ..PolicyConfig::default() }, ..Config::default() }
    }

    fn config(text: &str) -> Config {
        let table: toml::Table = toml::from_str(text).unwrap();
        table.try_into().unwrap()
    }

    fn error(config: &Config, detectors: &[Detector], may_default: bool) -> PolicyError {
        PolicySet::resolve(config, detectors, may_default).unwrap_err().without_place()
    }

    #[test]
    fn a_policy_never_fails_open() {
        let d = [detector("d", &["by human", "by AI"])];
        let rule = |detector: &str, label: &str, review_at: f32, flag_at: f32| {
            with_rules(&[RuleConfig::new(detector, label, review_at, flag_at)])
        };
        assert!(matches!(error(&rule("e", "by AI", 0.5, 0.9), &d, true), PolicyError::UnknownDetector { .. }));
        assert!(matches!(error(&rule("d", "by ai", 0.5, 0.9), &d, true), PolicyError::UnknownLabel { .. }));
        for (review_at, flag_at) in [(0.9, 0.5), (-0.1, 0.5), (0.5, 1.1), (f32::NAN, 0.9), (0.5, f32::NAN)] {
            assert!(matches!(error(&rule("d", "by AI", review_at, flag_at), &d, true), PolicyError::Thresholds { .. }));
        }
        let no_threshold = RuleConfig { review_at: None, flag_at: None, ..RuleConfig::new("d", "by AI", 0.0, 0.0) };
        let refused = error(&with_rules(&[no_threshold]), &d, true);
        assert!(refused.to_string().ends_with("but has none"), "{refused}");
        let two = [d[0].clone(), detector("e", &["x", "y"])];
        assert!(matches!(error(&rule("d", "by AI", 0.5, 0.9), &two, true), PolicyError::Unjudged { .. }));
        assert!(matches!(error(&Config::default(), &two, true), PolicyError::Unjudged { .. }));
        assert!(matches!(error(&Config::default(), &two[1..], true), PolicyError::NoUsualLabel { .. }));
        assert!(matches!(error(&Config::default(), &d, false), PolicyError::Unjudged { .. }));
        let shadow = [Detector { shadow: true, ..d[0].clone() }];
        assert!(matches!(error(&rule("d", "by AI", 0.5, 0.9), &shadow, true), PolicyError::Shadow { .. }));
        let config = Config::default();
        let without_rules = PolicySet::resolve(&config, &shadow, true).unwrap();
        assert!(matches!(without_rules.require_rules(&config, &shadow), Err(PolicyError::JudgesNothing { .. })));
        let judging = PolicySet::resolve(&config, &d, true).unwrap();
        assert!(judging.require_rules(&config, &d).is_ok());
    }

    #[test]
    fn what_is_wrong_with_a_rule_is_said() {
        let d = [detector("d", &["by human", "by AI"])];
        let one = RuleConfig::new("d", "by AI", 0.5, 0.9);
        let bank = RuleConfig { bank: Some("known".into()), ..RuleConfig::default() };
        for (rule, expected) in [
            (RuleConfig { detector: None, ..one.clone() }, "names no detector\n  hint: set `detector` to one of \"d\""),
            (
                RuleConfig { category: Some("Sexual nudity".into()), ..one.clone() },
                "is not a path such as sexual/nudity",
            ),
            (RuleConfig { category: Some("a//b".into()), ..one.clone() }, "is not a path such as sexual/nudity"),
            (RuleConfig { severity: Some(6), ..one.clone() }, "the severity 6 is not a whole number from 1 to 5"),
            (
                RuleConfig { evidence: Some("generated".into()), ..one.clone() },
                "`evidence` is not available in this build",
            ),
            (RuleConfig { bank: Some("known".into()), ..one.clone() }, "also names a detector, a label or a threshold"),
            (RuleConfig { flag_within: Some(31), ..one.clone() }, "the rule names none\n  hint: set `bank`"),
            (RuleConfig { flag_within: Some(32), ..bank.clone() }, "note_within <= 31, but has flag_within = 32"),
            (
                RuleConfig { flag_within: Some(9), review_within: Some(8), ..bank.clone() },
                "but has flag_within = 9, review_within = 8",
            ),
            (RuleConfig { min_quality: Some(101), ..bank.clone() }, "not a whole number from 0 to 100"),
        ] {
            let error = error(&with_rules(&[rule]), &d, true).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn rules_over_banks_fit_the_banks_of_the_ledger() {
        let refused = |rules: &str, banks: &[(&str, BankKind)]| {
            let judging = "[[policy.rules]]\ndetector = \"d\"\nlabel = \"by AI\"\nflag_at = 0.9\n";
            let config = config(&format!("{judging}{rules}"));
            let policies = PolicySet::resolve(&config, &[detector("d", &["by human", "by AI"])], true).unwrap();
            let banks = banks.iter().map(|(name, kind)| ((*name).to_owned(), *kind)).collect();
            policies.require_banks(&config, &banks).err().map(|error| error.without_place().to_string())
        };
        let deny = "[[policy.rules]]\nbank = \"known\"\nflag_within = 31\n";
        assert_eq!(refused(deny, &[("known", BankKind::Deny)]), None);
        let unknown = refused(deny, &[("other", BankKind::Deny)]).unwrap();
        assert!(unknown.contains("the bank \"known\", but the ledger has \"other\""), "{unknown}");
        let unknown = refused(deny, &[]).unwrap();
        assert!(unknown.contains("but the ledger has none\n  hint: pixwarden bank create known"), "{unknown}");
        let none = refused("[[policy.rules]]\nbank = \"known\"\n", &[("known", BankKind::Deny)]).unwrap();
        assert!(none.contains("needs at least one of"), "{none}");

        let allow = "[[policy.rules]]\nbank = \"known\"\ncategory = \"sexual\"\nreview_within = 10\n";
        assert_eq!(refused(allow, &[("known", BankKind::Allow)]), None);
        let flags = refused(&allow.replace("review", "flag"), &[("known", BankKind::Allow)]).unwrap();
        assert!(flags.contains("review_within only"), "{flags}");
        let all = refused("[[policy.rules]]\nbank = \"known\"\n", &[("known", BankKind::Allow)]).unwrap();
        assert!(all.contains("has no category"), "{all}");
    }

    #[test]
    fn a_policy_whose_only_rules_allow_judges_nothing() {
        let rules = "[[policy.rules]]\nbank = \"known\"\ncategory = \"sexual\"\n";
        let config = config(rules);
        let shadow = [Detector { shadow: true, ..detector("d", &["by human", "by AI"]) }];
        let policies = PolicySet::resolve(&config, &shadow, true).unwrap();
        let banks = |kind| BTreeMap::from([("known".to_owned(), kind)]);
        let error = policies.require_banks(&config, &banks(BankKind::Allow)).unwrap_err();
        assert!(matches!(error, PolicyError::OnlyAllows { .. }), "{error}");
    }

    #[test]
    fn a_hint_lists_all_labels_and_a_pasted_rule_is_refused_until_one_is_chosen() {
        let detectors = [detector("moderation", &["safe", "violence", "nudity"])];
        let hint = error(&Config::default(), &detectors, false).to_string();
        assert!(hint.contains("hint: its labels are \"safe\", \"violence\", \"nudity\""), "{hint}");
        let from = hint.find("[[policy.rules]]").unwrap();
        let pasted = config(&hint[from..hint.find("\n  or set").unwrap()]);
        let refused = error(&pasted, &detectors, false);
        assert!(matches!(&refused, PolicyError::UnknownLabel { label, .. } if label.is_empty()), "{refused}");
    }

    #[test]
    fn a_single_detector_gets_a_default_rule_that_is_marked_as_such() {
        let detectors = [detector("d", &["by human", "by AI"])];
        let policies = PolicySet::resolve(&Config::default(), &detectors, true).unwrap();
        assert!(policies.fallback().is_default);
        let rules = with_rules(&[RuleConfig::new("d", "by AI", 0.5, 0.9)]);
        let configured = PolicySet::resolve(&rules, &detectors, true).unwrap();
        assert_eq!(policies.fallback().rules, configured.fallback().rules);
    }

    const TENANTS: &str = r#"
        trusted_metadata = true
        [[policy.rules]]
        detector = "d"
        label = "by AI"
        flag_at = 0.9
        [[policies]]
        name = "art"
        when = { bucket = "art-*", lane = "live" }
        rules = [{ detector = "d", label = "by AI", note_at = 0.5 }]
        [[policies]]
        name = "kids"
        inherit = true
        when.key_prefix = ["kids/", "100%_*/"]
        rules = [{ detector = "d", label = "by human", review_at = 0.5 }]
        [[policies]]
        name = "partner"
        when.metadata = { tenant = ["p1", "7"], trial = "false" }
        rules = [{ detector = "d", label = "by AI", review_at = 0.1 }]
    "#;

    #[test]
    fn the_first_policy_whose_conditions_hold_judges() {
        let policies = PolicySet::resolve(&config(TENANTS), &[detector("d", &["by human", "by AI"])], true).unwrap();
        let metadata = json!({"tenant": 7, "trial": false, "other": null});
        let chosen = |bucket: &str, key: &str, lane: Lane, metadata: Option<&Value>| {
            policies.policy_for(&ImageContext { bucket, key, lane, metadata }).reference.name.clone()
        };
        assert_eq!(chosen("art-1", "k", Lane::Live, None), "art");
        assert_eq!(chosen("art-1", "k", Lane::Backfill, None), "default");
        assert_eq!(chosen("art-1", "kids/k", Lane::Live, Some(&metadata)), "art", "the first one");
        assert_eq!(chosen("b", "kids/k", Lane::Live, Some(&metadata)), "kids");
        assert_eq!(chosen("b", "100%_*/k", Lane::Live, None), "kids", "a prefix is taken literally");
        assert_eq!(chosen("b", "100abc/k", Lane::Live, None), "default");
        assert_eq!(chosen("b", "photos/kids/k", Lane::Live, None), "default", "only the beginning of a key counts");
        assert_eq!(chosen("b", "k", Lane::Live, Some(&metadata)), "partner");
        for other in
            [json!({"tenant": "p1"}), json!({"tenant": "p2", "trial": false}), json!({"tenant": ["p1"]}), json!(7)]
        {
            assert_eq!(chosen("b", "k", Lane::Live, Some(&other)), "default", "{other}");
        }
        let conditions: Vec<_> = policies.conditions().collect();
        assert_eq!(
            conditions,
            [
                "bucket \"art-*\", lane \"live\"",
                "key begins with \"kids/\" or \"100%_*/\"",
                "metadata.tenant \"p1\" or \"7\", metadata.trial \"false\"",
                "every other job",
            ]
        );
        let rules = |name: &str| policies.all().find(|policy| policy.reference.name == name).unwrap().rules.len();
        assert_eq!(["art", "kids", "partner", "default"].map(rules), [1, 2, 1, 1]);
    }

    #[test]
    fn what_would_let_senders_choose_or_judge_nothing_is_refused() {
        let detectors = [detector("d", &["by human", "by AI"])];
        let refused = |from: &str, to: &str| error(&config(&TENANTS.replace(from, to)), &detectors, true).to_string();
        assert!(refused("trusted_metadata = true", "").contains("`trusted_metadata = true`"));
        assert!(refused("\"live\"", "\"fast\"").contains("the lane \"fast\""));
        assert!(refused("\"kids\"", "\"art\"").contains("has \"art\""));
        assert!(refused("\"kids\"", "\"default\"").contains("has \"default\""));
        assert!(refused("name = \"kids\"", "").contains("has \"\""));

        let unready = |from: &str, to: &str| {
            let config = config(&TENANTS.replace(from, to));
            let policies = PolicySet::resolve(&config, &detectors, false).unwrap();
            policies.require_rules(&config, &detectors)
        };
        let rule = "rules = [{ detector = \"d\", label = \"by AI\", note_at = 0.5 }]";
        let empty = unready(rule, "").unwrap_err().to_string();
        assert!(empty.contains("\"art\" has no rule") && empty.contains("`inherit = true`"), "{empty}");
        let default_rule =
            "[[policy.rules]]\n        detector = \"d\"\n        label = \"by AI\"\n        flag_at = 0.9\n";
        let empty = unready(default_rule, "").unwrap_err().to_string();
        assert!(empty.contains("\"default\" has no rule") && empty.contains("no `when`"), "{empty}");
        assert!(unready("", "").is_ok());
        let for_all = TENANTS.replace("when = { bucket = \"art-*\", lane = \"live\" }", "");
        let dead = error(&config(&for_all), &detectors, true).to_string();
        assert!(dead.contains("\"kids\" never holds, because \"art\" before it has no `when`"), "{dead}");
        let only_art = &for_all[..for_all.find("[[policies]]\n        name = \"kids\"").unwrap()];
        let dead_rule = "[[policy.rules]]\ndetector = \"e\"\nlabel = \"nsfw\"\nflag_at = 0.9\n[[policies]]";
        let two = [detectors[0].clone(), detector("e", &["nsfw"])];
        let unjudged = error(&config(&only_art.replace("[[policies]]", dead_rule)), &two, true);
        assert!(matches!(&unjudged, PolicyError::Unjudged { detector, .. } if detector == "e"), "{unjudged}");

        let last = TENANTS
            .replace(default_rule, "")
            .replace("when.metadata = { tenant = [\"p1\", \"7\"], trial = \"false\" }", "");
        let last = config(&last);
        assert!(PolicySet::resolve(&last, &detectors, false).unwrap().require_rules(&last, &detectors).is_ok());
    }
}
