//! The life of a job: an identified job becomes a committed verdict.
//!
//! [`JobProcessor::process`] tells all of it in five steps: identify, find an earlier verdict, fetch, screen, judge; then
//! the verdict is committed. Nothing in here names a broker or HTTP. The caller gives a [`JobRequest`] and acts on the
//! [`JobEnd`]: the worker settles its delivery by it.

mod admission;
mod buckets;
mod carry;
mod commit;
mod health;
mod outages;
mod pictures;
mod refusals;
mod request;
mod screening;
mod steps;

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::RwLock;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::refusals::resolve_refusal;
use crate::banks::CurrentBanks;
use crate::config::Config;
use crate::error_text::reason_text;
use crate::fault_injection;
use crate::job::event::{self, EventContext};
use crate::job::{Job, Judgement, Lane, Outcome, Removal, Revision, Verdict, derived_id, verdict_id};
use crate::lanes::{Gate, Permit};
use crate::ledger::{
    Event, ExistingVerdict, Inserted, Ledger, LedgerError, NewVerdict, StoredVerdict, mark_restricted,
};
use crate::objects::{FetchError, Fetcher};
use crate::policy::{Policy, PolicySet, Rule};
use crate::screen::Screen;
use crate::telemetry::metrics::{CountedPolicy, CountedRule, JudgementMetrics};
use crate::telemetry::{Stage, metrics, timed, traces};

pub use admission::Admission;
use buckets::BucketHolds;
use carry::Carried;
pub(crate) use carry::{Judging, carry_over};
pub use commit::{CommitQueue, linger_limit};
pub use health::{Dependency, Health};
pub use pictures::Pictures;
pub use request::{AttemptError, AttemptFailure, BrokenService, Held, JobEnd, JobRequest, QuarantineRecords};
use steps::{Fetched, Identified, Replayed, Stop};
pub(crate) use steps::{Judged, ObjectFacts, Record, Screened, find_reusable, screen};

/// Everything that a job needs on its way to a verdict. One value serves all jobs of a process.
pub struct JobProcessor {
    pub config: Arc<Config>,
    pub ledger: Arc<dyn Ledger>,
    pub fetcher: Arc<Fetcher>,
    pub screen: Screen,
    pub policies: PolicySet,
    pub banks: Arc<CurrentBanks>,
    pub admission: Admission,
    pub health: Health,
    pub commits: CommitQueue,
    /// Series of scores and findings.
    judgements: JudgementMetrics,
    /// Buckets whose jobs wait.
    buckets: BucketHolds,
    /// Identifies this process among those that have screened a redelivered job.
    process_id: Uuid,
    /// Backfill jobs that are screened together hold this lock for reading. A job that is screened alone holds it for
    /// writing. Live jobs do not hold it.
    screening: RwLock<()>,
    /// Admits one job at a time to be screened alone.
    alone: Gate,
    /// Records of screenings that could not be removed yet.
    unremoved: Mutex<Vec<Uuid>>,
    stop: CancellationToken,
}

/// What a [`JobProcessor`] is made of.
pub struct JobProcessorParts {
    pub config: Arc<Config>,
    pub ledger: Arc<dyn Ledger>,
    pub fetcher: Arc<Fetcher>,
    pub screen: Screen,
    pub policies: PolicySet,
    pub banks: Arc<CurrentBanks>,
    pub admission: Admission,
    pub health: Health,
    pub commits: CommitQueue,
    /// Set when the process shuts down. Jobs that wait for a broken dependency end as interrupted.
    pub stop: CancellationToken,
}

impl JobProcessor {
    #[must_use]
    pub fn new(parts: JobProcessorParts) -> Self {
        let JobProcessorParts { config, ledger, fetcher, screen, policies, banks, admission, health, commits, stop } =
            parts;
        let judgements = judgement_metrics(&screen, &policies);
        Self {
            config,
            ledger,
            fetcher,
            screen,
            policies,
            banks,
            admission,
            health,
            commits,
            judgements,
            buckets: BucketHolds::default(),
            process_id: Uuid::new_v4(),
            screening: RwLock::new(()),
            alone: Gate::new(1),
            unremoved: Mutex::default(),
            stop,
        }
    }

    /// Refuses every job that waits for its turn now or comes later.
    pub fn close_gates(&self) {
        self.admission.close();
        self.alone.close();
    }

