//! Memory for images that their senders send themselves.

use crate::job::Lane;
use crate::lanes::{Gate, GateClosed, Permit};
use crate::telemetry::metrics::GaugeGuard;

/// What an upload without a size reserves at once as it grows.
const STEP_BYTES: u64 = 256 << 10;

/// How large an upload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UploadSize {
    /// Its sender has announced `bytes`, and `reserved` bytes are needed to work with it.
    Announced { bytes: u64, reserved: u64 },
    /// It is known at its end.
    AtMost(u64),
}

impl UploadSize {
    /// The most that may arrive.
    #[must_use]
    pub const fn most(self) -> u64 {
        match self {
            Self::Announced { bytes, .. } | Self::AtMost(bytes) => bytes,
        }
    }
}

/// The memory of all uploads.
///
/// An upload of a known size waits for all of its memory, and holds none meanwhile. One without a size takes memory in steps.
/// If it waited for the next step while others did the same, each could hold a part, and all would wait for good. So a part of
/// the memory, enough for the largest image, is set apart for one upload at a time, the last resort:
///
/// - an upload that grows takes its steps from the shared part, and waits for none of them;
/// - if there is no room for a step, it waits for the last resort, and keeps what it has;
/// - with the last resort it has memory for the largest image, and waits for no more.
///
/// So an upload that holds memory waits only for the last resort, and the upload that has that waits for no memory. It ends,
/// because it must arrive and be screened in time; then the next one has the last resort. What waits for the shared part waits
/// for uploads that all end for this reason.
pub struct UploadMemory {
    shared: Gate,
    shared_bytes: u64,
    /// None where the memory is too small to set a part of it apart. Then an upload without a size counts as the largest.
    last_resort: Option<Gate>,
    largest: u64,
}

/// The share of one upload. Dropping it returns the memory.
pub struct UploadShare {
    permits: Vec<Permit>,
    reserved: u64,
}

impl UploadMemory {
    /// Memory of `total` bytes, for images of at most `largest` bytes. The reserved bytes are shown by a metric.
    #[must_use]
    pub fn new(total: u64, largest: u64, gauge: fn(u64) -> GaugeGuard) -> Self {
        let is_enough = largest.checked_mul(2).is_some_and(|two| two <= total);
        let shared_bytes = if is_enough { total - largest } else { total };
        Self {
            shared: Gate::with_gauge(shared_bytes, gauge),
            shared_bytes,
            last_resort: is_enough.then(|| Gate::with_gauge(largest, gauge)),
            largest,
        }
    }

    /// Waits for the memory that an upload begins with.
    ///
    /// # Errors
    /// [`GateClosed`] when the process is shutting down.
    pub async fn begin(&self, size: UploadSize) -> Result<UploadShare, GateClosed> {
        let bytes = match (size, &self.last_resort) {
            (UploadSize::Announced { bytes, reserved }, _) => reserved.max(bytes),
            (UploadSize::AtMost(bytes), Some(_)) => bytes.min(STEP_BYTES),
            (UploadSize::AtMost(bytes), None) => bytes,
        };
        let mut share = UploadShare { permits: vec![self.shared.enter(Lane::Live, bytes).await?], reserved: bytes };
        if bytes > self.shared_bytes {
            self.take_last_resort(&mut share).await?;
        }
        Ok(share)
    }

    /// Lets an upload grow to `bytes`.
    ///
    /// # Errors
    /// [`GateClosed`] when the process is shutting down.
    pub async fn grow(&self, share: &mut UploadShare, bytes: u64) -> Result<(), GateClosed> {
        while share.reserved < bytes {
            if let Some(step) = self.shared.enter_if_free(Lane::Live, STEP_BYTES) {
                share.permits.push(step);
                share.reserved += STEP_BYTES;
            } else {
                self.take_last_resort(share).await?;
            }
        }
        Ok(())
    }

    async fn take_last_resort(&self, share: &mut UploadShare) -> Result<(), GateClosed> {
        if let Some(last_resort) = &self.last_resort {
            share.permits.push(last_resort.enter(Lane::Live, self.largest).await?);
        }
        share.reserved = share.reserved.saturating_add(self.largest);
        Ok(())
    }

