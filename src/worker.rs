//! The life of a delivery, told by `Worker::live`, `answer`, `verdict_on` and `conclude`. How a worker starts and ends is
//! in `run`.

pub mod accept;
pub mod admit;
pub mod blob;
pub mod health;
mod linger;
pub mod options;
mod order;
pub mod persist;
pub mod publish;
mod run;
pub mod settle;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use time::OffsetDateTime;
use tokio::sync::RwLock;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::job::forms::{self, Malformed, Reading};
use crate::job::{Digests, Identity, Job, Judgement, Outcome, Scores, Seen, Verdict, verdict_id};
use crate::ledger::{Committed, Entry, Event, Ledger, LedgerError};
use crate::planted::{self, Bug};
use crate::screen::infer::Unscored;
use crate::screen::{Screen, Unseen, decode, judge};
use crate::telemetry::{Stage, metrics, timed, traces};
use accept::Delivery;
use admit::Admit;
use blob::{FetchError, Fetcher};
use health::{Dependency, Health};
use order::Order;
use persist::Persist;
use publish::{PassedOn, Publish};
pub use run::{WorkerError, default_prefetch, jobs, objects, run, run_on};
use settle::{Cause, Remedy, Settle, Settlement, Trouble};

/// Everything a delivery meets on its way.
struct Worker {
    config: Config,
    ledger: Arc<dyn Ledger>,
    fetcher: Arc<Fetcher>,
    screen: Screen,
    admit: Admit,
    health: Health,
    persist: Persist,
    publish: Publish,
    settle: Settle,
    /// Whoever is screened holds it with others; a suspect holds it alone.
    company: RwLock<()>,
    /// This process among those that screen suspects.
    process: uuid::Uuid,
    stop: CancellationToken,
}

/// What is known of an image by the time it is judged.
#[derive(Default)]
struct Found {
    etag: Option<String>,
    version_id: Option<String>,
    sha256: Option<[u8; 32]>,
    bytes: Option<u64>,
    seen: Option<Seen>,
    scores: Option<Scores>,
    reused_from: Option<uuid::Uuid>,
}

/// What became of a job before it was settled.
enum Answer {
    /// A verdict, to be committed.
    Verdict(Box<Verdict>),
    /// It had one before.
    Known,
    /// Its id belongs to a job for another image.
    Conflict,
}

impl Worker {
    /// One delivery, from its arrival to its settlement.
    async fn live(&self, delivery: Delivery) {
        let order = Order::of(&delivery);
        if planted::has(Bug::AckBeforeCommit) {
            settle::acknowledge_too_early(&delivery).await;
        }
        let settlement = match forms::read(&delivery.body, delivery.message_id()) {
            Ok(Reading::Job(mut job)) => {
                // A replayed dead letter keeps the id it failed under.
                if let Some(id) = delivery.job_id() {
                    job.identity = Identity::Given(id);
                }
                self.answer(&job, &order).await
            }
            Ok(Reading::Several(bodies)) => Settlement::Split(bodies),
            Ok(Reading::Nothing(why)) => {
                tracing::info!(why, "message asks for nothing");
                Settlement::Ignore
            }
            Err(Malformed(reason)) => Settlement::DeadLetter { reason, job_id: None },
        };
        timed(Stage::Settle, self.settle.settle(delivery, settlement)).await;
    }

    /// One job: a verdict, its commit, its event and its reply.
    async fn answer(&self, job: &Job, order: &Order) -> Settlement {
        traces::about(&job.image);
        let deadline = Instant::now() + Duration::from_millis(self.config.worker.hold_ms);
        let verdict = loop {
            // A panic costs one attempt of one job.
            let trouble = match AssertUnwindSafe(self.verdict_on(job, order)).catch_unwind().await {
                Ok(Ok(Answer::Verdict(verdict))) => break verdict,
                Ok(Ok(Answer::Known)) => return Settlement::Ack,
                Ok(Ok(Answer::Conflict)) => return conflict(),
                Ok(Err(trouble)) => trouble,
                Err(_) => Trouble::Attempt(Cause::Panic, "the worker panicked over it".into()),
            };
            if let Trouble::Attempt(cause, _) = trouble {
                metrics::attempt_failed(cause.as_str());
            }
            match settle::remedy(trouble, order.failures, &self.config.worker) {
                Remedy::Hold(dependency, reason) => {
                    if !self.hold(dependency, &reason, &job.image.bucket, deadline).await {
                        return Settlement::Return;
                    }
                }
                Remedy::Settle(settlement) => return settlement,
                Remedy::GiveUp(reason) => break Box::new(self.given_up(job, order, reason)),
            }
        };
        self.conclude(job, order, *verdict, deadline).await
    }

