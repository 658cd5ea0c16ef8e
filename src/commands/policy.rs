//! `pixwarden policy`: the policies as they were resolved, and why an image got what it got.

use std::ffi::OsString;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::console::{counted, note};
use super::options::{LedgerOption, PolicyOptions};
use super::output::{Format, Output};
use super::rejudge::refuse_unknown_policy;
use super::show;
use crate::banks::{self, AskedImage, CurrentBanks};
use crate::config::{Config, Overlay};
use crate::error_text;
use crate::job::{BankAnswers, Facts, Finding, Outcome, PolicyRef, Verdict, exact};
use crate::ledger::{self, Ledger};
use crate::policy::{BankRule, ImageContext, Policy, PolicySet, Rule, RuleSubject, judge};
use crate::screen::plan;

const POLICY_COLUMNS: [&str; 4] = ["policy", "when", "rules", "sha256"];
/// Those of scores, and behind them those of banks.
const RULE_COLUMNS: [&str; 14] = [
    "policy",
    "rule",
    "category",
    "severity",
    "detector",
    "label",
    "note_at",
    "review_at",
    "flag_at",
    "bank",
    "note_within",
    "review_within",
    "flag_within",
    "min_quality",
];
/// Where no policy has a rule over a bank.
const SCORE_RULE_COLUMNS: &[&str] = RULE_COLUMNS.split_at(9).0;
const EXPLAINED_COLUMNS: [&str; 9] =
    ["judged", "outcome", "policy", "rule", "detector", "label", "score", "reached", "threshold"];

/// Options of `policy`.
#[derive(Debug, Args)]
pub struct PolicyArguments {
    #[command(subcommand)]
    command: PolicyCommand,
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Check the configured policies against the detectors, and print which jobs each holds for
    Check(PrintOptions),
    /// Print the rules of each policy as they were resolved
    Show {
        /// Only the policy of this name
        #[arg(value_name = "NAME")]
        name: Option<String>,
        #[command(flatten)]
        options: PrintOptions,
    },
    /// Print what each rule made of an image: when it was judged, and by the configured policies now
    Explain {
        /// A job's id, an image as s3://bucket/key, content as sha256:HEX, a verdict's id, or the path of a scanned file
        #[arg(value_name = "JOB_ID|s3://BUCKET/KEY|sha256:HEX|VERDICT_ID|PATH")]
        subject: OsString,
        #[command(flatten)]
        options: PrintOptions,
        #[command(flatten)]
        ledger: LedgerOption,
    },
}

/// What every subcommand of `policy` takes.
#[derive(Debug, Args)]
struct PrintOptions {
    /// Output format
    #[arg(long, value_enum)]
    format: Option<Format>,
    #[command(flatten)]
    policy: PolicyOptions,
}

impl PolicyArguments {
    pub(super) fn overlay(&self, overlay: &mut Overlay) {
        let options = match &self.command {
            PolicyCommand::Check(options) | PolicyCommand::Show { options, .. } => options,
            PolicyCommand::Explain { options, ledger, .. } => {
                ledger.set(overlay);
                options
            }
        };
        options.policy.set(overlay);
    }
}

pub(super) async fn run(arguments: &PolicyArguments, config: &Config) -> anyhow::Result<u8> {
    match &arguments.command {
        PolicyCommand::Check(options) => check(config, Format::or_default(options.format))?,
        PolicyCommand::Show { name, options } => {
            print_rules(config, name.as_deref(), Format::or_default(options.format))?;
        }
        PolicyCommand::Explain { subject, options, .. } => {
            explain(config, subject, Format::or_default(options.format)).await?;
        }
    }
    Ok(0)
}

fn check(config: &Config, format: Format) -> anyhow::Result<()> {
    let (_, policies) = plan(config)?;
    let mut output = Output::new(format, &POLICY_COLUMNS)?;
    for (policy, when) in policies.all().zip(policies.conditions()) {
        let values =
            [json!(policy.reference.name), json!(when), json!(policy.rules.len()), json!(policy.reference.sha256)];
        output.row(&row(&POLICY_COLUMNS, values))?;
    }
    output.finish()?;
    note!("{}, in the order in which they are tried", counted(policies.all().count() as u64, "policy", "policies"));
    Ok(())
}

fn print_rules(config: &Config, name: Option<&str>, format: Format) -> anyhow::Result<()> {
    let (_, policies) = plan(config)?;
    let is_wanted = |policy: &&Policy| name.is_none_or(|name| policy.reference.name == name);
    if let Some(name) = name {
        refuse_unknown_policy(&policies, name)?;
    }
    let wanted: Vec<&Policy> = policies.all().filter(is_wanted).collect();
    let has_banks = wanted.iter().any(|policy| policy.bank_rules().next().is_some());
    let columns: &[&str] = if has_banks { &RULE_COLUMNS } else { SCORE_RULE_COLUMNS };
    let mut output = Output::new(format, columns)?;
    for policy in wanted {
        for rule in &policy.rules {
            let columns = columns.iter().map(|column| ((*column).to_owned(), Value::Null));
            let mut row: Map<String, Value> = columns.collect();
            row.extend(rule_values(policy, rule));
            output.row(&row)?;
        }
    }
    Ok(output.finish()?)
}

