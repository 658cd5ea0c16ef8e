//! What one file costs: wall time, and how far memory rose.

use std::fs;
use std::time::Instant;

use serde_json::{Value, json};

/// Taken before a file is read. Its figures are of this file alone only while no other is being screened.
pub(super) struct Measure {
    began: Instant,
    /// Resident before, where the system lets its peak be set back to that.
    resident_bytes: Option<u64>,
}

impl Measure {
    pub(super) fn begin() -> Self {
        // "5" sets the peak back to what is resident now (proc_pid_clear_refs(5), since Linux 4.0).
        let reset = fs::write("/proc/self/clear_refs", "5").ok();
        let resident_bytes = reset.and_then(|()| status("VmRSS:"));
        Self { began: Instant::now(), resident_bytes }
    }

    /// Milliseconds since, and by how many bytes the peak of resident memory exceeded what was resident before.
    pub(super) fn end(&self) -> Cost {
        let millis = self.began.elapsed().as_secs_f64() * 1e3;
        let peak_bytes = self.resident_bytes.zip(status("VmHWM:")).map(|(before, peak)| peak.saturating_sub(before));
        Cost { millis, peak_bytes }
    }
}

/// What a file cost.
pub(super) struct Cost {
    /// From before it was opened to its outcome; of a kept verdict, to where it was found.
    millis: f64,
    /// `None` where the system does not tell.
    peak_bytes: Option<u64>,
}

impl Cost {
    /// The keys that it adds to a row.
    pub(super) fn fields(&self) -> [(String, Value); 2] {
        let millis = (self.millis * 1e3).round() / 1e3;
        [("millis".into(), json!(millis)), ("peak_bytes".into(), json!(self.peak_bytes))]
    }
}

/// One of the sizes of this process that Linux keeps (proc_pid_status(5)), in bytes.
fn status(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let kibibytes = text.lines().find_map(|line| line.strip_prefix(name))?;
    kibibytes.split_whitespace().next()?.parse::<u64>().ok().map(|n| n << 10)
}
