//! The life of a job: an identified job becomes a committed verdict.
//!
//! [`JobProcessor::process`] tells all of it in five steps: identify, find an earlier verdict, fetch, screen, judge; then
//! the verdict is committed. Nothing in here names a broker or HTTP. The caller gives a [`JobRequest`] and acts on the
//! [`JobEnd`]: the worker settles its delivery by it.

mod admission;
mod commit;
mod health;
mod request;
mod steps;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::RwLock;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config::Config;
use crate::fault_injection::{self, PlantedBug};
use crate::job::event::{self, EventContext};
use crate::job::{Digests, Judgement, Outcome, Revision, Verdict, verdict_id};
use crate::ledger::{Event, Inserted, Ledger, LedgerError, NewVerdict};
use crate::objects::{FetchError, Fetcher};
use crate::screen::{Screen, ScreenError};
use crate::telemetry::{Stage, metrics, timed, traces};

pub use admission::Admission;
pub use commit::{CommitQueue, linger_limit};
pub use health::{Dependency, Health};
pub use request::{AttemptCause, AttemptError, JobEnd, JobRequest};
use steps::{Fetched, Identified, Stop};
pub(crate) use steps::{Judged, ObjectFacts, Record, Screened, find_reusable, screen};

/// Everything that a job needs on its way to a verdict. One value serves all jobs of a process.
pub struct JobProcessor {
    pub config: Arc<Config>,
    pub ledger: Arc<dyn Ledger>,
    pub fetcher: Arc<Fetcher>,
    pub screen: Screen,
    pub admission: Admission,
    pub health: Health,
    pub commits: CommitQueue,
    /// Identifies this process among those that have screened a quarantined job.
    process_id: Uuid,
    /// Jobs that are screened together hold this lock for reading. A quarantined job holds it for writing.
    screening: RwLock<()>,
    stop: CancellationToken,
}

/// What a [`JobProcessor`] is made of.
pub struct JobProcessorParts {
    pub config: Arc<Config>,
    pub ledger: Arc<dyn Ledger>,
    pub fetcher: Arc<Fetcher>,
    pub screen: Screen,
    pub admission: Admission,
    pub health: Health,
    pub commits: CommitQueue,
    /// Set when the process shuts down. Jobs that wait for a broken dependency end as interrupted.
    pub stop: CancellationToken,
}

impl JobProcessor {
    #[must_use]
    pub fn new(parts: JobProcessorParts) -> Self {
        let JobProcessorParts { config, ledger, fetcher, screen, admission, health, commits, stop } = parts;
        let (process_id, screening) = (Uuid::new_v4(), RwLock::new(()));
        Self { config, ledger, fetcher, screen, admission, health, commits, process_id, screening, stop }
    }

    /// Processes one job until its verdict is committed, or until it is known why there is none.
    pub async fn process(&self, request: &JobRequest) -> JobEnd {
        traces::record_image(&request.job.image);
        loop {
            // A panic costs one attempt of one job, not the process.
            let error = match AssertUnwindSafe(self.attempt(request)).catch_unwind().await {
                Ok(Ok(judged) | Err(Stop::Judged(judged))) => return self.commit(request, *judged).await,
                Ok(Err(Stop::Ended(end))) => return *end,
                Ok(Err(Stop::Failed(error))) => error,
                Err(_) => {
                    AttemptError::Failed(AttemptCause::Panic, "the program panicked while it processed the job".into())
                }
            };
            match error {
                AttemptError::ShuttingDown => return JobEnd::Interrupted,
                AttemptError::Broken(dependency, reason) => {
                    if !self.wait_for_dependency(dependency, &reason, request).await {
                        return JobEnd::Interrupted;
                    }
                }
                AttemptError::Failed(cause, reason) => {
                    metrics::attempt_failed(cause.label());
                    let failed_attempts = request.failed_attempts.saturating_add(1);
                    if failed_attempts < self.config.worker.attempts {
                        return JobEnd::AttemptFailed { failed_attempts, reason };
                    }
                    return self.commit(request, self.given_up(request, failed_attempts, &reason)).await;
                }
            }
        }
    }

