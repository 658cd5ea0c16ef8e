//! The life of one file: known from an earlier scan, or read, screened and recorded.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use super::super::files;
use super::measure::Cost;
use crate::config::{Config, DecodeConfig};
use crate::job::{self, Digests, ImageRef, Judgement, Lane, Outcome, Seen, Verdict, exact, exact_scores, verdict_id};
use crate::ledger::{Ledger, NewVerdict};
use crate::screen::prepare::Pixels;
use crate::screen::{Screen, Unseen, decode, judge};
use crate::worker::admit::Gate;
use crate::worker::persist::Persist;

/// What every file meets.
pub(super) struct Scan<'a> {
    pub screen: &'a Screen,
    pub digests: Digests,
    pub config: &'a Config,
    /// Where verdicts are kept, if they are.
    pub book: Option<Book>,
    /// Bounds the bytes of files in memory.
    pub bytes: Gate,
    /// Every image is to be looked at, whatever is known of it.
    pub anew: bool,
}

/// A ledger, and the way into it.
pub(super) struct Book {
    pub ledger: Arc<dyn Ledger>,
    pub persist: Persist,
    /// The file that it is, with its whole path, where it is one.
    pub file: Option<PathBuf>,
}

impl Book {
    /// Whether a path is the ledger's file, or one of those that SQLite keeps beside it.
    fn is(&self, path: &Path) -> bool {
        let Some(own) = &self.file else { return false };
        let names = own.file_name().and_then(OsStr::to_str).zip(path.file_name().and_then(OsStr::to_str));
        let suffix = names.and_then(|(own, found)| found.strip_prefix(own));
        matches!(suffix, Some("" | "-wal" | "-shm" | "-journal"))
            && std::path::absolute(path).is_ok_and(|path| {
                path.parent().and_then(|folder| folder.canonicalize().ok()).as_deref() == own.parent()
            })
    }
}

/// What became of one file.
pub(super) struct Report {
    /// As the path was given.
    pub image: String,
    pub verdict: Verdict,
    /// It was known from an earlier scan.
    pub unchanged: bool,
    /// What each detector saw of the first frame.
    pub shown: Vec<(String, Arc<Pixels>)>,
    /// What it took, where that was measured.
    pub cost: Option<Cost>,
}

/// What is known before the judgement.
#[derive(Default)]
struct Found {
    /// As read, where that was done.
    bytes: Option<u64>,
    sha256: Option<[u8; 32]>,
    seen: Option<Seen>,
    scores: Option<job::Scores>,
    reused_from: Option<uuid::Uuid>,
    shown: Vec<(String, Arc<Pixels>)>,
}

impl<'a> Scan<'a> {
    pub(super) fn new(screen: &'a Screen, config: &'a Config, book: Option<Book>) -> anyhow::Result<Self> {
        let digests = screen.digests(None).map_err(|name| anyhow!("there is no detector \"{name}\""))?;
        let bytes = Gate::new(config.storage.memory_bytes);
        Ok(Self { screen, digests, config, book, bytes, anew: false })
    }

    /// One file, from its name to its row.
    ///
    /// `None` for the ledger's own file, which may lie among the images.
    pub(super) async fn file(&self, path: PathBuf) -> anyhow::Result<Option<Report>> {
        if self.book.as_ref().is_some_and(|book| book.is(&path)) {
            return Ok(None);
        }
        let image = path.display().to_string();
        let file = State::of(&path).await.with_context(|| format!("reading {image}"))?;
        let id = self.job_id(&file);
        if let Some(verdict) = self.known(&id).await? {
            return Ok(Some(Report { image, verdict, unchanged: true, shown: Vec::new(), cost: None }));
        }
        let received_at = OffsetDateTime::now_utc();
        let (found, judgement) = self.look(path, file.bytes).await?;
        let verdict = Verdict {
            id: verdict_id(&id),
            job_id: id,
            lane: Lane::Backfill,
            image: file.image,
            sha256: found.sha256,
            bytes: Some(found.bytes.unwrap_or(file.bytes)),
            seen: found.seen,
            judgement,
            scores: found.scores,
            detectors: self.digests.clone(),
            policy: self.screen.policy().reference.clone(),
            metadata: None,
            reused_from: found.reused_from,
            attempts: 1,
            received_at,
            decided_at: OffsetDateTime::now_utc(),
        };
        if let Some(book) = &self.book {
            book.persist.commit(&NewVerdict { verdict: verdict.clone(), event: None }, |_| None).await?;
        }
        Ok(Some(Report { image, verdict, unchanged: false, shown: found.shown, cost: None }))
    }

    /// The verdict of an earlier scan on this very state of the file, unless it is one to be tried again.
    async fn known(&self, id: &str) -> anyhow::Result<Option<Verdict>> {
        let Some(book) = self.book.as_ref().filter(|_| !self.anew) else { return Ok(None) };
        let earlier = book.ledger.read_verdict(verdict_id(id)).await?.map(|stored| stored.verdict);
        Ok(earlier.filter(|verdict| verdict.judgement.outcome != Outcome::Failed))
    }

