//! How a fetched image is screened: in company, or alone if a process may have died of it.
//!
//! `docs/decisions/0001-quarantine.md` says why.

use std::sync::PoisonError;

use bytes::Bytes;
use futures_util::FutureExt;

use super::JobProcessor;
use super::admission::{NotAdmitted, wait_in_time};
use super::request::{AttemptError, JobRequest};
use super::steps::{Fetched, Screened, Stop, find_reusable, screen};
use crate::fault_injection::{self, PlantedBug};
use crate::job::{Lane, Outcome};
use crate::lanes::Permit;
use crate::screen::ScreenError;

impl JobProcessor {
    /// Takes over the scores of equal content, or screens the image.
    /// `turn` is that of a suspect which has waited for it.
    pub(super) async fn screen(
        &self,
        fetched: &Fetched<'_>,
        bytes: Bytes,
        turn: Option<Permit>,
    ) -> Result<Screened, Stop> {
        let Fetched { identified, object, .. } = fetched;
        let is_redelivered = identified.request.is_redelivered;
        // Only now the id is final.
        if is_redelivered && !identified.id_is_known() {
            self.end_if_answered(identified.request, fetched.verdict_id()).await?;
        }
        if self.config.worker.reuse_scores && !identified.request.wants_pictures {
            let policy = self.policy(identified.request);
            let find =
                || find_reusable(self.ledger.as_ref(), policy, &self.config.decode, object, &identified.detectors);
            if let Some(screened) = self.call(find).await? {
                return Ok(screened);
            }
        }
        if is_redelivered {
            return self.screen_redelivered(fetched, bytes, turn).await;
        }
        self.screen_in_company(fetched, bytes).await
    }

    /// Screens a job beside others.
    async fn screen_in_company(&self, fetched: &Fetched<'_>, bytes: Bytes) -> Result<Screened, Stop> {
        let _together = match fetched.identified.request.lane {
            Lane::Live => None,
            Lane::Backfill => Some(self.screening.read().await),
        };
        self.screen_bytes(fetched, bytes).await
    }

    /// Screens a job that another process had. Most often that process only returned it, so the job is screened in company;
    /// but its screening is recorded before it begins. A record that a dead process left behind makes the job a suspect.
    async fn screen_redelivered(
        &self,
        fetched: &Fetched<'_>,
        bytes: Bytes,
        turn: Option<Permit>,
    ) -> Result<Screened, Stop> {
        let id = fetched.verdict_id();
        if fault_injection::is_planted(PlantedBug::AttemptsAfterWork) {
            return self.screen_in_company(fetched, bytes).await;
        }
        if !self.call(|| self.ledger.begin_in_company(id, self.process_id)).await? {
            return self.screen_alone(fetched, bytes, turn).await;
        }
        drop(turn);
        fetched.identified.request.records.add(id);
        let screened = self.screen_in_company(fetched, bytes).await;
        Self::keep_records_if_dying(fetched, &screened);
        screened
    }

    /// Screens a suspect: one at a time, without a backfill job beside it, while live jobs pass. The ledger counts the
    /// processes that died of it. Where it is not its turn, the attempt ends, so that its bytes and permits are free for
    /// other jobs while it waits; see [`JobProcessor::wait_for_turn`].
    async fn screen_alone(&self, fetched: &Fetched<'_>, bytes: Bytes, turn: Option<Permit>) -> Result<Screened, Stop> {
        let (id, request) = (fetched.verdict_id(), fetched.identified.request);
        let _turn = match turn {
            Some(turn) => turn,
            None => match self.alone.enter(request.lane, 1).now_or_never() {
                Some(turn) => turn.map_err(|_| Stop::Failed(AttemptError::ShuttingDown))?,
                None => return Err(Stop::Suspect),
            },
        };
        // Its record is older than this attempt.
        self.fail_if_broken(&request.job.image.bucket)?;
        self.end_if_answered(request, id).await?;
        let starts = self.call(|| self.ledger.begin_quarantine(id, self.process_id)).await?;
        request.records.add(id);
        let deaths = starts.saturating_sub(1);
        let screened = if deaths >= self.config.worker.deaths {
            let reason = format!("the worker died {deaths} times while it screened this image in quarantine");
            Err(fetched.ends_as(Outcome::Failed, reason))
        } else {
            // Nothing waits for the ledger while the lock is held.
            let _alone = self.screening.write().await;
            self.screen_bytes(fetched, bytes).await
        };
        Self::keep_records_if_dying(fetched, &screened);
        screened
    }

    /// Waits until a suspect may be screened alone.
    ///
    /// # Errors
    /// When the process is shutting down, or the wait has become too long.
    pub(super) async fn wait_for_turn(&self, request: &JobRequest) -> Result<Permit, NotAdmitted> {
        wait_in_time(request.arrived, self.alone.enter(request.lane, 1)).await
    }

    /// A broken session ends the process, and that counts as a death.
    fn keep_records_if_dying(fetched: &Fetched<'_>, screened: &Result<Screened, Stop>) {
        if matches!(screened, Err(Stop::Failed(AttemptError::ShuttingDown))) {
            drop(fetched.identified.request.records.take());
        }
    }

    /// Removes the records of a redelivered job, once its delivery is settled. What cannot be removed because the ledger is
    /// broken is removed with the next one's.
    pub async fn end_quarantine(&self, request: &JobRequest) {
        let mut ids = request.records.take();
        if ids.is_empty() {
            return;
        }
        ids.append(&mut self.unremoved.lock().unwrap_or_else(PoisonError::into_inner));
        if let Err(error) = self.ledger.end_quarantine(&ids).await {
            let records = ids.len();
            tracing::warn!(%error, records, "quarantine records not removed, tried again with those of the next redelivered job");
            self.unremoved.lock().unwrap_or_else(PoisonError::into_inner).append(&mut ids);
        }
    }

    /// Decodes and scores an image.
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
}
