//! When an endpoint may be tried. One that fails again and again gets one attempt at a time, after growing pauses, until an
//! attempt succeeds: so a dead endpoint costs almost nothing.

use std::time::Duration;

use tokio::time::Instant;

use crate::retry::jittered_delay;

/// Failures in a row after which an endpoint gets one attempt at a time.
const FAILURES_TO_OPEN: u32 = 5;
/// The longest pause between two attempts at such an endpoint: how late at most it is found that it works again.
const MAX_PROBE_DELAY: Duration = Duration::from_mins(2);

/// What the last attempts say of an endpoint.
#[derive(Debug, Default)]
pub(super) enum Circuit {
    /// It works, or has failed this often in a row.
    #[default]
    Closed,
    Failing(u32),
    Open {
        since: Instant,
        /// Failed probes.
        probes: u32,
        next_probe: Instant,
    },
    /// It has said that it is gone.
    Gone,
}

/// What an attempt has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    None,
    Opened,
    Closed,
}

impl Circuit {
    /// How many attempts may begin now, where `in_flight` run and at most `limit` may.
    pub(super) fn allowance(&self, now: Instant, in_flight: usize, limit: usize) -> usize {
        match self {
            Self::Closed | Self::Failing(_) => limit.saturating_sub(in_flight),
            Self::Open { next_probe, .. } => usize::from(in_flight == 0 && now >= *next_probe),
            Self::Gone => 0,
        }
    }

    pub(super) fn succeeded(&mut self) -> Change {
        match std::mem::take(self) {
            Self::Open { .. } => Change::Closed,
            Self::Gone => {
                *self = Self::Gone;
                Change::None
            }
            Self::Closed | Self::Failing(_) => Change::None,
        }
    }

    pub(super) fn failed(&mut self, now: Instant) -> Change {
        let open = |since, probes: u32| Self::Open {
            since,
            probes,
            next_probe: now + jittered_delay(probes + 1, MAX_PROBE_DELAY),
        };
        let (next, change) = match self {
            Self::Gone => return Change::None,
            Self::Closed => (Self::Failing(1), Change::None),
            Self::Failing(failures) if *failures + 1 < FAILURES_TO_OPEN => (Self::Failing(*failures + 1), Change::None),
            Self::Failing(_) => (open(now, 1), Change::Opened),
            // An attempt that began before says nothing new.
            Self::Open { next_probe, .. } if now < *next_probe => return Change::None,
            Self::Open { since, probes, .. } => (open(*since, *probes + 1), Change::None),
        };
        *self = next;
        change
    }

    /// How long the endpoint has failed.
    pub(super) fn open_for(&self, now: Instant) -> Duration {
        match self {
            Self::Open { since, .. } => now.saturating_duration_since(*since),
            Self::Closed | Self::Failing(_) | Self::Gone => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_that_fails_in_a_row_gets_one_probe_at_a_time_until_one_succeeds() {
        let (mut circuit, now) = (Circuit::default(), Instant::now());
        // A success in between begins the row again.
        for _ in 0..3 {
            for _ in 1..FAILURES_TO_OPEN {
                assert_eq!(circuit.failed(now), Change::None);
            }
            assert_eq!((circuit.allowance(now, 3, 8), circuit.succeeded()), (5, Change::None));
        }
        for _ in 1..FAILURES_TO_OPEN {
            circuit.failed(now);
        }
        assert_eq!(circuit.failed(now), Change::Opened);
        assert_eq!(circuit.allowance(now, 0, 8), 0, "first a pause");
        assert_eq!(circuit.failed(now), Change::None, "an attempt that began before");
        let mut at = now;
        for _ in 0..20 {
            // The longest pause has a random half more.
            at += MAX_PROBE_DELAY * 2;
            assert_eq!((circuit.allowance(at, 1, 8), circuit.allowance(at, 0, 8)), (0, 1));
            assert_eq!((circuit.failed(at), circuit.allowance(at, 0, 8)), (Change::None, 0));
        }
        assert_eq!(circuit.open_for(at), at - now);
        assert_eq!((circuit.succeeded(), circuit.allowance(at, 0, 8)), (Change::Closed, 8));
        assert_eq!(circuit.open_for(at), Duration::ZERO);
    }

    #[test]
    fn an_endpoint_that_is_gone_gets_nothing_more() {
        let (mut circuit, now) = (Circuit::Gone, Instant::now());
        // Attempts that ran at the same time end later.
        assert_eq!((circuit.failed(now), circuit.succeeded()), (Change::None, Change::None));
        assert_eq!(circuit.allowance(now + Duration::from_hours(1), 0, 8), 0);
    }
}
