//! `pixwarden bank`: lists of known images by their hashes.

mod export;
mod hashes;
mod import;
mod matching;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::IsTerminal;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{anyhow, bail};
use clap::{Args, Subcommand};
use serde_json::json;
use time::format_description::well_known::Rfc3339;

use super::UsageError;
use super::console::{counted, is_confirmed, note};
use super::options::LedgerOption;
use super::output::{Format, Output, fields};
use super::show;
use crate::config::{Config, Overlay};
use crate::job::{BankKind, KnownHash, Verdict, is_bank_name};
use crate::ledger::{
    self, Bank, BankSettings, BankWrite, Banks, Dropped, EntryCounts, EntryKey, Ledger, LedgerError, Marked, MatchMark,
    NewBank, NewEntry, Removal,
};
use crate::policy::DEFAULT_MIN_QUALITY;

const COLUMNS: [&str; 12] = [
    "name",
    "kind",
    "restricted",
    "enabled",
    "version",
    "pdq",
    "sha256",
    "md5",
    "true_matches",
    "false_matches",
    "made_at",
    "changed_at",
];
/// Of a table, in which these have room.
const TABLE_COLUMNS: [&str; 9] = ["name", "kind", "version", "pdq", "sha256", "md5", "true", "false", "note"];

/// Options of `bank`.
#[derive(Debug, Args)]
pub struct BankArguments {
    #[command(subcommand)]
    command: BankCommand,
}

#[derive(Debug, Subcommand)]
enum BankCommand {
    /// Print all banks: entries by type, and matches that people have found true or false
    List {
        /// Output format
        #[arg(long, value_enum)]
        format: Option<Format>,
        #[command(flatten)]
        ledger: LedgerOption,
    },
    /// Make an empty bank
    Create {
        name: BankName,
        /// Whether a match speaks against an image or for it
        #[arg(long, value_enum)]
        kind: BankKind,
        /// No picture of what it holds, or like it, may be shown
        #[arg(long)]
        restricted: bool,
        /// Workers do not match with it until it is enabled
        #[arg(long)]
        disabled: bool,
        #[command(flatten)]
        ledger: LedgerOption,
    },
    /// Enable or disable a bank, or change who may see what it holds
    #[command(group = clap::ArgGroup::new("setting").required(true).multiple(true))]
    Set {
        name: BankName,
        /// Workers match with it
        #[arg(long, group = "setting", conflicts_with = "disabled")]
        enabled: bool,
        /// Workers do not match with it
        #[arg(long, group = "setting")]
        disabled: bool,
        /// No picture of what it holds, or like it, may be shown
        #[arg(long, group = "setting", conflicts_with = "not_restricted")]
        restricted: bool,
        /// Pictures of what it holds may be shown
        #[arg(long, group = "setting")]
        not_restricted: bool,
        #[command(flatten)]
        ledger: LedgerOption,
    },
    /// Delete a bank with its entries; an enabled one is refused while it has any
    Drop {
        name: BankName,
        /// Delete without asking; required where there is no terminal to ask on
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        ledger: LedgerOption,
    },
    /// Add a list of hashes as one version; interrupted, it leaves the bank as it was
    Import(import::ImportArguments),
    /// Print the entries of a bank
    Export(export::ExportArguments),
    /// Add hashes, or those of an image that was screened
    Add {
        name: BankName,
        /// `pdq:HEX`, `sha256:HEX` or `md5:HEX`
        #[arg(required_unless_present = "from", value_name = "HASH", value_parser = hashes::hash)]
        hashes: Vec<KnownHash>,
        /// The SHA-256 of this image, and the PDQ hashes of its views whose quality is at least 50: a job's id, an image as
        /// s3://bucket/key, content as sha256:HEX, a verdict's id, or the path of a scanned file
        #[arg(long, value_name = "JOB_ID|s3://BUCKET/KEY|sha256:HEX|VERDICT_ID|PATH", conflicts_with = "hashes")]
        from: Option<OsString>,
        #[command(flatten)]
        ledger: LedgerOption,
    },
    /// Look for a bank in everything that was ever screened, without fetching an image
    Match(matching::MatchArguments),
    /// Remove entries: all that are named, or none
    Remove {
        name: BankName,
        /// `pdq:HEX`, `sha256:HEX` or `md5:HEX`
        #[arg(required_unless_present = "entry", value_name = "HASH", value_parser = hashes::hash)]
        hashes: Vec<KnownHash>,
        /// The number of an entry, as `bank export --format csv` prints it [repeatable]
        #[arg(long, value_name = "ID", conflicts_with = "hashes")]
        entry: Vec<i64>,
        #[command(flatten)]
        ledger: LedgerOption,
    },
    /// Count a match as true: the image was the known one
    Confirm {
        name: BankName,
        /// The number of the entry, or its hash as `pdq:HEX`, `sha256:HEX` or `md5:HEX`
        #[arg(value_parser = hashes::entry_key)]
        entry: EntryKey,
        #[command(flatten)]
        ledger: LedgerOption,
    },
    /// Count a match as false: the image was another one
    Deconfirm {
        name: BankName,
        /// The number of the entry, or its hash as `pdq:HEX`, `sha256:HEX` or `md5:HEX`
        #[arg(value_parser = hashes::entry_key)]
        entry: EntryKey,
        #[command(flatten)]
        ledger: LedgerOption,
    },
}

