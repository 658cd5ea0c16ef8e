//! The banks that the policies name, as one process holds them in memory: loaded at its start, and kept up to date.
//!
//! A bank that changes is replaced while others go on asking the earlier version. A bank that was dropped stays as it was
//! last, because the rules over it still hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures_util::TryStreamExt;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::bank::{BankChange, EntryList, LoadedBank};
use crate::job::{BankAnswers, BankKind, Finding, FindingSource, Verdict, ViewHash};
use crate::ledger::{Bank, Ledger, LedgerError};
use crate::policy::{BankQuestion, Policy};
use crate::telemetry::metrics;

/// How often a worker asks whether a bank has changed.
const REFRESH_INTERVAL: Duration = Duration::from_secs(3);

/// The banks of a process.
#[derive(Debug, Default)]
pub struct CurrentBanks {
    by_name: RwLock<BTreeMap<String, Arc<HeldBank>>>,
    /// Those that the ledger does not have any more.
    lost: Mutex<BTreeSet<String>>,
}

/// A bank in memory, with its number in the ledger.
#[derive(Debug)]
struct HeldBank {
    id: i32,
    bank: LoadedBank,
}

/// An image that banks are asked about: its digests and hashes.
#[derive(Debug, Clone, Default)]
pub struct AskedImage {
    pub sha256: Option<[u8; 32]>,
    pub md5: Option<[u8; 16]>,
    /// `None` where none were made.
    pub hashes: Option<Vec<ViewHash>>,
    /// Entries that a person has answered, with their bank.
    pub answered: Vec<(String, i64)>,
}

impl AskedImage {
    /// What is stored of an image.
    #[must_use]
    pub fn of(verdict: &Verdict) -> Self {
        let hashes = verdict.facts.as_ref().and_then(|facts| facts.hashes.clone());
        let image = Self { sha256: verdict.sha256, md5: verdict.md5, hashes, answered: Vec::new() };
        image.answered_by(&verdict.judgement.findings)
    }

    /// The image with the entries that are answered among findings. They must not hide entries that are farther away.
    #[must_use]
    pub fn answered_by(self, findings: &[Finding]) -> Self {
        let answers = findings.iter().filter(|finding| finding.source == FindingSource::Decision);
        let answered = answers.filter_map(|answer| Some((answer.bank.clone()?, answer.entry?))).collect();
        Self { answered, ..self }
    }
}

impl CurrentBanks {
    /// Loads banks by their names. What the ledger does not have is left out. Without a name the ledger is not asked.
    ///
    /// # Errors
    /// When the ledger fails, or has no banks at all.
    pub async fn load(ledger: &dyn Ledger, names: &BTreeSet<&str>) -> Result<Self, LedgerError> {
        let banks = Self::default();
        if !names.is_empty() {
            let mut all = ledger.banks()?.bank_versions().await?;
            all.retain(|bank| names.contains(bank.name.as_str()));
            for bank in &all {
                banks.hold(load(ledger, bank).await?);
            }
        }
        Ok(banks)
    }

    /// The kinds of all banks that a ledger has, by name.
    ///
    /// # Errors
    /// When the ledger fails, or has no banks at all.
    pub async fn kinds(ledger: &dyn Ledger) -> Result<BTreeMap<String, BankKind>, LedgerError> {
        Ok(ledger.banks()?.bank_versions().await?.into_iter().map(|bank| (bank.name, bank.kind)).collect())
    }

    /// The version of each bank that is held, by name.
    #[must_use]
    pub fn versions(&self) -> BTreeMap<String, i64> {
        self.held().into_iter().map(|(name, held)| (name, held.bank.version)).collect()
    }