    /// Processes one job until its verdict is committed, or until it is known why there is none.
    pub async fn process(&self, request: &JobRequest) -> JobEnd {
        traces::record_image(&request.job.image);
        let end = self.process_until_end(request).await;
        if request.is_redelivered {
            if let JobEnd::AnsweredBefore(id) = &end {
                Box::pin(self.carry_if_missed(request, *id)).await;
            }
            // A record that another process left behind has no use any more.
            match &end {
                JobEnd::Committed { verdict, .. } => request.records.add(verdict.id),
                JobEnd::AnsweredBefore(id) | JobEnd::Erased(id) => request.records.add(*id),
                _ => {}
            }
        }
        end
    }

    async fn process_until_end(&self, request: &JobRequest) -> JobEnd {
        // That of a suspect, once it has waited for it.
        let mut turn = None;
        loop {
            // What this attempt has found out is kept if it fails.
            let mut progress = Progress::default();
            // A panic costs one attempt of one job, not the process.
            let attempt = Box::pin(self.attempt(request, &mut progress, turn.take()));
            let error = match AssertUnwindSafe(attempt).catch_unwind().await {
                Ok(Ok(judged) | Err(Stop::Judged(judged))) => {
                    if !self.keep_upload(request, &judged).await {
                        return JobEnd::NotKept;
                    }
                    return Box::pin(self.commit(request, *judged)).await;
                }
                Ok(Err(Stop::Ended(end))) => return *end,
                Ok(Err(Stop::Suspect)) => match self.wait_for_turn(request).await {
                    Ok(permit) => {
                        turn = Some(permit);
                        continue;
                    }
                    Err(_) => return JobEnd::Interrupted,
                },
                Ok(Err(Stop::Failed(error))) => error,
                Err(_) => AttemptError::Failed(AttemptFailure::Panic),
            };
            match error {
                AttemptError::ShuttingDown => return JobEnd::Interrupted,
                AttemptError::Held(held) => return JobEnd::Held(held),
                AttemptError::Paused => {
                    if !self.resumed(request.deadline).await {
                        return JobEnd::Interrupted;
                    }
                }
                AttemptError::Broken(broken) => {
                    self.report_broken(&broken, &request.job.image.bucket);
                    let outage = match &broken {
                        BrokenService::Store { address, .. } => self.health.store_outage(address),
                        BrokenService::Ledger(_) => None,
                    };
                    match (self.health.first_pausing(), outage) {
                        // Other stores work, so intake goes on.
                        (None, Some(outage)) => {
                            let (reason, duration) = (reason_text(&broken), outage.since.elapsed());
                            return JobEnd::Held(Held { reason, duration });
                        }
                        _ if !self.resumed(request.deadline).await => return JobEnd::Interrupted,
                        _ => {}
                    }
                }
                AttemptError::Failed(failure) => {
                    metrics::attempt_failed(failure.label());
                    let reason = reason_text(&failure);
                    let failed_attempts = request.failed_attempts.saturating_add(1);
                    if failed_attempts < request.max_attempts {
                        return JobEnd::AttemptFailed { failed_attempts, reason };
                    }
                    let judged = self.given_up(request, failed_attempts, progress, &reason);
                    return Box::pin(self.commit(request, judged)).await;
                }
            }
        }
    }

    /// One attempt at a job. `turn` is that of a suspect which has waited for it.
    async fn attempt(
        &self,
        request: &JobRequest,
        progress: &mut Progress,
        turn: Option<Permit>,
    ) -> Result<Box<Judged>, Stop> {
        progress.replayed = self.call(|| self.find_replayed(request)).await?;
        let identified = self.identify(request, progress.replayed.clone())?;
        self.end_if_known(&identified).await?;
        let (fetched, bytes) = self.fetch(identified, progress).await?;
        let policy = self.policy(request);
        let screened = match self.screen(&fetched, bytes, turn).await {
            // Nothing is shown, but a bank may know the file.
            Err(Stop::Judged(judged)) => return Ok(Box::new(judged.known_by(policy, &self.banks).await)),
            screened => screened?,
        };
        let Fetched { identified, job_id, object, .. } = fetched;
        let answers = self.banks.answers(policy, &object.asked(&screened.facts)).await;
        Ok(Box::new(Judged::by_policy(policy, answers, job_id, identified.detectors, object, screened)))
    }

