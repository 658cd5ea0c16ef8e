//! One file: found in the ledger from an earlier scan, or read, screened and recorded.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use super::super::files::{self, FoundFile, path_text};
use super::super::output::score_of_label;
use super::measure::Cost;
use crate::banks::CurrentBanks;
use crate::config::{Config, DecodeConfig};
use crate::error_text;
use crate::job::{self, Digests, ImageRef, Lane, Outcome, Revision, Verdict, exact, exact_scores, verdict_id};
use crate::lanes::Gate;
use crate::ledger::{Inserted, Ledger, NewVerdict};
use crate::life::{self, CommitQueue, Judged, ObjectFacts, Pictures, Record, Screened};
use crate::policy::{ImageContext, Policy, PolicySet};
use crate::screen::{Screen, ScreenError, decode};

/// The first bytes of a file that suffice to recognise its format.
const HEAD_BYTES: u64 = 1024;

/// The lane that files count to.
const LANE: Lane = Lane::Backfill;

/// Everything that a file needs. One value serves all files of a scan.
pub(super) struct Scan<'a> {
    pub screen: &'a Screen,
    pub policies: &'a PolicySet,
    pub banks: &'a CurrentBanks,
    pub digests: Digests,
    pub config: &'a Config,
    /// Set where verdicts are stored.
    pub recorder: Option<Recorder>,
    /// Bounds the bytes of files in memory.
    pub bytes: Gate,
    /// Screen every image, also if an earlier verdict exists.
    pub ignore_earlier: bool,
}

/// A ledger to store verdicts in.
pub(super) struct Recorder {
    pub ledger: Arc<dyn Ledger>,
    pub commits: CommitQueue,
    /// The whole path of the ledger's file, if it is a file.
    pub file: Option<PathBuf>,
}

impl Recorder {
    /// Whether a path is the ledger's file, or a file that SQLite keeps beside it.
    fn owns(&self, path: &Path) -> bool {
        let Some(own) = &self.file else { return false };
        let names = own.file_name().and_then(OsStr::to_str).zip(path.file_name().and_then(OsStr::to_str));
        let suffix = names.and_then(|(own, found)| found.strip_prefix(own));
        matches!(suffix, Some("" | "-wal" | "-shm" | "-journal"))
            && std::path::absolute(path).is_ok_and(|path| {
                path.parent().and_then(|folder| folder.canonicalize().ok()).as_deref() == own.parent()
            })
    }
}

/// The result of one file.
pub(super) struct FileReport {
    /// The path as given.
    pub image: String,
    pub verdict: Verdict,
    /// The path was given, and not found in a folder.
    pub is_named: bool,
    /// The content is of an image format, also of one that is not supported.
    pub is_image: bool,
    /// The verdict is from an earlier scan.
    pub unchanged: bool,
    pub pictures: Pictures,
    /// Set when measuring.
    pub cost: Option<Cost>,
}

impl<'a> Scan<'a> {
    pub(super) fn new(
        screen: &'a Screen,
        policies: &'a PolicySet,
        banks: &'a CurrentBanks,
        config: &'a Config,
        recorder: Option<Recorder>,
    ) -> anyhow::Result<Self> {
        let digests = screen.digests(None).map_err(|name| anyhow!("there is no detector \"{name}\""))?;
        let bytes = Gate::new(config.storage.memory_bytes);
        Ok(Self { screen, policies, banks, digests, config, recorder, bytes, ignore_earlier: false })
    }

    /// Processes one file. Returns `None` for the ledger's own file, which may lie among the images.
    pub(super) async fn file(&self, FoundFile { path, is_named }: FoundFile) -> anyhow::Result<Option<FileReport>> {
        if self.recorder.as_ref().is_some_and(|recorder| recorder.owns(&path)) {
            return Ok(None);
        }
        let image = path_text(&path).into_owned();
        let file = FileState::of(&path).await.with_context(|| format!("cannot read {image}"))?;
        let id = self.job_id(&file);
        let (verdict, pictures, unchanged) = match self.find_earlier(&id).await? {
            Some(verdict) => (verdict, Pictures::default(), true),
            None => {
                let (verdict, pictures) = self.screen_and_record(path.clone(), &file, id).await?;
                (verdict, pictures, false)
            }
        };
        let is_image = verdict.judgement.outcome != Outcome::Undecodable || is_of_image_format(path).await;
        Ok(Some(FileReport { image, verdict, is_named, is_image, unchanged, pictures, cost: None }))
    }