    /// Brings all banks up to date.
    ///
    /// # Errors
    /// When the ledger fails. What was brought up to date stays so.
    pub async fn refresh(&self, ledger: &dyn Ledger) -> Result<(), LedgerError> {
        let held = self.held();
        if held.is_empty() {
            return Ok(());
        }
        let mut now: BTreeMap<String, Bank> =
            ledger.banks()?.bank_versions().await?.into_iter().map(|bank| (bank.name.clone(), bank)).collect();
        let mut result = Ok(());
        for (name, held) in held {
            let why_not = match now.remove(&name) {
                None => Some("the bank was dropped"),
                Some(bank) if bank.kind != held.bank.kind => {
                    Some("the bank was dropped, and another kind has its name")
                }
                Some(bank) => {
                    match newer(ledger, &held, &bank).await {
                        Ok(None) => {}
                        Ok(Some(newer)) => {
                            tracing::info!(bank = name, version = newer.bank.version, "bank changed");
                            self.hold(newer);
                        }
                        // The others are brought up to date all the same.
                        Err(error) => result = Err(error),
                    }
                    None
                }
            };
            if let Some(why) = why_not
                && self.lost.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone())
            {
                tracing::warn!(bank = name, "{why}; its last version is used until the next start");
            }
        }
        result
    }

    /// Keeps all banks up to date until `stop`. While the ledger is down, the last versions are used.
    pub async fn keep_current(self: Arc<Self>, ledger: Arc<dyn Ledger>, stop: CancellationToken) {
        let mut was_down = false;
        while stop.run_until_cancelled(tokio::time::sleep(REFRESH_INTERVAL)).await.is_some() {
            let refreshed = self.refresh(ledger.as_ref()).await;
            if let Err(error) = &refreshed
                && !was_down
            {
                tracing::warn!(%error, "banks not brought up to date, trying again");
            }
            was_down = refreshed.is_err();
        }
    }

    /// What the banks that a policy names know of an image. The search takes the processor for milliseconds, so it has a
    /// thread of its own.
    pub async fn answers(&self, policy: &Policy, image: &AskedImage) -> BankAnswers {
        let questions = policy.bank_questions();
        if questions.is_empty() {
            return BankAnswers::new();
        }
        let mut held = self.held();
        let asked: Vec<_> = questions
            .into_iter()
            .filter_map(|(name, question)| Some((name.to_owned(), held.remove(name)?, question)))
            .collect();
        let image = image.clone();
        let answers = spawn_blocking(move || {
            let answer = |(name, held, question): (String, Arc<HeldBank>, BankQuestion)| {
                let AskedImage { sha256, md5, hashes, answered } = &image;
                let of_bank = answered.iter().filter(|(bank, _)| *bank == name);
                let skipped: Vec<i64> = of_bank.map(|(_, entry)| *entry).collect();
                let BankQuestion { max_distance, min_quality } = question;
                let answer = held.bank.answer_without(
                    &skipped,
                    sha256.as_ref(),
                    md5.as_ref(),
                    hashes.as_deref(),
                    max_distance,
                    min_quality,
                );
                (name, answer)
            };
            asked.into_iter().map(answer).collect()
        });
        // A search that panics answers nothing, and what was not asked never passes.
        answers.await.unwrap_or_default()
    }

    fn held(&self) -> BTreeMap<String, Arc<HeldBank>> {
        self.by_name.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn hold(&self, held: HeldBank) {
        let name = held.bank.name.clone();
        metrics::bank_loaded(&name, held.bank.version);
        self.by_name.write().unwrap_or_else(PoisonError::into_inner).insert(name, Arc::new(held));
    }
}

/// Loads all of a bank.
async fn load(ledger: &dyn Ledger, bank: &Bank) -> Result<HeldBank, LedgerError> {
    Ok(HeldBank { id: bank.id, bank: build(bank, all_entries(ledger, bank).await?).await? })
}

/// The entries of a bank's version.
///
/// # Errors
/// When the ledger fails.
pub(crate) async fn all_entries(ledger: &dyn Ledger, bank: &Bank) -> Result<EntryList, LedgerError> {
    let mut pages = ledger.banks()?.entries_of(bank.id, bank.version);
    let mut list = EntryList::default();
    while let Some(page) = pages.try_next().await? {
        page.into_iter().for_each(|entry| list.push(entry.id, entry.hash));
    }
    Ok(list)
}

/// A bank in memory with the entries of a list.
///
/// # Errors
/// When building the index has failed.
pub(crate) async fn build(bank: &Bank, list: EntryList) -> Result<LoadedBank, LedgerError> {
    let Bank { name, kind, restricted, enabled, version, .. } = bank.clone();
    off_thread(move || LoadedBank { name, kind, restricted, enabled, version, entries: list.build() }).await
}

/// The bank as the ledger has it now, if that is another state.
async fn newer(ledger: &dyn Ledger, held: &Arc<HeldBank>, now: &Bank) -> Result<Option<HeldBank>, LedgerError> {
    if held.id != now.id {
        return load(ledger, now).await.map(Some);
    }
    // A change of the settings makes a version as well.
    if held.bank.version == now.version {
        return Ok(None);
    }
    let (restricted, enabled) = (now.restricted, now.enabled);
    // A bank that was dropped this moment is noticed the next time.
    let Some(changes) = ledger.banks()?.changes_since(now.id, held.bank.version).await? else { return Ok(None) };
    let earlier = Arc::clone(held);
    let removed = changes.removed.into_iter().map(BankChange::Remove);
    let added = changes.added.into_iter().map(|entry| BankChange::Add(entry.id, entry.hash));
    let changed: Vec<BankChange> = removed.chain(added).collect();
    let build = move || LoadedBank { restricted, enabled, ..earlier.bank.apply(changed, changes.version) };
    Ok(Some(HeldBank { id: now.id, bank: off_thread(build).await? }))
}

/// Builds an index, which takes seconds for millions of entries.
async fn off_thread(build: impl FnOnce() -> LoadedBank + Send + 'static) -> Result<LoadedBank, LedgerError> {
    spawn_blocking(build).await.map_err(|_| LedgerError::Down("building the index of a bank has failed".into()))
}
