//! What one file costs: wall time, and how far the memory of this process and its decoders rose.

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use serde_json::{Value, json};

use super::super::processes::processes;

/// Taken before a file is read. Its figures are of this file alone only while no other is being screened.
pub(super) struct Measure {
    began: Instant,
    /// Resident before, a process, where the system lets its peak be set back to that.
    resident_bytes: BTreeMap<u32, u64>,
}

impl Measure {
    pub(super) fn begin() -> Self {
        let reset = |pid: &u32| {
            // "5" sets the peak back to what is resident now (proc_pid_clear_refs(5), since Linux 4.0).
            fs::write(format!("/proc/{pid}/clear_refs"), "5").ok()?;
            status(*pid, "VmRSS:")
        };
        let resident_bytes = processes().into_iter().filter_map(|pid| Some((pid, reset(&pid)?))).collect();
        Self { began: Instant::now(), resident_bytes }
    }

    /// Milliseconds since, and by how many bytes the peaks of resident memory exceeded what was resident before. A decoder
    /// that was started meanwhile counts as a whole, and one that is gone not at all.
    pub(super) fn end(&self) -> Cost {
        let millis = self.began.elapsed().as_secs_f64() * 1e3;
        let before = |pid| self.resident_bytes.get(&pid).copied().unwrap_or_default();
        let rise = |pid| Some(status(pid, "VmHWM:")?.saturating_sub(before(pid)));
        let is_known = self.resident_bytes.contains_key(&std::process::id());
        let peak_bytes = is_known.then(|| processes().into_iter().filter_map(rise).sum());
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

/// One of the sizes of a process that Linux keeps (proc_pid_status(5)), in bytes.
fn status(pid: u32, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kibibytes = text.lines().find_map(|line| line.strip_prefix(name))?;
    kibibytes.split_whitespace().next()?.parse::<u64>().ok().map(|n| n << 10)
}