impl BankArguments {
    pub(super) fn overlay(&self, overlay: &mut Overlay) {
        match &self.command {
            BankCommand::Match(arguments) => arguments.overlay(overlay),
            _ => self.ledger().set(overlay),
        }
    }

    const fn ledger(&self) -> &LedgerOption {
        match &self.command {
            BankCommand::List { ledger, .. }
            | BankCommand::Create { ledger, .. }
            | BankCommand::Set { ledger, .. }
            | BankCommand::Drop { ledger, .. }
            | BankCommand::Add { ledger, .. }
            | BankCommand::Remove { ledger, .. }
            | BankCommand::Confirm { ledger, .. }
            | BankCommand::Deconfirm { ledger, .. } => ledger,
            BankCommand::Import(arguments) => &arguments.ledger,
            BankCommand::Export(arguments) => &arguments.ledger,
            BankCommand::Match(arguments) => &arguments.ledger,
        }
    }
}

/// The name of a bank.
#[derive(Debug, Clone)]
struct BankName(String);

impl BankName {
    fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BankName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if is_bank_name(text) {
            return Ok(Self(text.to_owned()));
        }
        Err("a bank's name has lower-case letters, digits, - and _, at most 100")
    }
}

impl fmt::Display for BankName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub(super) async fn run(arguments: &BankArguments, config: &Config) -> anyhow::Result<u8> {
    if let BankCommand::Drop { yes: false, .. } = &arguments.command {
        require_terminal()?;
    }
    let ledger: Arc<dyn Ledger> = ledger::open(config).await?.into();
    let banks = ledger.banks()?;
    ledger.check_schema().await?;
    let mut status = 0;
    match &arguments.command {
        BankCommand::List { format, .. } => print(Format::or_default(*format), &banks.list_banks().await?)?,
        BankCommand::Create { name, kind, restricted, disabled, .. } => {
            let (name, restricted, enabled) = (name.0.clone(), *restricted, !disabled);
            create(banks, &NewBank { name, kind: *kind, restricted, enabled }).await?;
        }
        BankCommand::Set { name, enabled, disabled, restricted, not_restricted, .. } => {
            let chosen = |on: bool, off: bool| (on || off).then_some(on);
            let settings =
                BankSettings { restricted: chosen(*restricted, *not_restricted), enabled: chosen(*enabled, *disabled) };
            match banks.set_bank(name.as_str(), settings).await? {
                Some(bank) => note!("the bank \"{name}\" is {}", state(&bank)),
                None => return Err(unknown_bank(banks, name).await?),
            }
        }
        BankCommand::Drop { name, yes, .. } => status = drop_bank(banks, name, *yes, config).await?,
        BankCommand::Import(arguments) => import::run(arguments, banks).await?,
        BankCommand::Export(arguments) => export::run(arguments, banks).await?,
        BankCommand::Add { name, from: Some(subject), .. } => {
            add(banks, name, &entries_from(ledger.as_ref(), subject).await?).await?;
        }
        BankCommand::Add { name, hashes, .. } => {
            let entry = |hash: &KnownHash| NewEntry { hash: *hash, metadata: None };
            add(banks, name, &hashes.iter().map(entry).collect::<Vec<_>>()).await?;
        }
        BankCommand::Match(arguments) => status = matching::run(arguments, Arc::clone(&ledger), config).await?,
        BankCommand::Remove { name, hashes, entry, .. } => remove(banks, name, hashes, entry).await?,
        BankCommand::Confirm { name, entry, .. } => mark(banks, name, *entry, MatchMark::True).await?,
        BankCommand::Deconfirm { name, entry, .. } => mark(banks, name, *entry, MatchMark::False).await?,
    }
    ledger.close().await;
    Ok(status)
}

