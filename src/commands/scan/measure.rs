//! Measures one file: the wall time, and the rise of memory in this process and its decoder processes.

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use serde_json::{Value, json};

use super::super::processes::processes;

/// The state before a file is read. The figures belong to this file only if no other is screened meanwhile.
pub(super) struct Measure {
    began: Instant,
    /// Resident memory per process, where the system allows resetting its peak.
    resident_bytes: BTreeMap<u32, u64>,
}

impl Measure {
    pub(super) fn begin() -> Self {
        let reset = |pid: &u32| {
            // "5" resets the peak to the memory that is resident now (proc_pid_clear_refs(5), since Linux 4.0).
            fs::write(format!("/proc/{pid}/clear_refs"), "5").ok()?;
            status(*pid, "VmRSS:")
        };
        let resident_bytes = processes().into_iter().filter_map(|pid| Some((pid, reset(&pid)?))).collect();
        Self { began: Instant::now(), resident_bytes }
    }

    /// The time since the start, and the rise of the peaks of resident memory. A decoder process that was started meanwhile
    /// counts with all its memory. One that has ended is not counted.
    pub(super) fn end(&self) -> Cost {
        let millis = self.began.elapsed().as_secs_f64() * 1e3;
        let before = |pid| self.resident_bytes.get(&pid).copied().unwrap_or_default();
        let rise = |pid| Some(status(pid, "VmHWM:")?.saturating_sub(before(pid)));
        let is_known = self.resident_bytes.contains_key(&std::process::id());
        let peak_bytes = is_known.then(|| processes().into_iter().filter_map(rise).sum());
        Cost { millis, peak_bytes }
    }
}

/// The cost of one file.
pub(super) struct Cost {
    /// From before the file was opened until its outcome, or until an earlier verdict was found.
    millis: f64,
    /// `None` where the system does not provide it.
    peak_bytes: Option<u64>,
}

impl Cost {
    /// The fields that are added to a row.
    pub(super) fn fields(&self) -> [(String, Value); 2] {
        let millis = (self.millis * 1e3).round() / 1e3;
        [("millis".into(), json!(millis)), ("peak_bytes".into(), json!(self.peak_bytes))]
    }
}

/// A size from `/proc/PID/status` (proc_pid_status(5)), in bytes.
fn status(pid: u32, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kibibytes = text.lines().find_map(|line| line.strip_prefix(name))?;
    kibibytes.split_whitespace().next()?.parse::<u64>().ok().map(|n| n << 10)
}
