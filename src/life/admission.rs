//! The gates that a job passes before its object is fetched. They bound jobs, objects, downloads and compressed bytes in
//! flight. This is the only place where lanes compete for entry.

use std::time::{Duration, Instant};

use crate::job::Lane;
use crate::lanes::{Gate, GateClosed, Permit};
use crate::objects::{DownloadGates, UploadMemory};

/// Longest that a delivered job waits for its turn. RabbitMQ closes a channel that holds a delivery for 30 minutes, by
/// default, and every other delivery on it would be delivered again too. The job goes back to its queue long before.
const MAX_WAIT: Duration = Duration::from_secs(600);

/// Why a job was not admitted. In both cases it goes back to its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    #[error(transparent)]
    GateClosed(#[from] GateClosed),
    #[error("the job has waited for its turn for {} s", MAX_WAIT.as_secs())]
    TooLate,
}

/// Waits at a gate for a job that was delivered at `arrived`.
///
/// # Errors
/// As [`Admission::enter`].
pub(super) async fn wait_in_time<T>(
    arrived: Instant,
    entered: impl Future<Output = Result<T, GateClosed>>,
) -> Result<T, NotAdmitted> {
    match tokio::time::timeout_at((arrived + MAX_WAIT).into(), entered).await {
        Ok(entered) => Ok(entered?),
        Err(_) => {
            tracing::info!(waited_s = MAX_WAIT.as_secs(), "job waited too long for its turn, it returns to its queue");
            Err(NotAdmitted::TooLate)
        }
    }
}

/// The gates of a process.
pub struct Admission {
    /// Jobs between admission and verdict.
    pub jobs: Gate,
    /// Objects that are being downloaded, wait for a decoder, or are being decoded.
    pub objects: Gate,
    pub downloads: DownloadGates,
    /// Bytes of uploads in memory. An upload has its memory before it is admitted, and a download gets it afterwards: with
    /// one gate for both, each could wait for the other.
    pub uploads: UploadMemory,
}

impl Admission {
    /// Waits for a job's permit and for its object's permit. `arrived` is when the job was delivered.
    ///
    /// # Errors
    /// When the process is shutting down, or the wait has become too long.
    pub async fn enter(&self, lane: Lane, arrived: Instant) -> Result<(Permit, Permit), NotAdmitted> {
        let permits = async { Ok((self.jobs.enter(lane, 1).await?, self.objects.enter(lane, 1).await?)) };
        wait_in_time(arrived, permits).await
    }

    /// Refuses everything that waits now or comes later.
    pub fn close(&self) {
        self.jobs.close();
        self.objects.close();
        self.downloads.close();
        self.uploads.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics;

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_long_before_the_broker_takes_the_delivery_back() {
        let admission = Admission {
            jobs: Gate::new(1),
            objects: Gate::new(1),
            downloads: DownloadGates { downloads: Gate::new(1), bytes: Gate::new(1) },
            uploads: UploadMemory::new(1, 1, metrics::hold_upload_memory),
        };
        let arrived = tokio::time::Instant::now().into_std();
        let held = admission.enter(Lane::Live, arrived).await.unwrap();
        let refused = admission.enter(Lane::Live, arrived).await.err();
        assert_eq!(refused, Some(NotAdmitted::TooLate));
        let waited = tokio::time::Instant::now().into_std() - arrived;
        assert!(waited < Duration::from_secs(30 * 60), "{waited:?}");
        drop(held);
        assert!(admission.enter(Lane::Live, tokio::time::Instant::now().into_std()).await.is_ok());
    }
}