    /// The way of a job: admit, fetch, decode, infer, judge.
    async fn verdict_on(&self, job: &Job, order: &Order) -> Result<Answer, Trouble> {
        let digests = match self.screen.digests(job.detectors.as_deref()) {
            Ok(digests) => digests,
            Err(unknown) => {
                let why = format!("there is no detector \"{unknown}\"");
                return Ok(self.unscored(job, order, &Digests::new(), Found::default(), Outcome::Rejected, why));
            }
        };
        if !self.fetcher.allows(&job.image.bucket) {
            let why = format!("the bucket \"{}\" is not allowed", job.image.bucket);
            return Ok(self.unscored(job, order, &digests, Found::default(), Outcome::Rejected, why));
        }
        // Most often a redelivered job was answered, and only its acknowledgement was lost.
        if order.redelivered && job.id_is_known() {
            let id = verdict_id(&job.id(None, &digests));
            match self.ledger.find(id).await.map_err(ledger_trouble)? {
                Some(known) if !known.answers(&job.image) => return Ok(Answer::Conflict),
                Some(known) if known.outcome != Outcome::Failed => return Ok(Answer::Known),
                _ => {}
            }
        }

        // While something is broken, nobody need find that out anew.
        if let Some((dependency, reason)) = self.health.first_broken() {
            return Err(Trouble::Broken(dependency, reason));
        }
        let entering = self.admit.enter(order.lane);
        let (_entered, place) = timed(Stage::Admit, entering).await.map_err(|_| Trouble::Leaving)?;
        let blob = match timed(Stage::Fetch, self.fetcher.fetch(&job.image, order.lane, &self.admit.fetching)).await {
            Ok(blob) => blob,
            Err(FetchError::Missing(why)) => {
                return Ok(self.unscored(job, order, &digests, Found::default(), Outcome::Missing, why));
            }
            Err(FetchError::TooLarge(why, etag)) => {
                let found = Found { etag, ..Found::default() };
                return Ok(self.unscored(job, order, &digests, found, Outcome::Rejected, why));
            }
            Err(FetchError::Failed(why)) => return Err(Trouble::Attempt(Cause::Object, why)),
            Err(FetchError::Down(why)) => return Err(Trouble::Broken(Dependency::Storage, why)),
            Err(FetchError::Closed(_)) => return Err(Trouble::Leaving),
        };
        planted::passed("fetch");
        let mut found = Found {
            etag: blob.etag.clone(),
            version_id: blob.version_id.clone(),
            sha256: Some(blob.sha256),
            bytes: Some(blob.bytes.len() as u64),
            ..Found::default()
        };

        if self.config.worker.reuse_scores
            && let Some(earlier) = self
                .ledger
                .find_scores(blob.sha256, &digests, &self.screen.policy().reference.sha256)
                .await
                .map_err(ledger_trouble)?
            && decode::allows(&self.config.decode, earlier.seen)
        {
            let judgement = judge::judge(self.screen.policy(), &earlier.scores);
            found.seen = Some(earlier.seen);
            found.scores = Some(earlier.scores);
            found.reused_from = Some(earlier.verdict);
            return Ok(self.verdict(job, order, &digests, found, judgement));
        }
        let id = verdict_id(&job.id(found.etag.as_deref(), &digests));
        match self.look(id, order, blob.in_place(place), &digests).await? {
            Look::Seen(sight) => {
                found.seen = Some(sight.seen);
                // Scores that are not numbers are not worth keeping.
                found.scores = (sight.judgement.outcome != Outcome::Failed).then_some(sight.scores);
                Ok(self.verdict(job, order, &digests, found, sight.judgement))
            }
            Look::Undecodable(why) => {
                let is_bug = planted::has(Bug::ErrorIsPassed);
                let outcome = if is_bug { Outcome::Passed } else { Outcome::Undecodable };
                Ok(self.unscored(job, order, &digests, found, outcome, why))
            }
            Look::Deadly(deaths) => {
                let why = format!("the worker died {deaths} times while it screened this image alone");
                Ok(self.unscored(job, order, &digests, found, Outcome::Failed, why))
            }
        }
    }

