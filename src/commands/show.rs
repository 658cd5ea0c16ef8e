//! `pixwarden show`: prints the verdicts on a job or an image.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::console::{counted, note};
use super::likeness::NearOptions;
use super::options::LedgerOption;
use super::output::{Format, Output, fields, printable, score_of_label};
use super::{UsageError, files, record};
use crate::config::Config;
use crate::job::event;
use crate::job::{ImageRef, Verdict, exact, verdict_id};
use crate::ledger::{
    self, Decision, EarlierState, Ledger, LedgerError, OutboxRow, Report, StoredVerdict, mark_restricted,
};
use crate::matching::Likeness;

/// The most verdicts on one image that are shown. An image has one per version, set of detectors and job id.
const MAX_VERDICTS: u32 = 100;

const TABLE_COLUMNS: [&str; 14] = [
    "image",
    "outcome",
    "score",
    "judged_at",
    "revision",
    "job_id",
    "verdict_id",
    "attempts",
    "reason",
    "announced",
    "deleted_at",
    "history",
    "decisions",
    "reports",
];
const NEAR_TABLE_COLUMNS: [&str; TABLE_COLUMNS.len() + 1] = record::behind_distance(&TABLE_COLUMNS);
const CSV_COLUMNS: [&str; 16] = [
    "decided_at",
    "outcome",
    "label",
    "score",
    "reason",
    "job_id",
    "attempts",
    "announced",
    "revision",
    "cause",
    "judged_at",
    "object_at",
    "deleted_at",
    "id",
    "bucket",
    "key",
];

/// Options of `show`.
#[derive(Debug, Args)]
pub struct ShowArguments {
    /// A job's id, an image as s3://bucket/key, content as sha256:HEX, a verdict's id, or the path of a scanned file
    ///
    /// A UUID is first taken as a job's id, then as a verdict's. Anything else that is no job's id is taken as a path.
    /// By its SHA-256 content is found in a time that grows with the ledger.
    #[arg(
        value_name = "JOB_ID|s3://BUCKET/KEY|sha256:HEX|VERDICT_ID|PATH",
        required_unless_present = "near",
        conflicts_with = "near"
    )]
    subject: Option<OsString>,
    #[command(flatten)]
    near: NearOptions,
    /// Output format
    #[arg(long, value_enum)]
    format: Option<Format>,
    #[command(flatten)]
    pub(super) ledger: LedgerOption,
}

pub(super) async fn run(arguments: &ShowArguments, config: &Config) -> anyhow::Result<u8> {
    if let Some(subject) = &arguments.subject {
        Subject::parse(subject)?;
    }
    let ledger = ledger::open(config).await?;
    ledger.check_schema().await?;
    let verdicts: Vec<(Option<u32>, StoredVerdict)> = match (&arguments.subject, arguments.near.likeness()) {
        (_, Some(likeness)) => find_near(ledger.as_ref(), likeness).await?,
        (subject, None) => {
            let subject = subject.clone().unwrap_or_default();
            find_verdicts(ledger.as_ref(), &subject).await?.into_iter().map(|stored| (None, stored)).collect()
        }
    };
    let format = Format::or_default(arguments.format);
    let columns: &[&str] = match (format, verdicts.first()) {
        (Format::Table, Some((Some(_), _))) => &NEAR_TABLE_COLUMNS,
        (Format::Table, _) => &TABLE_COLUMNS,
        _ => &CSV_COLUMNS,
    };
    let mut output = Output::new(format, columns)?;
    let kept = Duration::from_secs(u64::from(config.outbox.keep_days) * 86_400);
    for (distance, stored) in verdicts {
        let shown = ShownVerdict {
            events: ledger.outbox_rows(stored.verdict.id).await?,
            earlier: ledger.earlier_states(stored.verdict.id).await?,
            people: PeoplesWords::on(ledger.as_ref(), stored.verdict.id).await?,
            stored,
        };
        let announced = shown.announced(OffsetDateTime::now_utc() - kept);
        let mut row = if format == Format::Table { shown.table_row(&announced) } else { shown.row(&announced) };
        if let Some(distance) = distance {
            row.insert("distance".into(), json!(distance));
        }
        output.row(&row)?;
    }
    output.finish()?;
    ledger.close().await;
    Ok(0)
}