/// What a rule says, by column.
fn rule_values(policy: &Policy, rule: &Rule) -> impl Iterator<Item = (String, Value)> {
    let common = [
        ("policy", json!(policy.reference.name)),
        ("rule", json!(rule.name)),
        ("category", json!(rule.category)),
        ("severity", json!(rule.severity)),
    ];
    let specific = match &rule.subject {
        RuleSubject::Score(rule) => vec![
            ("detector", json!(rule.detector)),
            ("label", json!(rule.label)),
            ("note_at", json!(rule.thresholds.note_at.map(exact))),
            ("review_at", json!(rule.thresholds.review_at.map(exact))),
            ("flag_at", json!(rule.thresholds.flag_at.map(exact))),
        ],
        RuleSubject::Bank(rule) => vec![
            ("bank", json!(rule.bank)),
            ("note_within", json!(rule.distances.note_within)),
            ("review_within", json!(rule.distances.review_within)),
            ("flag_within", json!(rule.distances.flag_within)),
            ("min_quality", json!(rule.min_quality)),
        ],
    };
    common.into_iter().chain(specific).map(|(column, value)| (column.to_owned(), value))
}

async fn explain(config: &Config, subject: &OsString, format: Format) -> anyhow::Result<()> {
    // A verdict can be explained where its detectors are not.
    let policies = plan(config).map(|(_, policies)| policies);
    let ledger = ledger::open(config).await?;
    ledger.check_schema().await?;
    let judges = match policies {
        Ok(policies) => match banks::load_for(&policies, config, ledger.as_ref()).await {
            Ok(banks) => Some((policies, banks)),
            Err(error) => left_out(&error_text(&error)),
        },
        Err(error) => left_out(&error_text(&error)),
    };
    let mut output = Output::new(format, &EXPLAINED_COLUMNS)?;
    for stored in show::find_verdicts(ledger.as_ref(), subject).await? {
        let verdict = &stored.verdict;
        let Some(facts) = &verdict.facts else {
            let reason = verdict.judgement.reason.as_deref().unwrap_or_default();
            note!("{}: {}, no rule was asked: {reason}", verdict.image.uri_or_path(), verdict.judgement.outcome);
            continue;
        };
        match stored_policy(ledger.as_ref(), &verdict.policy).await? {
            Some(policy) => {
                let outcome = verdict.judgement.outcome;
                // What a bank answered that day is known from the findings only.
                let found = |rule: &Rule| match rule.bank() {
                    Some(BankRule { bank, .. }) => {
                        let mut findings = verdict.judgement.findings.iter();
                        findings
                            .find(|finding| finding.bank.as_ref() == Some(bank) && finding.rule == rule.name)
                            .cloned()
                    }
                    None => judge::finding(rule, facts, &BankAnswers::new()),
                };
                print_explained("then", outcome, &policy, verdict, facts, found, &mut output)?;
            }
            None => note!(
                "{}: {}; the ledger does not have the rules of the policy \"{}\" that judged it",
                verdict.image.uri_or_path(),
                verdict.judgement.outcome,
                verdict.policy.name
            ),
        }
        if facts.views.is_none() {
            note!(
                "{}: an earlier release stored one frame only, so no other policy can judge it",
                verdict.image.uri_or_path()
            );
        } else if let Some((policies, banks)) = &judges {
            let policy = policies.policy_for(&ImageContext::of(verdict));
            let answers = banks.answers(policy, &AskedImage::of(verdict)).await;
            let outcome = judge::judge(policy, facts, &answers).outcome;
            let found = |rule: &Rule| judge::finding(rule, facts, &answers);
            print_explained("now", outcome, policy, verdict, facts, found, &mut output)?;
        }
    }
    output.finish()?;
    ledger.close().await;
    Ok(())
}

fn left_out(why: &str) -> Option<(PolicySet, CurrentBanks)> {
    note!("warning: the configured policies are left out: {why}");
    None
}

/// The policy that judged a verdict, from the text that the ledger has kept.
async fn stored_policy(ledger: &dyn Ledger, reference: &PolicyRef) -> anyhow::Result<Option<Policy>> {
    let text = ledger.read_policy(&reference.sha256).await?;
    Ok(text.and_then(|text| Policy::from_canonical(&reference.name, &text)))
}

fn print_explained(
    judged: &str,
    outcome: Outcome,
    policy: &Policy,
    verdict: &Verdict,
    facts: &Facts,
    found: impl Fn(&Rule) -> Option<Finding>,
    output: &mut Output,
) -> anyhow::Result<()> {
    for rule in &policy.rules {
        let reached = found(rule);
        let values = [
            json!(judged),
            json!(outcome),
            json!(policy.reference.name),
            json!(rule.name),
            json!(rule.score().map(|rule| &rule.detector)),
            json!(rule.score().map(|rule| &rule.label)),
            json!(rule.score().and_then(|rule| facts.score(&rule.detector, &rule.label)).map(exact)),
            json!(reached.as_ref().map(|finding| finding.outcome)),
            json!(reached.as_ref().and_then(|finding| finding.threshold).map(exact)),
        ];
        let mut row = row(&EXPLAINED_COLUMNS, values);
        row.insert("category".into(), json!(rule.category));
        row.insert("severity".into(), json!(rule.severity));
        row.insert("view".into(), json!(rule.score().and_then(|rule| facts.view(&rule.detector, &rule.label))));
        if let Some(rule) = rule.bank() {
            row.insert("bank".into(), json!(rule.bank));
            row.insert("entry".into(), json!(reached.as_ref().and_then(|finding| finding.entry)));
            row.insert("distance".into(), json!(reached.as_ref().and_then(|finding| finding.distance)));
        }
        row.insert("sha256".into(), json!(policy.reference.sha256));
        row.insert("job_id".into(), json!(verdict.job_id));
        row.insert("verdict_id".into(), json!(verdict.id));
        output.row(&row)?;
    }
    Ok(())
}

fn row<const N: usize>(columns: &[&str; N], values: [Value; N]) -> Map<String, Value> {
    columns.iter().map(|column| (*column).to_owned()).zip(values).collect()
}
