//! `pixwarden policy`: the policies as they were resolved, and why an image got what it got.

use std::ffi::OsString;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::console::{counted, note};
use super::options::{LedgerOption, PolicyOptions};
use super::output::{Format, Output};
use super::rejudge::refuse_unknown_policy;
use super::show;
use crate::config::{Config, Overlay};
use crate::error_text;
use crate::job::{Facts, Outcome, PolicyRef, Verdict, exact};
use crate::ledger::{self, Ledger};
use crate::policy::{ImageContext, Policy, Rule, judge};
use crate::screen::plan;

const POLICY_COLUMNS: [&str; 4] = ["policy", "when", "rules", "sha256"];
const RULE_COLUMNS: [&str; 9] =
    ["policy", "rule", "category", "severity", "detector", "label", "note_at", "review_at", "flag_at"];
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
    let mut output = Output::new(format, &RULE_COLUMNS)?;
    for policy in policies.all().filter(is_wanted) {
        for rule in &policy.rules {
            let thresholds = [rule.thresholds.note_at, rule.thresholds.review_at, rule.thresholds.flag_at];
            let [note_at, review_at, flag_at] = thresholds.map(|at| json!(at.map(exact)));
            let values = [
                json!(policy.reference.name),
                json!(rule.name),
                json!(rule.category),
                json!(rule.severity),
                json!(rule.detector),
                json!(rule.label),
                note_at,
                review_at,
                flag_at,
            ];
            output.row(&row(&RULE_COLUMNS, values))?;
        }
    }
    Ok(output.finish()?)
}

async fn explain(config: &Config, subject: &OsString, format: Format) -> anyhow::Result<()> {
    // A verdict can be explained where its detectors are not.
    let policies = plan(config).map(|(_, policies)| policies);
    if let Err(error) = &policies {
        note!("warning: the configured policies are left out: {}", error_text(error));
    }
    let ledger = ledger::open(config).await?;
    ledger.check_schema().await?;
    let mut output = Output::new(format, &EXPLAINED_COLUMNS)?;
    for stored in show::find_verdicts(ledger.as_ref(), subject).await? {
        let verdict = &stored.verdict;
        let Some(facts) = &verdict.facts else {
            let reason = verdict.judgement.reason.as_deref().unwrap_or_default();
            note!("{}: {}, no rule was asked: {reason}", verdict.image.uri_or_path(), verdict.judgement.outcome);
            continue;
        };
        match stored_policy(ledger.as_ref(), &verdict.policy).await? {
            Some(policy) => print_explained("then", verdict.judgement.outcome, &policy, verdict, facts, &mut output)?,
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
        } else if let Ok(policies) = &policies {
            let policy = policies.policy_for(&ImageContext::of(verdict));
            print_explained("now", judge::judge(policy, facts).outcome, policy, verdict, facts, &mut output)?;
        }
    }
    output.finish()?;
    ledger.close().await;
    Ok(())
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
    output: &mut Output,
) -> anyhow::Result<()> {
    for rule in &policy.rules {
        let Rule { name, category, severity, detector, label, thresholds } = rule;
        let score = facts.score(detector, label);
        let reached = score.and_then(|score| thresholds.reached(score));
        let values = [
            json!(judged),
            json!(outcome),
            json!(policy.reference.name),
            json!(name),
            json!(detector),
            json!(label),
            json!(score.map(exact)),
            json!(reached.map(|(outcome, _)| outcome)),
            json!(reached.map(|(_, threshold)| exact(threshold))),
        ];
        let mut row = row(&EXPLAINED_COLUMNS, values);
        row.insert("category".into(), json!(category));
        row.insert("severity".into(), json!(severity));
        row.insert("view".into(), json!(facts.view(detector, label)));
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