/// The bank of this name.
async fn find(banks: &dyn Banks, name: &BankName) -> anyhow::Result<Bank> {
    match banks.bank_versions().await?.into_iter().find(|bank| bank.name == name.0) {
        Some(bank) => Ok(bank),
        None => Err(unknown_bank(banks, name).await?),
    }
}

/// The error for a bank that does not exist, with those that do.
async fn unknown_bank(banks: &dyn Banks, name: &BankName) -> Result<anyhow::Error, LedgerError> {
    let known: Vec<String> = banks.bank_versions().await?.iter().map(|bank| format!("\"{}\"", bank.name)).collect();
    let hint = match known.len() {
        0 => format!("there are no banks; `pixwarden bank create {name} --kind deny` makes one"),
        1 => format!("the only bank is {}", known[0]),
        _ => format!("the banks are {}", known.join(", ")),
    };
    Ok(anyhow!("there is no bank \"{name}\"\n  hint: {hint}"))
}

async fn create(banks: &dyn Banks, bank: &NewBank) -> anyhow::Result<()> {
    let name = &bank.name;
    if !banks.create_bank(bank).await? {
        bail!("there is already a bank \"{name}\"\n  hint: `pixwarden bank set {name}` changes it");
    }
    note!("made the bank \"{name}\"");
    Ok(())
}

/// As `prune` refuses, without a dry run.
fn require_terminal() -> Result<(), UsageError> {
    if std::io::stdin().is_terminal() && std::io::stderr().is_terminal() {
        return Ok(());
    }
    let what = "cannot drop a bank: there is no terminal to ask on\n  hint: print it with `pixwarden bank list`, then drop it with --yes";
    Err(UsageError(what.into()))
}

async fn drop_bank(banks: &dyn Banks, name: &BankName, yes: bool, config: &Config) -> anyhow::Result<u8> {
    let bank = find(banks, name).await?;
    if !yes && !is_confirmed(&format!("Drop the bank \"{name}\" at version {} from {}?", bank.version, config.ledger))?
    {
        note!("nothing was dropped");
        return Ok(1);
    }
    match banks.drop_bank(name.as_str()).await? {
        Some(Dropped::Done(entries)) => note!("dropped the bank \"{name}\" with {}", entries_text(entries)),
        Some(Dropped::InUse(entries)) => bail!(
            "cannot drop the bank \"{name}\": it is enabled and has {}\n  hint: `pixwarden bank set {name} --disabled` first; workers then no longer match with it",
            entries_text(entries)
        ),
        None => return Err(unknown_bank(banks, name).await?),
    }
    Ok(0)
}

/// The hashes of an image that was screened. Each entry says which job it is from.
async fn entries_from(ledger: &dyn Ledger, subject: &OsStr) -> anyhow::Result<Vec<NewEntry>> {
    let verdicts = show::find_verdicts(ledger, subject).await?;
    let mut entries: Vec<NewEntry> = Vec::new();
    let mut left_out = 0;
    for Verdict { job_id, sha256, facts, .. } in verdicts.iter().map(|stored| &stored.verdict) {
        let views = facts.iter().flat_map(|facts| facts.hashes.iter().flatten());
        left_out += views.clone().filter(|view| view.quality < DEFAULT_MIN_QUALITY).count() as u64;
        let pdq = views.filter(|view| view.quality >= DEFAULT_MIN_QUALITY).map(|view| KnownHash::Pdq(view.pdq));
        for hash in sha256.map(KnownHash::Sha256).into_iter().chain(pdq) {
            if entries.iter().all(|entry| entry.hash != hash) {
                entries.push(NewEntry { hash, metadata: Some(json!({"from": job_id})) });
            }
        }
    }
    if entries.is_empty() {
        bail!("the image has no hash\n  hint: it was not fetched; `pixwarden show` says why");
    }
    if left_out > 0 {
        note!("{} left out: too little detail to be told from others", counted(left_out, "view was", "views were"));
    }
    Ok(entries)
}

async fn add(banks: &dyn Banks, name: &BankName, entries: &[NewEntry]) -> anyhow::Result<()> {
    let Some(written) = banks.add_entries(name.as_str(), entries).await? else {
        return Err(unknown_bank(banks, name).await?);
    };
    note_write(name, &written);
    Ok(())
}

