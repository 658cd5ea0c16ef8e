//! The gates that a job passes before its object is fetched. They bound jobs, objects, downloads and compressed bytes in
//! flight. This is the only place where lanes compete for entry.

use crate::job::Lane;
use crate::lanes::{Gate, GateClosed, Permit};
use crate::objects::DownloadGates;

/// The gates of a process.
pub struct Admission {
    /// Jobs between admission and verdict.
    pub jobs: Gate,
    /// Objects that are being downloaded, wait for a decoder, or are being decoded.
    pub objects: Gate,
    pub downloads: DownloadGates,
}

impl Admission {
    /// Waits for a job's permit and for its object's permit.
    ///
    /// # Errors
    /// [`GateClosed`] when the process is shutting down.
    pub async fn enter(&self, lane: Lane) -> Result<(Permit, Permit), GateClosed> {
        Ok((self.jobs.enter(lane, 1).await?, self.objects.enter(lane, 1).await?))
    }

    /// Refuses everything that waits now or comes later.
    pub fn close(&self) {
        self.jobs.close();
        self.objects.close();
        self.downloads.close();
    }
}
