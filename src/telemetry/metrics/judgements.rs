//! What the traffic looks like to detectors and policies. The series follow from the configuration, so they are looked up
//! once, at the start; recording a verdict looks no label up and allocates nothing for a rule with a name.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};

use super::labels::{DetectorName, PolicyName, RuleText, ScoreLabel};
use super::table;
use super::typed::{CounterSeries, HistogramSeries};
use crate::job::{DAMAGE, Facts, FindingOutcome, Judgement, Outcome};

/// A detector with more labels has no series for the labels that no rule names: each series has 20 buckets.
const MAX_LABELS: usize = 20;

/// A policy whose judgements are counted.
#[derive(Debug)]
pub struct CountedPolicy<'a> {
    pub name: &'a str,
    pub rules: Vec<CountedRule<'a>>,
}

/// A rule whose findings are counted.
#[derive(Debug)]
pub struct CountedRule<'a> {
    /// Its name, or else what it looks at.
    pub text: Cow<'a, str>,
    /// Detector and label, where it looks at a score.
    pub score: Option<(&'a str, &'a str)>,
}

/// The series of all judgements of this process.
pub struct JudgementMetrics {
    /// Detector and label of each histogram.
    scores: Vec<(String, String, HistogramSeries)>,
    /// By name.
    policies: HashMap<String, PolicySeries>,
}

struct PolicySeries {
    judgements: CounterSeries,
    /// By the rule's text, in the order of [`FindingOutcome::ALL`].
    rules: HashMap<String, [CounterSeries; 3]>,
}

impl JudgementMetrics {
    /// Shows every series at zero. `detectors` are names with labels.
    #[must_use]
    pub fn start<'a>(
        detectors: impl IntoIterator<Item = (&'a str, &'a [String])>,
        policies: &[CountedPolicy<'a>],
    ) -> Self {
        let rules = policies.iter().flat_map(|policy| &policy.rules);
        let named: BTreeSet<(&str, &str)> = rules.filter_map(|rule| rule.score).collect();
        let mut scores = Vec::new();
        for (detector, labels) in detectors {
            let are_few = labels.len() <= MAX_LABELS;
            for label in labels.iter().filter(|label| are_few || named.contains(&(detector, label.as_str()))) {
                let series = (DetectorName(detector.into()), ScoreLabel(label.clone()));
                scores.push((detector.to_owned(), label.clone(), table::SCORES_OF_LABEL.series(series)));
            }
        }
        let policies = policies.iter().map(|policy| (policy.name.to_owned(), PolicySeries::start(policy))).collect();
        Self { scores, policies }
    }

    /// A verdict was committed for the first time. Its judgement counts if a policy made it.
    pub fn record(&self, policy: &str, facts: Option<&Facts>, judgement: &Judgement) {
        let Some(facts) = facts else { return };
        for (detector, label, series) in &self.scores {
            if let Some(score) = facts.score(detector, label) {
                series.record(f64::from(score));
            }
        }
        let is_judged = matches!(judgement.outcome, Outcome::Passed | Outcome::Review | Outcome::Flagged);
        if let Some(policy) = self.policies.get(policy).filter(|_| is_judged) {
            policy.record(judgement);
        }
    }
}

impl PolicySeries {
    fn start(policy: &CountedPolicy<'_>) -> Self {
        let name = || PolicyName(policy.name.into());
        let series = |text: &str| {
            FindingOutcome::ALL.map(|outcome| table::FINDINGS.series((name(), RuleText(text.into()), outcome)))
        };
        let texts = policy.rules.iter().map(|rule| rule.text.as_ref()).chain([DAMAGE]);
        Self {
            judgements: table::JUDGEMENTS.series(name()),
            rules: texts.map(|text| (text.to_owned(), series(text))).collect(),
        }
    }