async fn remove(banks: &dyn Banks, name: &BankName, hashes: &[KnownHash], ids: &[i64]) -> anyhow::Result<()> {
    let hashes = hashes.iter().map(|hash| EntryKey::Hash(*hash));
    let mut keys: Vec<EntryKey> = hashes.chain(ids.iter().map(|id| EntryKey::Id(*id))).collect();
    keys.sort_unstable();
    keys.dedup();
    match banks.remove_entries(name.as_str(), &keys).await? {
        Some(Removal::Done(written)) => note_write(name, &written),
        Some(Removal::Missing(missing)) => {
            let missing: Vec<String> = missing.iter().map(hashes::key_text).collect();
            bail!(
                "the bank \"{name}\" has no entry with {}; nothing was removed\n  hint: `pixwarden bank export {name} --format csv` prints its entries",
                missing.join(", ")
            );
        }
        None => return Err(unknown_bank(banks, name).await?),
    }
    Ok(())
}

async fn mark(banks: &dyn Banks, name: &BankName, key: EntryKey, mark: MatchMark) -> anyhow::Result<()> {
    match banks.mark_entry(name.as_str(), key, mark).await? {
        Some(Marked::Done { id, true_matches, false_matches }) => {
            note!("the entry {id} of \"{name}\" has {true_matches} true and {false_matches} false matches");
            Ok(())
        }
        Some(Marked::NoEntry) => bail!(
            "the bank \"{name}\" has no entry with {}\n  hint: `pixwarden bank export {name} --format csv` prints its entries",
            hashes::key_text(&key)
        ),
        None => Err(unknown_bank(banks, name).await?),
    }
}

fn entries_text(entries: u64) -> String {
    counted(entries, "entry", "entries")
}

/// Says what was written. What was not there is left out.
fn note_write(name: &BankName, written: &BankWrite) {
    let BankWrite { version, added, skipped, removed } = written;
    let mut words = vec![format!("{} added", entries_text(*added))];
    if *skipped > 0 {
        words.push(format!("{skipped} skipped, which it has"));
    }
    if *removed > 0 {
        words.push(format!("{removed} removed"));
    }
    note!("the bank \"{name}\" is at version {version}: {}", words.join("; "));
}

/// What a bank is, in words.
fn state(bank: &Bank) -> String {
    let enabled = if bank.enabled { "enabled" } else { "disabled" };
    if bank.restricted { format!("{enabled}, restricted") } else { enabled.into() }
}

fn print(format: Format, banks: &[(Bank, EntryCounts)]) -> anyhow::Result<()> {
    let is_table = format == Format::Table;
    let mut output = if is_table { Output::new(format, &TABLE_COLUMNS)? } else { Output::new(format, &COLUMNS)? };
    if banks.is_empty() {
        note!("no banks\n  hint: `pixwarden bank create NAME --kind deny` makes one");
    }
    for (bank, counts) in banks {
        let mut row = fields([
            ("name", json!(bank.name)),
            ("kind", json!(bank.kind)),
            ("restricted", json!(bank.restricted)),
            ("enabled", json!(bank.enabled)),
            ("version", json!(bank.version)),
            ("pdq", json!(counts.pdq)),
            ("sha256", json!(counts.sha256)),
            ("md5", json!(counts.md5)),
            ("true_matches", json!(counts.true_matches)),
            ("false_matches", json!(counts.false_matches)),
            ("made_at", json!(bank.made_at.format(&Rfc3339).ok())),
            ("changed_at", json!(bank.changed_at.format(&Rfc3339).ok())),
        ]);
        if is_table {
            row.extend(fields([
                ("true", json!(counts.true_matches)),
                ("false", json!(counts.false_matches)),
                ("note", json!(state(bank))),
            ]));
        }
        output.row(&row)?;
    }
    output.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::Cli;

    #[test]
    fn a_bank_is_set_by_at_least_one_option_and_by_no_two_that_contradict() {
        let is_valid = |words: &[&str]| Cli::try_parse_from([&["pixwarden", "bank"], words].concat()).is_ok();
        assert!(!is_valid(&["set", "b"]));
        assert!(is_valid(&["set", "b", "--enabled", "--restricted"]));
        assert!(!is_valid(&["set", "b", "--enabled", "--disabled"]));
        assert!(!is_valid(&["set", "b", "--restricted", "--not-restricted"]));
        let hash = format!("md5:{}", "0a".repeat(16));
        assert!(is_valid(&["remove", "b", &hash]) && is_valid(&["remove", "b", "--entry", "7", "--entry", "8"]));
        assert!(!is_valid(&["remove", "b"]) && !is_valid(&["remove", "b", &hash, "--entry", "7"]));
        assert!(!is_valid(&["create", "b"]), "a kind is never guessed");
        let long = "b".repeat(101);
        for name in ["Bad", "a/b", "", "b\u{e4}", "a b", &long] {
            assert!(!is_valid(&["create", name, "--kind", "deny"]), "{name}");
        }
        assert!(is_valid(&["create", &long[..100], "--kind", "allow"]));
    }
}
