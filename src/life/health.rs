//! Which dependency is broken. A task probes it until it works again.
//!
//! The ledger is needed by every job. A store is needed by the jobs for its buckets: while it is down they wait in a delay
//! queue, and the others go on. Only a broken ledger, or no store that works, pauses intake.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use crate::retry::Delays;
use crate::telemetry::metrics::{self, labels::DependencyLabel};

/// A dependency that has worked for this long since its last outage was repaired. If it breaks earlier, the delays between
/// probes go on growing: a dependency that answers probes and fails at work must not switch intake on and off.
const REPAIRED_AFTER: Duration = Duration::from_secs(60);

/// Something that pauses intake while it is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dependency {
    Storage,
    Ledger,
}

impl Dependency {
    /// The label in metrics, and the name for people.
    #[must_use]
    pub const fn label(self) -> DependencyLabel {
        match self {
            Self::Storage => DependencyLabel::Storage,
            Self::Ledger => DependencyLabel::Ledger,
        }
    }
}

impl fmt::Display for Dependency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label().as_str())
    }
}

/// Something that can break.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Service {
    Ledger,
    /// A store, by its address.
    Store(String),
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ledger => f.write_str("ledger"),
            Self::Store(address) => write!(f, "store at {address}"),
        }
    }
}

/// Checks whether a service works.
pub type Probe = Box<dyn Fn() -> BoxFuture<'static, Result<(), Box<dyn Error + Send + Sync>>> + Send>;

/// The services that are broken.
#[derive(Clone)]
pub struct Health {
    shared: Arc<Shared>,
}

struct Shared {
    /// The stores that jobs may use.
    stores: BTreeSet<String>,
    services: Mutex<BTreeMap<Service, ServiceState>>,
    /// What pauses intake, each with the reason.
    pausing: watch::Sender<BTreeMap<Dependency, String>>,
}

/// A service that is broken, or was.
struct ServiceState {
    outage: Option<Outage>,
    repaired_at: Instant,
    delays: Delays,
}

/// Since when a service is broken, and why.
#[derive(Debug, Clone)]
pub struct Outage {
    pub reason: String,
    pub since: Instant,
}

impl Health {
    /// Everything works. `stores` are the addresses of the stores that jobs may use.
    #[must_use]
    pub fn new(stores: BTreeSet<String>) -> Self {
        let (services, pausing) = (Mutex::default(), watch::channel(BTreeMap::new()).0);
        Self { shared: Arc::new(Shared { stores, services, pausing }) }
    }

    /// Marks a service as broken until `probe` succeeds. A second report changes nothing.
    pub fn report(&self, service: Service, reason: &str, probe: Probe) {
        let mut delays = {
            let mut services = self.shared.services();
            let state = services.entry(service.clone()).or_insert_with(|| ServiceState {
                outage: None,
                repaired_at: Instant::now(),
                delays: Delays::default(),
            });
            if state.outage.is_some() {
                return;
            }
            state.outage = Some(Outage { reason: reason.to_owned(), since: Instant::now() });
            let mut delays = std::mem::take(&mut state.delays);
            if state.repaired_at.elapsed() > REPAIRED_AFTER {
                delays.reset();
            }
            delays
        };
        self.shared.update_pausing();
        tracing::warn!(%service, reason, "dependency broken");
        let shared = Arc::clone(&self.shared);
        drop(tokio::spawn(async move {
            let since = Instant::now();
            loop {
                tokio::time::sleep(delays.next_delay()).await;
                match probe().await {
                    Ok(()) => break,
                    Err(error) => tracing::debug!(%service, %error, "dependency still broken"),
                }
            }
            if let Some(state) = shared.services().get_mut(&service) {
                *state = ServiceState { outage: None, repaired_at: Instant::now(), delays };
            }
            let outage_ms = since.elapsed().as_millis();
            tracing::info!(%service, outage_ms, "dependency recovered");
            shared.update_pausing();
        }));
    }

    /// What pauses intake, with its reason.
    #[must_use]
    pub fn first_pausing(&self) -> Option<(Dependency, String)> {
        self.shared.pausing.borrow().iter().next().map(|(dependency, reason)| (*dependency, reason.clone()))
    }

    /// The outage of a store, if it is down.
    #[must_use]
    pub fn store_outage(&self, address: &str) -> Option<Outage> {
        self.shared.services().get(&Service::Store(address.to_owned()))?.outage.clone()
    }