/// The verdicts on pictures that resemble one, the closest first.
async fn find_near(ledger: &dyn Ledger, likeness: Likeness) -> anyhow::Result<Vec<(Option<u32>, StoredVerdict)>> {
    let (mut found, mut left_out) = (Vec::new(), 0u64);
    let add = |distance: u32, stored: &StoredVerdict| -> Result<(), LedgerError> {
        if found.len() < MAX_VERDICTS as usize {
            found.push((Some(distance), stored.clone()));
        } else {
            left_out += 1;
        }
        Ok(())
    };
    likeness.find(ledger.image_hashes()?, add).await?;
    if found.is_empty() {
        bail!("the ledger has no picture within {} bits\n  hint: --within takes a larger distance", likeness.within);
    }
    if left_out > 0 {
        note!("{} more; `export --near` prints all", counted(left_out, "verdict", "verdicts"));
    }
    Ok(found)
}

/// The verdicts that an argument names.
///
/// # Errors
/// When it names nothing, or there is no verdict.
pub(super) async fn find_verdicts(ledger: &dyn Ledger, name: &OsStr) -> anyhow::Result<Vec<StoredVerdict>> {
    let subject = Subject::parse(name)?;
    let mut verdicts = find(ledger, &subject).await?;
    mark_restricted(ledger, &mut verdicts).await?;
    if verdicts.is_empty() {
        bail!(
            "the ledger has no verdict on \"{}\"\n  hint: {}",
            printable(&files::path_text(Path::new(name))),
            subject.hint()
        );
    }
    Ok(verdicts)
}

/// What the ledger is asked for.
enum Subject {
    Image(ImageRef),
    Content([u8; 32]),
    /// The id of a job, the id of a verdict, or a path.
    Name(OsString),
}

impl Subject {
    fn parse(subject: &OsStr) -> Result<Self, UsageError> {
        let text = subject.to_str().unwrap_or_default();
        if let Some(digits) = text.strip_prefix("sha256:") {
            let mut sha256 = [0; 32];
            return match hex::decode_to_slice(digits, &mut sha256) {
                Ok(()) => Ok(Self::Content(sha256)),
                Err(_) => Err(UsageError(format!("\"{}\" must be sha256: and 64 hexadecimal digits", printable(text)))),
            };
        }
        if subject.is_empty() || (text.starts_with("s3://") && ImageRef::from_uri(text).is_none()) {
            let what = format!("\"{}\" names no object\n  hint: the form is s3://BUCKET/KEY", printable(text));
            return Err(UsageError(what));
        }
        Ok(ImageRef::from_uri(text).map_or_else(|| Self::Name(subject.to_owned()), Self::Image))
    }

    const fn hint(&self) -> &'static str {
        match self {
            Self::Image(_) | Self::Content(_) => {
                "a waiting job and a dead letter have no verdict yet; `pixwarden check` prints how many jobs wait, `pixwarden dead list` prints the dead letters"
            }
            Self::Name(_) => {
                "it is no id of a job or a verdict, and no path that `scan --ledger` has stored; a waiting job and a dead letter have no verdict yet: `pixwarden check` prints how many jobs wait, `pixwarden dead show ID` prints a dead letter"
            }
        }
    }
}

async fn find(ledger: &dyn Ledger, subject: &Subject) -> anyhow::Result<Vec<StoredVerdict>> {
    let name = match subject {
        Subject::Image(image) => return Ok(ledger.verdicts_on_image(image, MAX_VERDICTS).await?),
        Subject::Content(sha256) => return Ok(ledger.verdicts_on_content(*sha256, MAX_VERDICTS).await?),
        Subject::Name(name) => name,
    };
    let ids = name.to_str().map(|text| (verdict_id(text), Uuid::parse_str(text).ok()));
    for id in ids.into_iter().flat_map(|(of_job, of_verdict)| [Some(of_job), of_verdict]).flatten() {
        if let Some(stored) = ledger.read_verdict(id).await? {
            return Ok(vec![stored]);
        }
    }
    for path in whole_paths(Path::new(name)) {
        let key = files::path_text(&path).into_owned();
        let image = ImageRef { bucket: String::new(), key, version_id: None, etag: None };
        let verdicts = ledger.verdicts_on_image(&image, MAX_VERDICTS).await?;
        if !verdicts.is_empty() {
            return Ok(verdicts);
        }
    }
    Ok(Vec::new())
}