    /// Screens one image: in company, or alone if it was in somebody's hands when they died.
    async fn look(&self, id: uuid::Uuid, order: &Order, bytes: Bytes, digests: &Digests) -> Result<Look, Trouble> {
        if !order.redelivered {
            let _company = self.company.read().await;
            return seen(self.screen.look(order.lane, bytes, digests).await);
        }
        let _alone = self.company.write().await;
        let deaths = if planted::has(Bug::AttemptsAfterWork) {
            0
        } else {
            self.ledger.begin_alone(id, self.process).await.map_err(ledger_trouble)?.saturating_sub(1)
        };
        let look = if deaths >= self.config.worker.deaths {
            Ok(Look::Deadly(deaths))
        } else {
            seen(self.screen.look(order.lane, bytes, digests).await)
        };
        // Whoever breaks the session ends the process, and that counts. The rest lives on; if the ledger cannot be told
        // so now, beginning again with this process costs nothing.
        if !matches!(look, Err(Trouble::Leaving))
            && let Err(e) = self.ledger.end_alone(id).await
        {
            tracing::warn!(error = %e, "a suspicion could not be taken back");
        }
        look
    }

    /// Commits a verdict with its event, and only then hands the event over.
    async fn conclude(&self, job: &Job, order: &Order, verdict: Verdict, deadline: Instant) -> Settlement {
        let mut entry = self.entry(verdict, order);
        let mut refused = false;
        let committed = loop {
            match timed(Stage::Commit, self.persist.commit(entry.clone())).await {
                Ok(committed) => break committed,
                Err(LedgerError::Refused(why)) if !refused => {
                    // Whatever the database cannot store is the sender's, and most likely the metadata.
                    refused = true;
                    let judgement =
                        Judgement::unscored(Outcome::Failed, format!("the ledger refuses the verdict: {why}"));
                    entry = self.entry(Verdict { metadata: None, judgement, ..entry.verdict }, order);
                }
                Err(LedgerError::Refused(reason)) => return Settlement::DeadLetter { reason, job_id: None },
                Err(e) => {
                    if !self.hold(Dependency::Ledger, &e.to_string(), &job.image.bucket, deadline).await {
                        return Settlement::Return;
                    }
                }
            }
        };
        let verdict = &entry.verdict;
        let outcome = verdict.judgement.outcome;
        match committed {
            Committed::Known(known) if !known.answers(&job.image) => return conflict(),
            // What was decided first stands; this verdict was never there.
            Committed::Known(known) if known.outcome != outcome => return Settlement::Ack,
            Committed::Known(_) => {}
            Committed::Written(event) => {
                traces::note("pixwarden.job_id", &verdict.job_id);
                traces::note("pixwarden.outcome", outcome.as_str());
                metrics::committed(order.lane, outcome, verdict.reused_from.is_some(), order.arrived);
                planted::passed("commit");
                if let Some(event) = event {
                    self.publish.hand_over(event);
                }
                let reason = &verdict.judgement.reason;
                tracing::info!(
                    job_id = verdict.job_id, image = verdict.image.uri(), %outcome, reason,
                    lane = %verdict.lane, attempts = verdict.attempts, reused = verdict.reused_from.is_some(),
                    ms = u64::try_from((verdict.decided_at - verdict.received_at).whole_milliseconds()).unwrap_or(0), "job is done"
                );
            }
        }
        if let Some(queue) = &order.reply_to {
            self.publish.reply(queue, &self.event(verdict, order)).await;
        }
        match outcome {
            Outcome::Failed => Settlement::DeadLetter {
                reason: verdict.judgement.reason.clone().unwrap_or_default(),
                job_id: Some(verdict.job_id.clone()),
            },
            _ => Settlement::Ack,
        }
    }