    async fn screen_and_record(
        &self,
        path: PathBuf,
        file: &FileState,
        id: String,
    ) -> anyhow::Result<(Verdict, Pictures)> {
        let record = Record {
            lane: LANE,
            image: file.image.clone(),
            policy: self.policy(file).reference.clone(),
            metadata: None,
            attempts: 1,
            received_at: OffsetDateTime::now_utc(),
        };
        let mut judged = self.screen(path, file, id).await?;
        let pictures = std::mem::take(&mut judged.pictures);
        let verdict = judged.into_verdict(record);
        if let Some(recorder) = &self.recorder {
            let new = NewVerdict { verdict: verdict.clone(), event: None };
            let mut written_revision = 1;
            let replaced = |_: &Verdict, revision: &Revision| {
                written_revision = revision.number;
                None
            };
            let inserted = recorder.commits.commit(&new, &verdict.image, replaced).await?;
            if matches!(inserted, Inserted::Written { may_be_decided: true, .. }) {
                let (ledger, review) = (recorder.ledger.as_ref(), &self.config.review);
                let judging = life::Judging { policy: self.policy(file), banks: self.banks };
                let carried =
                    life::carry_over(ledger, &verdict, written_revision, review, judging, |_, _, _| None).await?;
                return Ok((carried.map_or(verdict, |carried| carried.verdict), pictures));
            }
        }
        Ok((verdict, pictures))
    }

    /// The verdict of an earlier scan of the same state of the file. A failed one is not used, so that the file is tried again.
    async fn find_earlier(&self, id: &str) -> anyhow::Result<Option<Verdict>> {
        let Some(recorder) = self.recorder.as_ref().filter(|_| !self.ignore_earlier) else { return Ok(None) };
        let earlier = recorder.ledger.read_verdict(verdict_id(id)).await?.map(|stored| stored.verdict);
        Ok(earlier.filter(|verdict| verdict.judgement.outcome != Outcome::Failed))
    }

    /// Reads, screens and judges a file.
    async fn screen(&self, path: PathBuf, file: &FileState, id: String) -> anyhow::Result<Judged> {
        let limit = self.config.storage.max_object_bytes;
        let unscored = |object: ObjectFacts, outcome: Outcome, reason: String| {
            Judged::unscored(id.clone(), self.digests.clone(), object, outcome, reason)
        };
        let mut object = ObjectFacts { bytes: Some(file.bytes), ..ObjectFacts::default() };
        if file.bytes > limit {
            let reason = format!("the file has {} bytes, the limit is {limit}", file.bytes);
            return Ok(unscored(object, Outcome::Rejected, reason));
        }
        let _memory = self.bytes.enter(Lane::Live, file.bytes).await?;
        let Some((bytes, digests)) = files::read(path, limit).await? else {
            let reason = format!("the file has more bytes than the limit of {limit}");
            return Ok(unscored(object, Outcome::Rejected, reason));
        };
        object.bytes = Some(bytes.len() as u64);
        (object.sha256, object.md5) = (Some(digests.sha256), Some(digests.md5));
        let policy = self.policy(file);
        let screened = match self.find_reusable(policy, &object).await? {
            Some(reused) => reused,
            None => match life::screen(self.screen, LANE, bytes, &self.digests).await {
                Ok(screened) => screened,
                Err(error @ ScreenError::Undecodable(_)) => {
                    let judged = unscored(object, Outcome::Undecodable, error.to_string());
                    return Ok(judged.known_by(policy, self.banks).await);
                }
                Err(error) => return Ok(unscored(object, Outcome::Failed, error_text(&error))),
            },
        };
        let answers = self.banks.answers(policy, &object.asked(&screened.facts)).await;
        let judged = Judged::by_policy(policy, answers, id.clone(), self.digests.clone(), object, screened);
        Ok(judged)
    }

