//! What a job does about a broken dependency: it fails at once where one is known, reports what it meets, and waits.

use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;

use super::JobProcessor;
use super::health::Probe;
use super::request::{AttemptError, BrokenService, Held};
use super::steps::Stop;
use crate::error_text::reason_text;
use crate::objects::StoreError;

impl JobProcessor {
    /// Fails while intake is paused, or while the bucket's store is down or the bucket is held.
    pub(super) fn fail_if_broken(&self, bucket: &str) -> Result<(), Stop> {
        self.fail_if_paused()?;
        let outage = self.health.store_outage(self.fetcher.address(bucket));
        let outage = outage.map(|outage| Held { reason: outage.reason, duration: outage.since.elapsed() });
        match outage.or_else(|| self.buckets.check(bucket)) {
            Some(held) => Err(Stop::Failed(AttemptError::Held(held))),
            None => Ok(()),
        }
    }

    /// Fails while something is broken that every job needs.
    pub(super) fn fail_if_paused(&self) -> Result<(), Stop> {
        match self.health.first_pausing() {
            Some(_) => Err(Stop::Failed(AttemptError::Paused)),
            None => Ok(()),
        }
    }

    /// Reports a broken service, which is the ledger or the store of this bucket. It is probed until it works again.
    pub(super) fn report_broken(&self, broken: &BrokenService, bucket: &str) {
        let probe: Probe = match broken {
            BrokenService::Ledger(_) => {
                let ledger = Arc::clone(&self.ledger);
                Box::new(move || {
                    let ledger = Arc::clone(&ledger);
                    async move { Ok(ledger.ping().await?) }.boxed()
                })
            }
            BrokenService::Store { .. } => {
                let (fetcher, bucket) = (Arc::clone(&self.fetcher), bucket.to_owned());
                Box::new(move || {
                    let (fetcher, bucket) = (Arc::clone(&fetcher), bucket.clone());
                    async move {
                        match fetcher.probe(&bucket).await {
                            // A store that says what is wrong with a bucket works.
                            Ok(()) | Err(StoreError::BucketDown(_)) => Ok(()),
                            Err(error) => Err(error.into()),
                        }
                    }
                    .boxed()
                })
            }
        };
        self.health.report(broken.service(), &reason_text(broken), probe);
    }

    /// Waits until intake resumes. Returns false when the time to wait is over, or the process shuts down.
    pub(super) async fn resumed(&self, deadline: Instant) -> bool {
        let recovered = self.health.recovered(deadline);
        self.stop.run_until_cancelled(recovered).await.unwrap_or(false)
    }
}