    /// The policy that judges the job.
    #[must_use]
    pub fn policy(&self, request: &JobRequest) -> &Policy {
        self.policies.policy_for(&request.context())
    }

    /// The policy that would judge a job of this lane.
    #[must_use]
    pub fn policy_of_job(&self, job: &Job, lane: Lane) -> &Policy {
        self.policies.policy_for(&request::context(job, lane))
    }

    /// Finds the detectors that screen the job, and refuses a job that names what is not there or not allowed.
    fn identify<'a>(&self, request: &'a JobRequest, replayed: Option<Replayed>) -> Result<Identified<'a>, Stop> {
        let job = &request.job;
        let digests = self.screen.digests(job.detectors.as_deref());
        let reason = match &digests {
            Err(unknown) => Some(format!("there is no detector \"{unknown}\"")),
            Ok(_) if request.upload.is_none() && !self.fetcher.allows(&job.image.bucket) => {
                Some(format!("the bucket \"{}\" is not allowed", job.image.bucket))
            }
            // A sender must not choose what the image is judged by.
            Ok(detectors) => self.policy(request).first_detector_outside(detectors).map(|detector| {
                format!("\"detectors\" leaves out \"{detector}\", which the policy judges by; only shadow detectors may be left out")
            }),
        };
        let identified = Identified { request, detectors: digests.unwrap_or_default(), replayed };
        match reason {
            Some(reason) => Err(identified.ends_as(ObjectFacts::default(), Outcome::Rejected, reason)),
            None => Ok(identified),
        }
    }

    /// The verdict that a replayed dead letter may replace, where the job's id is derived.
    async fn find_replayed(&self, request: &JobRequest) -> Result<Option<Replayed>, LedgerError> {
        let Some(job_id) = &request.replayed_id else { return Ok(None) };
        if request.job.has_given_id() {
            return Ok(None);
        }
        let earlier = self.ledger.find_verdict(verdict_id(job_id)).await?;
        Ok(earlier.map(|earlier| Replayed { job_id: job_id.clone(), earlier }))
    }

    /// Ends a job that has its verdict already. Of a redelivered job most often only its acknowledgement was lost.
    async fn end_if_known(&self, identified: &Identified<'_>) -> Result<(), Stop> {
        let request = identified.request;
        if !(request.is_redelivered || request.may_be_known) || !identified.id_is_known() {
            return Ok(());
        }
        self.end_if_answered(request, verdict_id(&identified.job_id(None))).await
    }

    /// Ends a job whose verdict exists.
    async fn end_if_answered(&self, request: &JobRequest, id: Uuid) -> Result<(), Stop> {
        match self.call(|| self.ledger.find_verdict(id)).await? {
            Some(known) if !known.answers(&request.job.image) => Err(Stop::Ended(JobEnd::IdConflict.into())),
            // An object that was missing may be there by now.
            Some(known) if known.outcome == Outcome::Missing && !request.job.has_given_id() => Ok(()),
            Some(known) if known.outcome != Outcome::Failed => Err(Stop::Ended(JobEnd::AnsweredBefore(id).into())),
            _ => Ok(()),
        }
    }

    /// Waits for admission, then downloads the object.
    async fn fetch<'a>(
        &self,
        identified: Identified<'a>,
        progress: &mut Progress,
    ) -> Result<(Fetched<'a>, Bytes), Stop> {
        let JobRequest { job, lane, upload, .. } = identified.request;
        let bucket = &job.image.bucket;
        // Fails at once while something is known to be broken.
        match upload {
            None => self.fail_if_broken(bucket)?,
            Some(_) => self.fail_if_paused()?,
        }
        let admitted = timed(Stage::Admit, self.admission.enter(*lane, identified.request.arrived)).await;
        // A worker that drains, and a broker that waits no longer, both get the delivery back.
        let (permit, object_permit) = admitted.map_err(|_| Stop::Failed(AttemptError::ShuttingDown))?;
        if let Some(upload) = upload {
            let object = ObjectFacts::of_upload(upload);
            progress.object = object.clone();
            let job_id = identified.job_id(None);
            return Ok((Fetched { identified, job_id, object, _permit: permit }, upload.bytes_with(object_permit)));
        }
        // On the heap, as the attempt and the commit are: each state is large, and all callers would hold it on their stacks.
        let download = Box::pin(self.fetcher.fetch(&job.image, *lane, &self.admission.downloads));
        let fetched = timed(Stage::Fetch, download).await;
        let is_answer = !matches!(
            fetched,
            Err(FetchError::Denied(_) | FetchError::BucketDown { .. } | FetchError::StoreDown { .. })
        );
        if is_answer {
            self.buckets.accessible(bucket);
        }
        let object = match fetched {
            Ok(object) => object,
            Err(error) => return Err(self.end_of_fetch(identified, progress, error)),
        };
        fault_injection::crash_point("fetch");
        let facts = ObjectFacts::of(&object);
        progress.object = facts.clone();
        let job_id = identified.job_id(facts.etag.as_deref());
        let fetched = Fetched { identified, job_id, object: facts, _permit: permit };
        Ok((fetched, object.into_bytes_with(object_permit)))
    }

    /// What a failed fetch means for the job.
    fn end_of_fetch(&self, identified: Identified<'_>, progress: &mut Progress, error: FetchError) -> Stop {
        let bucket = &identified.request.job.image.bucket;
        let unknown = ObjectFacts::default();
        Stop::Failed(match error {
            FetchError::Missing(_) => return identified.ends_as(unknown, Outcome::Missing, reason_text(&error)),
            FetchError::Unsupported(_) => return identified.ends_as(unknown, Outcome::Rejected, reason_text(&error)),
            FetchError::TooLarge { ref etag, .. } => {
                let object = ObjectFacts { etag: etag.clone(), ..unknown };
                return identified.ends_as(object, Outcome::Rejected, reason_text(&error));
            }
            FetchError::Failed { ref etag, .. } => {
                progress.object.etag.clone_from(etag);
                AttemptError::Failed(AttemptFailure::Object(error.into()))
            }
            FetchError::Denied(_) => match self.buckets.refused(bucket, &reason_text(&error)) {
                Some(held) => AttemptError::Held(held),
                None => AttemptError::Failed(AttemptFailure::Object(error.into())),
            },
            FetchError::BucketDown { .. } => AttemptError::Held(self.buckets.unusable(bucket, &reason_text(&error))),
            FetchError::StoreDown { .. } => {
                let address = self.fetcher.address(bucket).to_owned();
                AttemptError::Broken(BrokenService::Store { address, error: error.into() })
            }
            FetchError::GateClosed(_) => AttemptError::ShuttingDown,
        })
    }

    /// Records that an object was removed, and returns the number of verdicts on it. Waits for a broken ledger, until the
    /// deadline.
    ///
    /// # Errors
    /// [`JobEnd::Interrupted`] or [`JobEnd::Unrecorded`].
    pub async fn record_removal(&self, removal: &Removal, deadline: Instant) -> Result<u64, JobEnd> {
        // A sender must not mark what it could not have screened.
        if !self.fetcher.allows(&removal.bucket) {
            return Ok(0);
        }
        loop {
            match self.call(|| self.ledger.mark_deleted(removal)).await {
                Ok(verdicts) => return Ok(verdicts),
                Err(Stop::Failed(AttemptError::Broken(broken))) => {
                    self.report_broken(&broken, &removal.bucket);
                    if !self.resumed(deadline).await {
                        return Err(JobEnd::Interrupted);
                    }
                }
                Err(Stop::Failed(AttemptError::Failed(failure))) => {
                    return Err(JobEnd::Unrecorded { reason: reason_text(&failure) });
                }
                Err(_) => return Err(JobEnd::Interrupted),
            }
        }
    }

    /// Calls the ledger for a job. A working ledger that refuses one call, as for a damaged page, must not stop the other
    /// jobs: this job's attempt has failed.
    async fn call<T, F>(&self, call: impl Fn() -> F + Send + Sync) -> Result<T, Stop>
    where
        F: Future<Output = Result<T, LedgerError>> + Send,
    {
        let result = match call().await {
            Err(LedgerError::Refused(reason) | LedgerError::RefusedUnclear(reason)) => {
                resolve_refusal(self.ledger.as_ref(), reason, call).await
            }
            result => result,
        };
        result.map_err(|error| {
            Stop::Failed(match error {
                LedgerError::Refused(error) => AttemptError::Failed(AttemptFailure::Ledger(error)),
                error => AttemptError::Broken(error.into()),
            })
        })
    }

    /// Keeps an upload where the operator wants it, if its verdict allows that. This comes before the commit: a verdict on
    /// bytes that are lost could not be looked into. Returns false if the upload should be kept and cannot.
    async fn keep_upload(&self, request: &JobRequest, judged: &Judged) -> bool {
        let Some((upload, place)) = request.upload.as_ref().zip(request.keep_at.as_ref()) else { return true };
        if !judged.may_be_kept() {
            return true;
        }
        let kept = self.fetcher.keep(place, upload).await;
        kept.inspect_err(|error| tracing::warn!(image = place.uri(), %error, "upload not kept")).is_ok()
    }

    /// Commits a verdict with its event.
    async fn commit(&self, request: &JobRequest, judged: Judged) -> JobEnd {
        let pictures = judged.pictures.clone();
        let verdict = judged.into_verdict(Record::of(request, self.policy(request), &self.config.ledger));
        let mut entry = self.with_event(request, verdict);
        let mut was_refused = false;
        let (mut revised_event, mut written_revision) = (None, 1);
        let inserted = loop {
            let event_of_revision = |verdict: &Verdict, revision: &Revision| {
                // Only a failure is replaced.
                let event = self.event(request, verdict, Some((revision, Some(Outcome::Failed))));
                revised_event = Some(event.clone());
                written_revision = revision.number;
                self.config.addressed(event)
            };
            match timed(Stage::Commit, self.commits.commit(&entry, &request.job.image, event_of_revision)).await {
                // The row of this id is on another state of the object, so this state gets the next id.
                Ok(Inserted::Existing(earlier))
                    if entry.verdict.judgement.outcome != Outcome::Failed
                        && earlier.answers(&request.job.image)
                        && !answers_state(request, &earlier, &entry.verdict) =>
                {
                    if request.is_redelivered {
                        request.records.add(entry.verdict.id);
                    }
                    let job_id = next_id(&entry.verdict.job_id);
                    let verdict = Verdict { id: verdict_id(&job_id), job_id, ..entry.verdict };
                    entry = self.with_event(request, verdict);
                }
                Ok(inserted) => break inserted,
                Err(LedgerError::Refused(reason)) if !was_refused => {
                    // What a database cannot store comes from the sender, most likely in the metadata.
                    was_refused = true;
                    let reason = format!("the ledger refused the verdict: {reason}");
                    let judgement = Judgement::unscored(Outcome::Failed, reason);
                    // Without the metadata a later rejudge could judge the facts by another policy.
                    let verdict = Verdict { metadata: None, facts: None, judgement, ..entry.verdict };
                    entry = self.with_event(request, verdict);
                }
                Err(LedgerError::Refused(reason)) => return JobEnd::Unrecorded { reason: reason.to_string() },
                Err(error) => {
                    self.report_broken(&error.into(), &request.job.image.bucket);
                    if !self.resumed(request.deadline).await {
                        return JobEnd::Interrupted;
                    }
                }
            }
        };
        let verdict = entry.verdict;
        let outcome = verdict.judgement.outcome;
        match inserted {
            Inserted::Erased => {
                // The image is not named: its name was erased.
                tracing::info!(lane = %request.lane, "job finished without a verdict, because that was erased");
                JobEnd::Erased(verdict.id)
            }
            Inserted::Existing(earlier) if !earlier.answers(&request.job.image) => JobEnd::IdConflict,
            // A failure gets no other row. Its dead letter can be replayed, and then has an outcome.
            Inserted::Existing(earlier) if !answers_state(request, &earlier, &verdict) => {
                let reason = verdict.judgement.reason.unwrap_or_default();
                let reason = format!(
                    "{outcome}: {reason}; the verdict {} ({}) has the same job id and is on another state of the object",
                    verdict.id, earlier.outcome
                );
                JobEnd::Unrecorded { reason }
            }
            // The earlier verdict stands.
            Inserted::Existing(earlier) if earlier.outcome != outcome => JobEnd::AnsweredBefore(verdict.id),
            Inserted::Existing(earlier) => {
                // A process that has lost the reply of its commit, or died after it, took no decision over.
                if earlier.revision == 1 {
                    let carried = Box::pin(self.carry_over(request, &verdict, 1)).await;
                    if let Some((verdict, revised_event, new_event)) = carried {
                        let (revised_event, new_event) = (revised_event.map(Box::new), new_event.map(Box::new));
                        return JobEnd::Committed { verdict: Box::new(verdict), revised_event, new_event, pictures };
                    }
                }
                let revised_event = revised_event.map(Box::new);
                JobEnd::Committed { verdict: Box::new(verdict), revised_event, new_event: None, pictures }
            }
            Inserted::Written { event: new_event, may_be_decided } => {
                self.judgements.record(&verdict.policy.name, verdict.facts.as_ref(), &verdict.judgement);
                record_commit(request, &verdict, self.earlier_verdict(request, &verdict).await);
                let carried = match may_be_decided {
                    true => Box::pin(self.carry_over(request, &verdict, written_revision)).await,
                    false => None,
                };
                let (verdict, revised_event, new_event) = carried.unwrap_or((verdict, revised_event, new_event));
                let (revised_event, new_event) = (revised_event.map(Box::new), new_event.map(Box::new));
                JobEnd::Committed { verdict: Box::new(verdict), revised_event, new_event, pictures }
            }
        }
    }

    /// A process that died after its commit has taken no decision over.
    async fn carry_if_missed(&self, request: &JobRequest, id: Uuid) {
        match self.ledger.read_verdict(id).await {
            Ok(Some(stored)) if stored.revision.number == 1 => drop(self.carry_over(request, &stored.verdict, 1).await),
            Ok(_) => {}
            Err(error) => tracing::info!(%error, verdict = %id, "earlier verdict not read"),
        }
    }

    /// What becomes of a verdict that was just written, where a person has decided about equal bytes: its state, and the event
    /// of that state, whether it is published and as the outbox has it.
    async fn carry_over(
        &self,
        request: &JobRequest,
        verdict: &Verdict,
        revision: u32,
    ) -> Option<(Verdict, Option<Event>, Option<Event>)> {
        let event = |verdict: &Verdict, revision: &Revision, before: Outcome| {
            self.config.addressed(self.event(request, verdict, Some((revision, Some(before)))))
        };
        let judging = Judging { policy: self.policy(request), banks: &self.banks };
        match carry_over(self.ledger.as_ref(), verdict, revision, &self.config.review, judging, event).await {
            Ok(carried) => {
                let Carried { verdict, event, revision, before } = carried?;
                let answered = self.event(request, &verdict, Some((&revision, Some(before))));
                Some((verdict, Some(answered), event))
            }
            Err(error) => {
                tracing::warn!(%error, verdict = %verdict.id, "a decision on equal bytes was not taken over, and a person has to decide again");
                None
            }
        }
    }

    /// Another verdict on the image of a redelivered job. It may be that of the same job: an id that depends on what the
    /// store answers is another one if the store answers differently.
    async fn earlier_verdict(&self, request: &JobRequest, verdict: &Verdict) -> Option<Uuid> {
        if !request.is_redelivered || request.job.id_is_known() {
            return None;
        }
        let found = self.ledger.verdicts_on_image(&verdict.image, 2).await.ok()?;
        found.into_iter().map(|stored| stored.verdict.id).find(|id| *id != verdict.id)
    }

    fn with_event(&self, request: &JobRequest, verdict: Verdict) -> NewVerdict {
        let event = self.config.addressed(self.event(request, &verdict, None));
        NewVerdict { verdict, event }
    }

    /// A verdict's event, whether or not its routing key is published. `revision` is set for a later judgement, with the
    /// outcome before it.
    #[must_use]
    pub fn event(
        &self,
        request: &JobRequest,
        verdict: &Verdict,
        revision: Option<(&Revision, Option<Outcome>)>,
    ) -> Event {
        let trace = traces::context_to_propagate(request.trace.as_ref());
        let correlation_id = request.correlation_id.as_deref();
        let context = EventContext { correlation_id, trace: trace.as_ref(), deleted_at: None };
        match revision {
            None => event::event(verdict, context, &self.config.prefix),
            Some((revision, earlier)) => event::revised_event(verdict, revision, earlier, context, &self.config.prefix),
        }
    }

    /// The event of a verdict that the ledger has, as it is now. None if the ledger cannot be read.
    pub async fn stored_event(&self, request: &JobRequest, id: Uuid) -> Option<Event> {
        let read = async {
            let Some(mut stored) = self.ledger.read_verdict(id).await? else { return Ok(None) };
            mark_restricted(self.ledger.as_ref(), std::slice::from_mut(&mut stored)).await?;
            let StoredVerdict { verdict, revision, .. } = stored;
            let earlier = self.ledger.earlier_states(id).await?.last().map(|state| state.judgement.outcome);
            Ok(Some(self.event(request, &verdict, Some((&revision, earlier)))))
        };
        read.await.unwrap_or_else(|error: LedgerError| {
            tracing::info!(%error, verdict = %id, "earlier verdict not read");
            None
        })
    }

    /// The end of a job whose last attempt has failed.
    fn given_up(&self, request: &JobRequest, failed_attempts: u32, progress: Progress, reason: &str) -> Judged {
        let detectors = self.screen.digests(request.job.detectors.as_deref()).unwrap_or_default();
        let attempts = if failed_attempts == 1 { "attempt" } else { "attempts" };
        let reason = format!("given up after {failed_attempts} {attempts}: {reason}");
        let identified = Identified { request, detectors, replayed: progress.replayed };
        identified.judged(progress.object, Outcome::Failed, reason)
    }
}