    /// What pauses intake, and every change of it.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<BTreeMap<Dependency, String>> {
        self.shared.pausing.subscribe()
    }

    /// Waits until nothing pauses intake. Returns false at the deadline.
    pub async fn recovered(&self, deadline: Instant) -> bool {
        let mut pausing = self.watch();
        let recovered = pausing.wait_for(BTreeMap::is_empty);
        matches!(tokio::time::timeout_at(deadline.into(), recovered).await, Ok(Ok(_)))
    }
}

impl Shared {
    fn services(&self) -> MutexGuard<'_, BTreeMap<Service, ServiceState>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pauses or resumes intake by what is broken now.
    fn update_pausing(&self) {
        // Under the lock of the watched value, so that of two updates the later one decides.
        self.pausing.send_if_modified(|pausing| {
            let now = self.pausing_now();
            if *pausing == now {
                return false;
            }
            for dependency in [Dependency::Storage, Dependency::Ledger] {
                if pausing.contains_key(&dependency) != now.contains_key(&dependency) {
                    let is_paused = now.contains_key(&dependency);
                    metrics::set_intake_paused(dependency.label(), is_paused);
                    tracing::info!(%dependency, is_paused, "intake paused or resumed");
                }
            }
            *pausing = now;
            true
        });
    }

    fn pausing_now(&self) -> BTreeMap<Dependency, String> {
        let services = self.services();
        let reason = |service: &Service| Some(services.get(service)?.outage.as_ref()?.reason.clone());
        let mut pausing = BTreeMap::new();
        if let Some(reason) = reason(&Service::Ledger) {
            pausing.insert(Dependency::Ledger, reason);
        }
        let stores = self.stores.iter().map(|address| reason(&Service::Store(address.clone())));
        if let Some(reasons) = stores.collect::<Option<Vec<_>>>().filter(|reasons| !reasons.is_empty()) {
            pausing.insert(Dependency::Storage, reasons.join("; "));
        }
        let down = services.iter().filter(|(service, state)| **service != Service::Ledger && state.outage.is_some());
        metrics::set_stores_down(down.count());
        pausing
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn stores(addresses: &[&str]) -> BTreeSet<String> {
        addresses.iter().map(ToString::to_string).collect()
    }

    /// A probe that fails so many times, and counts its calls.
    fn probe(calls: &Arc<AtomicU32>, failures: u32) -> Probe {
        let calls = Arc::clone(calls);
        Box::new(move || {
            let call = calls.fetch_add(1, Ordering::SeqCst);
            Box::pin(async move { if call < failures { Err("away".into()) } else { Ok(()) } })
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_dependency_is_probed_until_it_works() {
        let health = Health::new(stores(&["a"]));
        let calls = Arc::new(AtomicU32::new(0));
        health.report(Service::Ledger, "away", probe(&calls, 1));
        health.report(Service::Ledger, "away", probe(&calls, 1));
        assert_eq!(health.watch().borrow().len(), 1);
        assert!(!health.recovered(Instant::now()).await);
        assert!(health.recovered(Instant::now() + Duration::from_secs(60)).await);
        assert_eq!(calls.load(Ordering::SeqCst), 2, "one task probes, however often the dependency was reported");
    }

    #[tokio::test(start_paused = true)]
    async fn reports_that_follow_shortly_keep_the_growing_delay() {
        let health = Health::new(stores(&["a"]));
        let calls = Arc::new(AtomicU32::new(0));
        let began = tokio::time::Instant::now();
        // Each probe succeeds, and the next write fails at once.
        for _ in 0..20 {
            health.report(Service::Ledger, "the disk is full", probe(&calls, 0));
            assert!(health.recovered(Instant::now() + Duration::from_secs(600)).await);
        }
        assert!(began.elapsed() > Duration::from_secs(60), "20 outages in {:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn intake_pauses_only_when_every_store_is_down() {
        let health = Health::new(stores(&["a", "b"]));
        let calls = Arc::new(AtomicU32::new(0));
        let store = |address: &str| Service::Store(address.to_owned());
        health.report(store("a"), "refused", probe(&calls, 1_000_000));
        assert_eq!(health.first_pausing(), None);
        assert_eq!(health.store_outage("a").unwrap().reason, "refused");
        assert!(health.store_outage("b").is_none());
        health.report(store("b"), "refused too", probe(&Arc::default(), 3));
        assert_eq!(health.first_pausing(), Some((Dependency::Storage, "refused; refused too".into())));
        assert!(health.recovered(Instant::now() + Duration::from_secs(600)).await);
        assert!(health.store_outage("a").is_some() && health.store_outage("b").is_none());
    }
}