    /// Refuses everything that waits now or comes later.
    pub fn close(&self) {
        self.shared.close();
        if let Some(last_resort) = &self.last_resort {
            last_resort.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::telemetry::metrics::hold_upload_memory;

    /// The largest image of these tests.
    const LARGEST: u64 = 8 * STEP_BYTES;

    fn memory(total: u64) -> UploadMemory {
        UploadMemory::new(total, LARGEST, hold_upload_memory)
    }

    fn begin(memory: &UploadMemory, size: UploadSize) -> Option<UploadShare> {
        memory.begin(size).now_or_never().map(Result::unwrap)
    }

    /// Whether an upload can grow without waiting.
    fn grows(memory: &UploadMemory, share: &mut UploadShare, bytes: u64) -> bool {
        memory.grow(share, bytes).now_or_never().is_some()
    }

    #[tokio::test]
    async fn uploads_that_grow_at_the_same_time_never_wait_for_each_other_in_a_circle() {
        let memory = memory(2 * LARGEST);
        let size = UploadSize::AtMost(LARGEST);
        let (mut one, mut two) = (begin(&memory, size).unwrap(), begin(&memory, size).unwrap());
        // What waits in front of them, and cannot have its memory before they end, does not stop them.
        let whole = UploadSize::Announced { bytes: LARGEST, reserved: LARGEST };
        let mut third = Box::pin(memory.begin(whole));
        assert!(third.as_mut().now_or_never().is_none());
        for step in 2..=4 {
            assert!(grows(&memory, &mut one, step * STEP_BYTES) && grows(&memory, &mut two, step * STEP_BYTES));
        }
        // The shared part is full.
        assert!(grows(&memory, &mut one, 5 * STEP_BYTES));
        assert!(!grows(&memory, &mut two, 5 * STEP_BYTES), "only one has the last resort");
        assert!(grows(&memory, &mut one, LARGEST), "with the last resort it never waits");
        let mut growing = Box::pin(memory.grow(&mut two, LARGEST));
        assert!(growing.as_mut().now_or_never().is_none());
        drop(one);
        growing.as_mut().now_or_never().unwrap().unwrap();
        drop(growing);
        drop(two);
        assert!(third.as_mut().now_or_never().is_some());
    }

    #[tokio::test]
    async fn an_upload_without_a_size_reserves_what_it_has_and_not_the_largest_size() {
        let memory = memory(2 * LARGEST);
        let small: Vec<_> = std::iter::from_fn(|| begin(&memory, UploadSize::AtMost(LARGEST))).take(9).collect();
        assert_eq!(small.len(), 8, "all of the shared part, in steps");
        assert!(begin(&memory, UploadSize::Announced { bytes: 1, reserved: 1 }).is_none());
        drop(small);
        // One of a known size reserves what is needed to work with it.
        let signed = begin(&memory, UploadSize::Announced { bytes: STEP_BYTES, reserved: 3 * STEP_BYTES }).unwrap();
        let rest = begin(&memory, UploadSize::Announced { bytes: 5 * STEP_BYTES, reserved: 0 });
        assert!(rest.is_some() && begin(&memory, UploadSize::AtMost(1)).is_none());
        drop(signed);
        // One that needs more than the shared part takes the last resort too.
        drop(rest);
        let all = UploadSize::Announced { bytes: LARGEST, reserved: 3 * LARGEST };
        let _all = begin(&memory, all).unwrap();
        assert!(memory.last_resort.as_ref().unwrap().enter_if_free(Lane::Live, 1).is_none());
    }

    #[tokio::test]
    async fn where_the_memory_is_too_small_for_two_an_upload_without_a_size_counts_as_the_largest() {
        let memory = memory(2 * LARGEST - 1);
        let mut one = begin(&memory, UploadSize::AtMost(LARGEST)).unwrap();
        assert!(begin(&memory, UploadSize::AtMost(LARGEST)).is_none());
        assert!(grows(&memory, &mut one, LARGEST));
    }

    #[tokio::test]
    async fn a_process_that_ends_refuses_what_waits() {
        let memory = memory(2 * LARGEST);
        let mut one = begin(&memory, UploadSize::AtMost(LARGEST)).unwrap();
        memory.close();
        assert!(memory.begin(UploadSize::AtMost(1)).await.is_err());
        assert!(memory.grow(&mut one, LARGEST).await.is_err());
    }
}