    /// Reports a broken dependency and waits for it; false when it took too long, or the worker drains.
    async fn hold(&self, dependency: Dependency, reason: &str, bucket: &str, deadline: Instant) -> bool {
        let probe: health::Probe = match dependency {
            Dependency::Ledger => {
                let ledger = Arc::clone(&self.ledger);
                Box::new(move || {
                    let ledger = Arc::clone(&ledger);
                    async move { ledger.ping().await.map_err(|e| e.to_string()) }.boxed()
                })
            }
            Dependency::Storage => {
                let (fetcher, bucket) = (Arc::clone(&self.fetcher), bucket.to_owned());
                Box::new(move || {
                    let (fetcher, bucket) = (Arc::clone(&fetcher), bucket.clone());
                    async move { fetcher.probe(&bucket).await }.boxed()
                })
            }
        };
        self.health.report(dependency, reason, probe);
        self.stop.run_until_cancelled(self.health.recovered(deadline)).await.unwrap_or(false)
    }

    fn entry(&self, verdict: Verdict, order: &Order) -> Entry {
        let event = self.event(&verdict, order);
        Entry { verdict, event: Some(event).filter(|event| self.publish.announces(&event.routing_key)) }
    }

    fn event(&self, verdict: &Verdict, order: &Order) -> Event {
        let trace = traces::onward(order.trace.as_ref());
        let passed_on = PassedOn { correlation_id: order.correlation_id.as_deref(), trace: trace.as_ref() };
        publish::event(verdict, passed_on, &self.config.prefix)
    }

    fn given_up(&self, job: &Job, order: &Order, reason: String) -> Verdict {
        let digests = self.screen.digests(job.detectors.as_deref()).unwrap_or_default();
        self.record(job, order, &digests, Found::default(), Judgement::unscored(Outcome::Failed, reason))
    }

    fn unscored(
        &self,
        job: &Job,
        order: &Order,
        digests: &Digests,
        found: Found,
        outcome: Outcome,
        why: String,
    ) -> Answer {
        self.verdict(job, order, digests, found, Judgement::unscored(outcome, why))
    }

    fn verdict(&self, job: &Job, order: &Order, digests: &Digests, found: Found, judgement: Judgement) -> Answer {
        Answer::Verdict(Box::new(self.record(job, order, digests, found, judgement)))
    }

    fn record(&self, job: &Job, order: &Order, digests: &Digests, found: Found, judgement: Judgement) -> Verdict {
        let job_id = job.id(found.etag.as_deref(), digests);
        let mut image = job.image.clone();
        image.etag = found.etag.or(image.etag);
        image.version_id = found.version_id.or(image.version_id);
        Verdict {
            id: verdict_id(&job_id),
            job_id,
            lane: order.lane,
            image,
            sha256: found.sha256,
            bytes: found.bytes,
            seen: found.seen,
            judgement,
            scores: found.scores,
            detectors: digests.clone(),
            policy: self.screen.policy().reference.clone(),
            metadata: job.metadata.clone(),
            reused_from: found.reused_from,
            attempts: order.failures.saturating_add(1),
            received_at: order.received_at,
            decided_at: OffsetDateTime::now_utc(),
        }
    }
}

/// What screening an image came to.
enum Look {
    Seen(Box<crate::screen::Sight>),
    Undecodable(String),
    Deadly(u32),
}

fn seen(sight: Result<crate::screen::Sight, Unseen>) -> Result<Look, Trouble> {
    match sight {
        Ok(sight) => Ok(Look::Seen(Box::new(sight))),
        Err(Unseen::Undecodable(decode::Undecodable(why))) => Ok(Look::Undecodable(why)),
        Err(Unseen::Undecoded(why)) => Err(Trouble::Attempt(Cause::Decoder, why)),
        Err(Unseen::Unscored(Unscored::Item(why))) => Err(Trouble::Attempt(Cause::Session, why)),
        // The process is about to end; the job goes back.
        Err(Unseen::Unscored(Unscored::Broken(_))) => Err(Trouble::Leaving),
    }
}

fn conflict() -> Settlement {
    let reason = "id_conflict: the job's id belongs to a job for another image".into();
    Settlement::DeadLetter { reason, job_id: None }
}

/// A look-up has no row to refuse, so whatever goes wrong is the ledger's.
fn ledger_trouble(error: LedgerError) -> Trouble {
    Trouble::Broken(Dependency::Ledger, error.to_string())
}