/// The names under which a scan may have stored a file: as it was given from the current folder, and without links.
fn whole_paths(path: &Path) -> impl Iterator<Item = PathBuf> {
    [std::path::absolute(path), path.canonicalize()].into_iter().flatten()
}

/// What people have said of a verdict. A SQLite file has none of it.
#[derive(Default)]
struct PeoplesWords {
    /// Oldest first.
    decisions: Vec<Decision>,
    /// Oldest first.
    reports: Vec<Report>,
}

impl PeoplesWords {
    async fn on(ledger: &dyn Ledger, verdict: Uuid) -> Result<Self, LedgerError> {
        match ledger.reviews() {
            Ok(reviews) => Ok(Self {
                decisions: reviews.decisions_on(verdict).await?,
                reports: reviews.reports_on(verdict).await?,
            }),
            Err(LedgerError::ReviewNeedsPostgres) => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// The decisions in words, for a table.
    fn decisions_text(&self) -> String {
        let words = |decision: &Decision| {
            let category = decision.category.as_ref().map(|category| format!(" {category}")).unwrap_or_default();
            let (actor, action) = (printable(&decision.actor), decision.action.as_str());
            let note = decision.note.as_ref().map(|note| format!(" ({})", printable(note))).unwrap_or_default();
            let at = decision.at.format(&Rfc3339).unwrap_or_default();
            format!("{action}{category} on revision {} by {actor} at {at}{note}", decision.revision)
        };
        self.decisions.iter().map(words).collect::<Vec<_>>().join("; ")
    }

    /// The reports in words, for a table.
    fn reports_text(&self) -> String {
        let words = |report: &Report| {
            let category = report.category.as_ref().map(|category| format!(" of {category}")).unwrap_or_default();
            let note = report.note.as_ref().map(|note| format!(" ({})", printable(note))).unwrap_or_default();
            let at = report.made_at.format(&Rfc3339).unwrap_or_default();
            format!("{}{category} at {at}{note}", report.kind.as_str())
        };
        self.reports.iter().map(words).collect::<Vec<_>>().join("; ")
    }
}

/// A verdict with everything that is known of it.
struct ShownVerdict {
    stored: StoredVerdict,
    people: PeoplesWords,
    /// Oldest first.
    earlier: Vec<EarlierState>,
    /// Events that are still in the outbox, oldest first.
    events: Vec<OutboxRow>,
}

impl ShownVerdict {
    fn row(&self, announced: &str) -> Map<String, Value> {
        let mut row = record::row(&self.stored);
        row.insert("announced".into(), json!(announced));
        row.insert("events".into(), self.events.iter().map(event).collect());
        row.insert("history".into(), self.earlier.iter().map(earlier_state).collect());
        row.insert(
            "decisions".into(),
            self.people.decisions.iter().map(|decision| Value::from(record::decision(decision))).collect(),
        );
        row.insert("reports".into(), self.people.reports.iter().map(report).collect());
        row
    }

    fn table_row(&self, announced: &str) -> Map<String, Value> {
        let Verdict { image, judgement, .. } = &self.stored.verdict;
        let mut row = self.row(announced);
        let name = image.uri_or_path();
        row.insert("image".into(), json!(name));
        row.insert("score".into(), json!(score_of_label(judgement.label.as_deref(), judgement.score)));
        row.insert("verdict_id".into(), json!(self.stored.verdict.id));
        let mut history = String::new();
        for EarlierState { revision, judgement, .. } in &self.earlier {
            let separator = if history.is_empty() { "" } else { "; " };
            let reason = judgement.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
            let at = revision.judged_at.format(&Rfc3339).unwrap_or_default();
            history += &format!("{separator}revision {}: {} at {at}{reason}", revision.number, judgement.outcome);
        }
        row.insert("history".into(), json!(history));
        row.insert("decisions".into(), json!(self.people.decisions_text()));
        row.insert("reports".into(), json!(self.people.reports_text()));
        row
    }

    /// Whether the current judgement was announced, as text. Published events that are older than `kept_since` are no
    /// longer in the outbox.
    fn announced(&self, kept_since: OffsetDateTime) -> String {
        let StoredVerdict { verdict, revision, .. } = &self.stored;
        let earlier = self.earlier.last().map(|state| state.judgement.outcome);
        let (_, routing_key) = event::announcement(&verdict.judgement, earlier);
        let current = event::id_of(verdict, revision);
        if let Some(event) = self.events.iter().find(|event| event.event_id == current) {
            return state(event);
        }
        // A later judgement with the outcome of an earlier one is not announced again.
        if let Some(event) = self.events.iter().rev().find(|event| event.routing_key == routing_key) {
            return format!("{}, for an earlier revision with this outcome", state(event));
        }
        let not_announced = match self.events.last() {
            Some(event) => format!("not announced; {}, for an earlier revision", state(event)),
            None => "not announced".into(),
        };
        // Whatever a scan finds is not announced. The bucket of a file is empty.
        if verdict.image.bucket.is_empty() || revision.judged_at >= kept_since {
            return not_announced;
        }
        format!(
            "{not_announced}, or announced as {routing_key} before {} and deleted from the outbox since",
            kept_since.format(&Rfc3339).unwrap_or_default()
        )
    }
}

/// The state of an event, as text.
fn state(event: &OutboxRow) -> String {
    match event {
        OutboxRow { published_at: Some(at), routing_key, .. } => {
            format!("{routing_key} at {}", at.format(&Rfc3339).unwrap_or_default())
        }
        OutboxRow { last_error: Some(why), tries, routing_key, .. } => {
            format!("{routing_key} not published yet: {why}; tried again {tries} times")
        }
        OutboxRow { routing_key, .. } => format!("{routing_key} not published yet"),
    }
}

fn event(event: &OutboxRow) -> Value {
    object([
        ("event_id", json!(event.event_id)),
        ("routing_key", json!(event.routing_key)),
        ("created_at", json!(event.created_at.format(&Rfc3339).ok())),
        ("published_at", json!(event.published_at.and_then(|at| at.format(&Rfc3339).ok()))),
        ("tries", json!(event.tries)),
        ("last_error", json!(event.last_error)),
    ])
}

fn earlier_state(EarlierState { revision, judgement, .. }: &EarlierState) -> Value {
    object([
        ("revision", json!(revision.number)),
        ("cause", json!(revision.cause)),
        ("judged_at", json!(revision.judged_at.format(&Rfc3339).ok())),
        ("outcome", json!(judgement.outcome)),
        ("reason", json!(judgement.reason)),
        ("label", json!(judgement.label)),
        ("findings", json!(judgement.findings)),
        ("score", json!(judgement.score.map(exact))),
    ])
}

fn report(report: &Report) -> Value {
    object([
        ("id", json!(report.id)),
        ("kind", json!(report.kind)),
        ("category", json!(report.category)),
        ("note", json!(report.note)),
        ("reporter", json!(report.reporter)),
        ("reference", json!(report.reference)),
        ("due_at", json!(report.due_at.and_then(|at| at.format(&Rfc3339).ok()))),
        ("made_at", json!(report.made_at.format(&Rfc3339).ok())),
    ])
}

fn object<const N: usize>(entries: [(&str, Value); N]) -> Value {
    fields(entries).into()
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::job::{
        Digests, Judgement, Lane, Outcome, PolicyRef, Revision, RevisionCause, event_id, revised_event_id,
    };

    const JUDGED: OffsetDateTime = datetime!(2026-11-20 10:00 UTC);
    const PUBLISHED: OffsetDateTime = datetime!(2026-11-20 10:01 UTC);
    /// Before the judgement.
    const LONG_AGO: OffsetDateTime = datetime!(2026-11-01 0:00 UTC);

    fn shown(outcome: Outcome, number: u32, events: &[OutboxRow]) -> ShownVerdict {
        let cause = (number > 1).then_some(RevisionCause::Rejudged);
        let verdict = Verdict {
            id: verdict_id("job-1"),
            job_id: "job-1".into(),
            lane: Lane::Live,
            image: ImageRef::from_uri("s3://uploads/a.jpg").unwrap(),
            object_at: None,
            sha256: None,
            md5: None,
            bytes: None,
            seen: None,
            judgement: Judgement { outcome, reason: None, label: None, score: None, findings: Vec::new() },
            facts: None,
            detectors: Digests::new(),
            policy: PolicyRef::new("default", "p"),
            metadata: None,
            reused_from: None,
            attempts: 1,
            received_at: JUDGED,
            decided_at: JUDGED,
        };
        let revision = Revision { number, cause, judged_at: JUDGED };
        let stored = StoredVerdict { verdict, revision, deleted_at: None };
        ShownVerdict { stored, people: PeoplesWords::default(), earlier: Vec::new(), events: events.to_vec() }
    }

    fn first(outcome: Outcome, published: bool) -> OutboxRow {
        OutboxRow {
            event_id: event_id(verdict_id("job-1"), outcome),
            routing_key: outcome.routing_key().into(),
            created_at: JUDGED,
            published_at: published.then_some(PUBLISHED),
            tries: 0,
            last_error: None,
        }
    }

    fn revised(number: u32, outcome: Outcome, published: bool) -> OutboxRow {
        OutboxRow { event_id: revised_event_id(verdict_id("job-1"), number, JUDGED), ..first(outcome, published) }
    }

    #[test]
    fn a_reference_without_a_key_is_refused() {
        for text in ["s3://", "s3://b", "s3://b/", ""] {
            let error = Subject::parse(OsStr::new(text)).err().unwrap();
            assert_eq!(error.0, format!("\"{text}\" names no object\n  hint: the form is s3://BUCKET/KEY"));
        }
    }

    #[test]
    fn what_is_announced_is_told_from_what_is_not() {
        use Outcome::{Flagged, Passed, Review};
        let told = |outcome, number, events: &[OutboxRow]| shown(outcome, number, events).announced(LONG_AGO);
        assert_eq!(told(Flagged, 1, &[first(Flagged, true)]), "image.flagged at 2026-11-20T10:01:00Z");
        assert_eq!(told(Flagged, 1, &[first(Flagged, false)]), "image.flagged not published yet");
        let failing = OutboxRow { tries: 3, last_error: Some("no queue is bound".into()), ..first(Flagged, false) };
        assert_eq!(
            told(Flagged, 1, &[failing]),
            "image.flagged not published yet: no queue is bound; tried again 3 times"
        );
        assert_eq!(told(Passed, 1, &[]), "not announced");

        // A revision is announced by its own event, although an event of the same outcome is older.
        let events = [first(Flagged, true), revised(3, Flagged, false)];
        assert_eq!(told(Flagged, 3, &events), "image.flagged not published yet");
        assert_eq!(
            told(Flagged, 2, &[first(Flagged, true)]),
            "image.flagged at 2026-11-20T10:01:00Z, for an earlier revision with this outcome"
        );
        assert_eq!(
            told(Passed, 2, &[first(Review, true)]),
            "not announced; image.review at 2026-11-20T10:01:00Z, for an earlier revision"
        );
    }

    #[test]
    fn an_event_may_be_deleted_only_when_it_would_be_old_enough() {
        let after = JUDGED + time::Duration::days(7);
        let told = shown(Outcome::Flagged, 1, &[]).announced(after);
        assert_eq!(
            told,
            "not announced, or announced as image.flagged before 2026-11-27T10:00:00Z and deleted from the outbox since"
        );
        assert_eq!(shown(Outcome::Flagged, 1, &[]).announced(JUDGED), "not announced");
        let mut scanned = shown(Outcome::Flagged, 1, &[]);
        scanned.stored.verdict.image.bucket.clear();
        assert_eq!(scanned.announced(after), "not announced");
    }

    #[test]
    fn a_digest_that_is_none_is_a_usage_error() {
        for wrong in ["sha256:", "sha256:abc", &format!("sha256:{}", "g".repeat(64))] {
            assert!(Subject::parse(OsStr::new(wrong)).is_err(), "{wrong}");
        }
        let digest = format!("sha256:{}", "Ab".repeat(32));
        assert!(matches!(Subject::parse(OsStr::new(&digest)), Ok(Subject::Content(sha256)) if sha256 == [0xab; 32]));
    }
}