    /// Counts the judgement, and each rule once by its strongest finding: rules of one text share their series, and a share
    /// of more than all would mean nothing.
    fn record(&self, judgement: &Judgement) {
        self.judgements.increment();
        for (index, finding) in judgement.findings.iter().enumerate() {
            let text = finding.rule_text();
            let is_repeated = judgement.findings[..index].iter().any(|stronger| stronger.rule_text() == text);
            if let Some(series) = self.rules.get(text.as_ref()).filter(|_| !is_repeated) {
                series[finding.outcome as usize].increment();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};

    use super::super::typed::MetricKind;
    use super::*;
    use crate::job::{Finding, FindingSource, Scores};

    fn finding(rule: Option<&str>, label: &str, outcome: FindingOutcome) -> Finding {
        Finding {
            rule: rule.map(str::to_owned),
            detector: Some("d".into()),
            label: Some(label.into()),
            score: Some(0.9),
            threshold: Some(0.5),
            ..Finding::new(FindingSource::Detector, outcome)
        }
    }

    fn rule<'a>(text: &'a str, label: &'a str) -> CountedRule<'a> {
        CountedRule { text: text.into(), score: Some(("d", label)) }
    }

    #[test]
    fn a_verdict_counts_its_scores_its_policy_and_each_rule_once() {
        let MetricKind::Histogram(buckets) = table::SCORES_OF_LABEL.metric.kind else { panic!("no histogram") };
        let scores_only = Matcher::Full(table::SCORES_OF_LABEL.metric.name.into());
        let builder = PrometheusBuilder::new().set_buckets_for_metric(scores_only, buckets).unwrap();
        let recorder = builder.build_recorder();
        let labels = ["ai", "nude"].map(str::to_owned);
        let many: Vec<String> = (0..21).map(|n| format!("class {n}")).collect();
        let rules = vec![
            rule("made", "ai"),
            rule("d says \"nude\"", "nude"),
            CountedRule { text: "seven".into(), score: Some(("many", "class 7")) },
        ];
        let policies =
            [CountedPolicy { name: "p", rules }, CountedPolicy { name: "q", rules: vec![rule("made", "ai")] }];
        let scores = |p: f32| Scores::from([("d".to_owned(), [("ai".to_owned(), p), ("nude".to_owned(), 0.1)].into())]);
        let judged = |outcome, findings| Judgement { outcome, reason: None, label: None, score: None, findings };
        metrics::with_local_recorder(&recorder, || {
            let detectors = [("d", &labels[..]), ("many", &many[..])];
            let series = JudgementMetrics::start(detectors, &policies);
            let scrape = recorder.handle().render();
            let from_the_start = "pixwarden_findings_total{policy=\"q\",rule=\"made\",outcome=\"flagged\"} 0";
            assert!(scrape.contains(from_the_start), "{scrape}");

            let findings = vec![
                finding(Some("made"), "ai", FindingOutcome::Flagged),
                finding(Some("made"), "nude", FindingOutcome::Review),
                finding(None, "nude", FindingOutcome::Noted),
            ];
            series.record("p", Some(&Facts::of_one_view(scores(0.97))), &judged(Outcome::Flagged, findings));
            series.record("p", Some(&Facts::of_one_view(scores(0.02))), &judged(Outcome::Passed, Vec::new()));
            // No policy has judged these.
            series.record("p", Some(&Facts::of_one_view(scores(0.5))), &Judgement::unscored(Outcome::Rejected, "no"));
            series.record("p", None, &Judgement::unscored(Outcome::Missing, "no"));
        });
        let scrape = recorder.handle().render();
        for line in [
            "pixwarden_judgements_total{policy=\"p\"} 2",
            "pixwarden_judgements_total{policy=\"q\"} 0",
            "pixwarden_findings_total{policy=\"p\",rule=\"made\",outcome=\"flagged\"} 1",
            "pixwarden_findings_total{policy=\"p\",rule=\"made\",outcome=\"review\"} 0",
            "pixwarden_findings_total{policy=\"p\",rule=\"d says \\\"nude\\\"\",outcome=\"noted\"} 1",
        ] {
            assert!(scrape.contains(&format!("{line}\n")), "{line}: {scrape}");
        }
        for (series, count) in [
            ("detector=\"d\",label=\"ai\",le=\"0.05\"", 1),
            ("detector=\"d\",label=\"ai\",le=\"0.95\"", 2),
            ("detector=\"d\",label=\"ai\",le=\"1\"", 3),
            ("detector=\"d\",label=\"nude\",le=\"+Inf\"", 3),
            ("detector=\"many\",label=\"class 7\",le=\"+Inf\"", 0),
        ] {
            assert!(scrape.contains(&format!("pixwarden_scores_bucket{{{series}}} {count}\n")), "{series}: {scrape}");
        }
        assert!(!scrape.contains("class 8"), "no rule names it: {scrape}");
    }
}