/// What an attempt has found out so far.
#[derive(Default)]
struct Progress {
    object: ObjectFacts,
    replayed: Option<Replayed>,
}

/// Whether an earlier verdict of the same id answers the state of the object that `verdict` is about. An id that the sender
/// gave stands for one verdict. A derived id names a state of the object, unless its version and its `ETag` were unknown; and
/// a state that was missing may be there again.
fn answers_state(request: &JobRequest, earlier: &ExistingVerdict, verdict: &Verdict) -> bool {
    let (before, now) = (&earlier.image, &verdict.image);
    let versions = before.named_version().zip(now.named_version());
    let etags = before.etag.as_deref().zip(now.etag.as_deref());
    let is_back = earlier.outcome == Outcome::Missing && verdict.judgement.outcome != Outcome::Missing;
    let is_same =
        versions.or(etags).map_or(earlier.outcome == verdict.judgement.outcome, |(before, now)| before == now);
    request.job.has_given_id() || (is_same && !is_back)
}

/// The id of a job without a given id whose derived id has a row on another state of the object.
fn next_id(job_id: &str) -> String {
    derived_id(&serde_json::json!(["next", job_id]))
}

/// The series of the configured detectors and policies.
fn judgement_metrics(screen: &Screen, policies: &PolicySet) -> JudgementMetrics {
    fn counted(rule: &Rule) -> CountedRule<'_> {
        let score = rule.score().map(|rule| (rule.detector.as_str(), rule.label.as_str()));
        CountedRule { text: rule.text(), score }
    }
    let detectors = screen.engines().iter().map(|engine| &engine.detector);
    let policies: Vec<_> = policies
        .all()
        .filter(|policy| !policy.rules.is_empty())
        .map(|policy| CountedPolicy { name: &policy.reference.name, rules: policy.rules.iter().map(counted).collect() })
        .collect();
    JudgementMetrics::start(detectors.map(|detector| (detector.name.as_str(), &detector.labels[..])), &policies)
}

/// Records a new verdict in metrics, in the job's span and in the log.
fn record_commit(request: &JobRequest, verdict: &Verdict, earlier: Option<Uuid>) {
    let outcome = verdict.judgement.outcome;
    let is_reused = verdict.reused_from.is_some();
    traces::record_text("pixwarden.job_id", &verdict.job_id);
    traces::record_text("pixwarden.outcome", outcome.as_str());
    metrics::verdict_committed(request.lane, outcome, is_reused, request.arrived);
    fault_injection::crash_point("commit");
    let took = verdict.decided_at - verdict.received_at;
    tracing::info!(
        job_id = verdict.job_id,
        image = verdict.image.uri(),
        %outcome,
        reason = verdict.judgement.reason,
        lane = %verdict.lane,
        attempts = verdict.attempts,
        reused = is_reused,
        earlier_verdict = earlier.map(tracing::field::display),
        ms = u64::try_from(took.whole_milliseconds()).unwrap_or(0),
        "job finished"
    );
}