    async fn look(&self, path: PathBuf, length: u64) -> anyhow::Result<(Found, Judgement)> {
        let mut found = Found::default();
        let limit = self.config.storage.max_object_bytes;
        let too_large = |what: &str| {
            Judgement::unscored(Outcome::Rejected, format!("the file has {what} bytes, the limit is {limit}"))
        };
        if length > limit {
            return Ok((found, too_large(&length.to_string())));
        }
        let _memory = self.bytes.enter(Lane::Live, length).await?;
        let Some((bytes, sha256)) = files::read(path, limit).await? else {
            return Ok((found, too_large("more")));
        };
        found.bytes = Some(bytes.len() as u64);
        found.sha256 = Some(sha256);

        if let Some(book) = self.book.as_ref().filter(|_| !self.anew && self.config.worker.reuse_scores) {
            let policy = self.screen.policy();
            let earlier = book.ledger.find_scores(sha256, &self.digests, &policy.reference.sha256).await?;
            if let Some(earlier) = earlier.filter(|earlier| decode::allows(&self.config.decode, earlier.seen)) {
                let judgement = judge::judge(policy, &earlier.scores);
                found.seen = Some(earlier.seen);
                found.scores = Some(earlier.scores);
                found.reused_from = Some(earlier.verdict);
                return Ok((found, judgement));
            }
        }
        match self.screen.look(Lane::Backfill, bytes, &self.digests).await {
            Ok(sight) => {
                found.seen = Some(sight.seen);
                // Scores that are not numbers are not worth keeping.
                found.scores = (sight.judgement.outcome != Outcome::Failed).then_some(sight.scores);
                found.shown = sight.shown;
                Ok((found, sight.judgement))
            }
            Err(Unseen::Undecodable(decode::Undecodable(why))) => {
                Ok((found, Judgement::unscored(Outcome::Undecodable, why)))
            }
            Err(e @ (Unseen::Undecoded(_) | Unseen::Unscored(_))) => {
                Ok((found, Judgement::unscored(Outcome::Failed, e.to_string())))
            }
        }
    }

    /// The same for the same state of a file under the same detectors, policy and limits, and for nothing else.
    fn job_id(&self, file: &State) -> String {
        let DecodeConfig { max_width, max_height, max_pixels, max_decoded_bytes, max_animation_pixels, .. } =
            self.config.decode;
        job::derived_id(&json!([
            "file",
            file.name,
            file.image.etag,
            self.digests,
            self.screen.policy().reference.sha256,
            [u64::from(max_width), u64::from(max_height), max_pixels, max_decoded_bytes, max_animation_pixels],
            self.config.storage.max_object_bytes,
        ]))
    }
}

/// What a file is before it is read.
struct State {
    /// Its whole path; its bytes where they are no text.
    name: Value,
    /// The whole path as its key, in no bucket. The `ETag` is of length and times.
    image: ImageRef,
    bytes: u64,
}

impl State {
    async fn of(path: &Path) -> anyhow::Result<Self> {
        let found = tokio::fs::metadata(path).await?;
        if !found.is_file() {
            bail!("it is neither a file nor a folder");
        }
        let whole = std::path::absolute(path)?;
        // A copy that keeps its time of modification cannot keep the time of its last change.
        let modified = (found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec());
        let etag = format!("{:x}-{:x}.{:x}-{:x}.{:x}", found.len(), modified.0, modified.1, modified.2, modified.3);
        Ok(Self {
            name: whole.to_str().map_or_else(|| json!(whole.as_os_str().as_encoded_bytes()), |text| json!(text)),
            image: ImageRef {
                bucket: String::new(),
                key: whole.display().to_string(),
                version_id: None,
                etag: Some(etag),
            },
            bytes: found.len(),
        })
    }
}

impl Report {
    /// The row that is printed.
    pub(super) fn row(&self) -> Map<String, Value> {
        let Verdict { judgement, seen, .. } = &self.verdict;
        let fields = [
            ("image", json!(self.image)),
            ("outcome", json!(judgement.outcome)),
            ("reason", json!(judgement.reason)),
            ("label", json!(judgement.label)),
            ("score", json!(judgement.score.map(exact))),
            ("scores", json!(self.verdict.scores.as_ref().map(exact_scores))),
            ("sha256", json!(self.verdict.sha256.map(hex::encode))),
            ("format", json!(seen.map(|seen| seen.format))),
            ("width", json!(seen.map(|seen| seen.width))),
            ("height", json!(seen.map(|seen| seen.height))),
            ("bytes", json!(self.verdict.bytes)),
            ("frames", json!(seen.map(|seen| seen.frames))),
        ];
        let fields = fields.into_iter().map(|(key, value)| (key.to_owned(), value));
        fields.chain(self.cost.iter().flat_map(Cost::fields)).collect()
    }
}