    /// One attempt at a job.
    async fn attempt(&self, request: &JobRequest) -> Result<Box<Judged>, Stop> {
        let identified = self.identify(request)?;
        self.find_earlier_verdict(&identified).await?;
        let (fetched, bytes) = self.fetch(identified).await?;
        let screened = self.screen(&fetched, bytes).await?;
        let Fetched { identified, job_id, object, .. } = fetched;
        Ok(Box::new(Judged::by_policy(self.screen.policy(), job_id, identified.detectors, object, screened)))
    }

    /// Finds the detectors that screen the job, and refuses a job that names what is not there or not allowed.
    fn identify<'a>(&self, request: &'a JobRequest) -> Result<Identified<'a>, Stop> {
        let job = &request.job;
        let (detectors, reason) = match self.screen.digests(job.detectors.as_deref()) {
            Err(unknown) => (Digests::new(), Some(format!("there is no detector \"{unknown}\""))),
            Ok(detectors) if !self.fetcher.allows(&job.image.bucket) => {
                (detectors, Some(format!("the bucket \"{}\" is not allowed", job.image.bucket)))
            }
            Ok(detectors) => (detectors, None),
        };
        let identified = Identified { request, detectors };
        match reason {
            Some(reason) => Err(identified.ends_as(ObjectFacts::default(), Outcome::Rejected, reason)),
            None => Ok(identified),
        }
    }

    /// Ends a redelivered job that has its verdict already. Most often only its acknowledgement was lost.
    async fn find_earlier_verdict(&self, identified: &Identified<'_>) -> Result<(), Stop> {
        let request = identified.request;
        if !request.is_redelivered || !request.job.id_is_known() {
            return Ok(());
        }
        let id = verdict_id(&identified.job_id(None));
        match self.ledger.find_verdict(id).await.map_err(ledger_is_broken)? {
            Some(known) if !known.answers(&request.job.image) => Err(Stop::Ended(JobEnd::IdConflict.into())),
            Some(known) if known.outcome != Outcome::Failed => Err(Stop::Ended(JobEnd::AnsweredBefore.into())),
            _ => Ok(()),
        }
    }

    /// Waits for admission, then downloads the object.
    async fn fetch<'a>(&self, identified: Identified<'a>) -> Result<(Fetched<'a>, Bytes), Stop> {
        // Fails at once while a dependency is known to be broken.
        if let Some((dependency, reason)) = self.health.first_broken() {
            return Err(Stop::Failed(AttemptError::Broken(dependency, reason)));
        }
        let JobRequest { job, lane, .. } = identified.request;
        let admitted = timed(Stage::Admit, self.admission.enter(*lane)).await;
        let (permit, object_permit) = admitted.map_err(|_| Stop::Failed(AttemptError::ShuttingDown))?;
        let download = self.fetcher.fetch(&job.image, *lane, &self.admission.downloads);
        let object = match timed(Stage::Fetch, download).await {
            Ok(object) => object,
            Err(FetchError::Missing(reason)) => {
                return Err(identified.ends_as(ObjectFacts::default(), Outcome::Missing, reason));
            }
            Err(FetchError::TooLarge { reason, etag }) => {
                let object = ObjectFacts { etag, ..ObjectFacts::default() };
                return Err(identified.ends_as(object, Outcome::Rejected, reason));
            }
            Err(FetchError::Failed(reason)) => {
                return Err(Stop::Failed(AttemptError::Failed(AttemptCause::Object, reason)));
            }
            Err(FetchError::StoreDown(reason)) => {
                return Err(Stop::Failed(AttemptError::Broken(Dependency::Storage, reason)));
            }
            Err(FetchError::GateClosed(_)) => return Err(Stop::Failed(AttemptError::ShuttingDown)),
        };
        fault_injection::crash_point("fetch");
        let facts = ObjectFacts::of(&object);
        let job_id = identified.job_id(facts.etag.as_deref());
        let fetched = Fetched { identified, job_id, object: facts, _permit: permit };
        Ok((fetched, object.into_bytes_with(object_permit)))
    }

    /// Takes over the scores of equal content, or screens the image.
    async fn screen(&self, fetched: &Fetched<'_>, bytes: Bytes) -> Result<Screened, Stop> {
        let Fetched { identified, object, .. } = fetched;
        if self.config.worker.reuse_scores {
            let found =
                find_reusable(self.ledger.as_ref(), &self.screen, &self.config.decode, object, &identified.detectors);
            if let Some(screened) = found.await.map_err(ledger_is_broken)? {
                return Ok(screened);
            }
        }
        if identified.request.is_redelivered {
            return self.screen_in_quarantine(fetched, bytes).await;
        }
        let _together = self.screening.read().await;
        self.screen_bytes(fetched, bytes).await
    }

    /// Screens a job alone, because a process may have died while it screened it. The ledger counts these processes, before
    /// the work begins.
    async fn screen_in_quarantine(&self, fetched: &Fetched<'_>, bytes: Bytes) -> Result<Screened, Stop> {
        let id = fetched.verdict_id();
        let _alone = self.screening.write().await;
        let deaths = if fault_injection::is_planted(PlantedBug::AttemptsAfterWork) {
            0
        } else {
            self.ledger.begin_quarantine(id, self.process_id).await.map_err(ledger_is_broken)?.saturating_sub(1)
        };
        let screened = if deaths >= self.config.worker.deaths {
            let reason = format!("the worker died {deaths} times while it screened this image in quarantine");
            Err(fetched.ends_as(Outcome::Failed, reason))
        } else {
            self.screen_bytes(fetched, bytes).await
        };
        // A broken session ends the process, and that counts as a death. In all other cases the process lives on. If the
        // record stays because the ledger is broken, a second start by this process is not counted.
        let process_ends = matches!(screened, Err(Stop::Failed(AttemptError::ShuttingDown)));
        if !process_ends && let Err(error) = self.ledger.end_quarantine(id).await {
            tracing::warn!(%error, "quarantine record was not removed");
        }
        screened
    }

    async fn screen_bytes(&self, fetched: &Fetched<'_>, bytes: Bytes) -> Result<Screened, Stop> {
        let Fetched { identified, .. } = fetched;
        match screen(&self.screen, identified.request.lane, bytes, &identified.detectors).await {
            Ok(screened) => Ok(screened),
            Err(error @ ScreenError::Undecodable(_)) => {
                let is_bug = fault_injection::is_planted(PlantedBug::ErrorIsPassed);
                let outcome = if is_bug { Outcome::Passed } else { Outcome::Undecodable };
                Err(fetched.ends_as(outcome, error.to_string()))
            }
            Err(error) => Err(Stop::Failed(AttemptError::from(error))),
        }
    }

    /// Commits a verdict with its event.
    async fn commit(&self, request: &JobRequest, judged: Judged) -> JobEnd {
        let verdict = judged.into_verdict(Record::of(request, self.screen.policy()));
        let mut entry = self.with_event(request, verdict);
        let mut was_refused = false;
        let mut revised_event = None;
        let inserted = loop {
            let event_of_revision = |verdict: &Verdict, revision: &Revision| {
                let event = self.event(request, verdict, Some(revision));
                revised_event = Some(event.clone());
                self.event_if_published(event)
            };
            match timed(Stage::Commit, self.commits.commit(&entry, event_of_revision)).await {
                Ok(inserted) => break inserted,
                Err(LedgerError::Refused(reason)) if !was_refused => {
                    // What a database cannot store comes from the sender, most likely in the metadata.
                    was_refused = true;
                    let reason = format!("the ledger refused the verdict: {reason}");
                    let judgement = Judgement::unscored(Outcome::Failed, reason);
                    entry = self.with_event(request, Verdict { metadata: None, judgement, ..entry.verdict });
                }
                Err(LedgerError::Refused(reason)) => return JobEnd::Refused { reason: reason.to_string() },
                Err(error) => {
                    if !self.wait_for_dependency(Dependency::Ledger, &error.to_string(), request).await {
                        return JobEnd::Interrupted;
                    }
                }
            }
        };
        let verdict = entry.verdict;
        let outcome = verdict.judgement.outcome;
        match inserted {
            Inserted::Existing(earlier) if !earlier.answers(&request.job.image) => JobEnd::IdConflict,
            // The earlier verdict stands.
            Inserted::Existing(earlier) if earlier.outcome != outcome => JobEnd::AnsweredBefore,
            Inserted::Existing(_) => JobEnd::Committed { verdict: Box::new(verdict), revised_event, new_event: None },
            Inserted::Written(new_event) => {
                record_commit(request, &verdict);
                JobEnd::Committed { verdict: Box::new(verdict), revised_event, new_event }
            }
        }
    }

    /// Reports a broken dependency and waits until it works again. Returns false when the job's time to wait is over, or the
    /// process shuts down.
    async fn wait_for_dependency(&self, dependency: Dependency, reason: &str, request: &JobRequest) -> bool {
        let probe: health::Probe = match dependency {
            Dependency::Ledger => {
                let ledger = Arc::clone(&self.ledger);
                Box::new(move || {
                    let ledger = Arc::clone(&ledger);
                    async move { ledger.ping().await.map_err(|error| error.to_string()) }.boxed()
                })
            }
            Dependency::Storage => {
                let (fetcher, bucket) = (Arc::clone(&self.fetcher), request.job.image.bucket.clone());
                Box::new(move || {
                    let (fetcher, bucket) = (Arc::clone(&fetcher), bucket.clone());
                    async move { fetcher.probe(&bucket).await.map_err(|error| error.to_string()) }.boxed()
                })
            }
        };
        self.health.report(dependency, reason, probe);
        let recovered = self.health.recovered(request.deadline);
        self.stop.run_until_cancelled(recovered).await.unwrap_or(false)
    }

    fn with_event(&self, request: &JobRequest, verdict: Verdict) -> NewVerdict {
        let event = self.event_if_published(self.event(request, &verdict, None));
        NewVerdict { verdict, event }
    }

    /// The event, if the configuration publishes its routing key.
    fn event_if_published(&self, event: Event) -> Option<Event> {
        self.config.events.publish.contains(&event.routing_key).then_some(event)
    }

    /// A verdict's event, whether or not its routing key is published. `revision` is set for a later judgement.
    #[must_use]
    pub fn event(&self, request: &JobRequest, verdict: &Verdict, revision: Option<&Revision>) -> Event {
        let trace = traces::context_to_propagate(request.trace.as_ref());
        let context = EventContext { correlation_id: request.correlation_id.as_deref(), trace: trace.as_ref() };
        match revision {
            None => event::event(verdict, context, &self.config.prefix),
            Some(revision) => event::revised_event(verdict, revision, context, &self.config.prefix),
        }
    }

    /// The end of a job whose last attempt has failed.
    fn given_up(&self, request: &JobRequest, failed_attempts: u32, reason: &str) -> Judged {
        let detectors = self.screen.digests(request.job.detectors.as_deref()).unwrap_or_default();
        let attempts = if failed_attempts == 1 { "attempt" } else { "attempts" };
        let reason = format!("given up after {failed_attempts} {attempts}: {reason}");
        let identified = Identified { request, detectors };
        identified.judged(ObjectFacts::default(), Outcome::Failed, reason)
    }
}

/// Records a new verdict in metrics, in the job's span and in the log.
fn record_commit(request: &JobRequest, verdict: &Verdict) {
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
        ms = u64::try_from(took.whole_milliseconds()).unwrap_or(0),
        "job finished"
    );
}

/// A look-up writes nothing, so the ledger cannot have refused a row.
fn ledger_is_broken(error: LedgerError) -> Stop {
    Stop::Failed(AttemptError::Broken(Dependency::Ledger, error.to_string()))
}