    /// The policy that judges a file.
    fn policy(&self, file: &FileState) -> &Policy {
        let ImageRef { bucket, key, .. } = &file.image;
        self.policies.policy_for(&ImageContext { bucket, key, lane: LANE, metadata: None })
    }

    async fn find_reusable(&self, policy: &Policy, object: &ObjectFacts) -> anyhow::Result<Option<Screened>> {
        let recorder = self.recorder.as_ref().filter(|_| !self.ignore_earlier && self.config.worker.reuse_scores);
        let Some(recorder) = recorder else { return Ok(None) };
        let decode = &self.config.decode;
        Ok(life::find_reusable(recorder.ledger.as_ref(), policy, decode, object, &self.digests).await?)
    }

    /// An id that is equal only for the same state of a file with the same detectors, policy, banks and limits.
    fn job_id(&self, file: &FileState) -> String {
        let DecodeConfig { max_width, max_height, max_pixels, max_decoded_bytes, max_animation_pixels, .. } =
            self.config.decode;
        let banks = self.banks.versions();
        let mut state = json!([
            "file",
            file.name,
            file.image.etag,
            self.digests,
            self.policy(file).reference.sha256,
            [u64::from(max_width), u64::from(max_height), max_pixels, max_decoded_bytes, max_animation_pixels],
            self.config.storage.max_object_bytes,
        ]);
        if let Some(state) = state.as_array_mut().filter(|_| !banks.is_empty()) {
            state.push(json!(banks));
        }
        job::derived_id(&state)
    }
}

/// The properties of a file before it is read.
struct FileState {
    /// The whole path. Its bytes if it is not valid UTF-8.
    name: Value,
    /// The key is the text of the whole path, the bucket is empty. The `ETag` is made of length and times.
    image: ImageRef,
    bytes: u64,
}

impl FileState {
    async fn of(path: &Path) -> anyhow::Result<Self> {
        let found = tokio::fs::metadata(path).await?;
        if !found.is_file() {
            bail!("not a file or a folder");
        }
        let whole = std::path::absolute(path)?;
        // A copy can keep its time of modification, but not the time of its last change.
        let modified = (found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec());
        let etag = format!("{:x}-{:x}.{:x}-{:x}.{:x}", found.len(), modified.0, modified.1, modified.2, modified.3);
        Ok(Self {
            name: whole.to_str().map_or_else(|| json!(whole.as_os_str().as_encoded_bytes()), |text| json!(text)),
            image: ImageRef {
                bucket: String::new(),
                key: path_text(&whole).into_owned(),
                version_id: None,
                etag: Some(etag),
            },
            bytes: found.len(),
        })
    }
}

/// Whether the content is of an image format. What cannot be read counts as an image: it may be one.
async fn is_of_image_format(path: PathBuf) -> bool {
    let read = tokio::task::spawn_blocking(move || files::read_head(&path, HEAD_BYTES)).await;
    !matches!(read, Ok(Ok(head)) if !decode::is_of_image_format(&head))
}

impl FileReport {
    /// The row of a table.
    pub(super) fn table_row(&self) -> Map<String, Value> {
        let Verdict { judgement, seen, .. } = &self.verdict;
        let mut row = self.row();
        row.insert("score".into(), json!(score_of_label(judgement.label.as_deref(), judgement.score)));
        row.insert("size".into(), json!(seen.map(|seen| format!("{}x{}", seen.width, seen.height))));
        row
    }

    /// The row that is printed.
    pub(super) fn row(&self) -> Map<String, Value> {
        let Verdict { judgement, seen, .. } = &self.verdict;
        let fields = [
            ("image", json!(self.image)),
            ("outcome", json!(judgement.outcome)),
            ("allow", json!(judgement.allows())),
            ("reason", json!(judgement.reason)),
            ("label", json!(judgement.label)),
            ("score", json!(judgement.score.map(exact))),
            ("scores", json!(self.verdict.facts.as_ref().map(|facts| exact_scores(&facts.scores)))),
            ("findings", json!(judgement.findings)),
            ("damage", json!(self.verdict.facts.as_ref().map(|facts| &facts.damage))),
            ("sha256", json!(self.verdict.sha256.map(hex::encode))),
            ("hashes", json!(self.verdict.facts.as_ref().map(|facts| &facts.hashes))),
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
