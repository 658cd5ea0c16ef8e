//! Which dependency is broken. While one is, intake is paused, and somebody keeps asking whether it is back.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use crate::retry::Pauses;
use crate::telemetry::metrics::{self, labels::DependencyLabel};

/// What every job needs, whatever its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dependency {
    /// The object store.
    Storage,
    /// The database.
    Ledger,
}

impl Dependency {
    /// Its label in metrics, and its name for people.
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

/// Asks a dependency whether it works.
pub type Probe = Box<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send>;

/// The broken dependencies, each with the reason.
#[derive(Clone)]
pub struct Health {
    broken: Arc<watch::Sender<BTreeMap<Dependency, String>>>,
}

impl Default for Health {
    fn default() -> Self {
        Self { broken: Arc::new(watch::channel(BTreeMap::new()).0) }
    }
}

impl Health {
    /// Marks a dependency as broken until `probe` says otherwise. Reporting it again changes nothing.
    pub fn report(&self, dependency: Dependency, reason: &str, probe: Probe) {
        let is_news = self.broken.send_if_modified(|broken| {
            let is_news = !broken.contains_key(&dependency);
            if is_news {
                broken.insert(dependency, reason.to_owned());
            }
            is_news
        });
        if !is_news {
            return;
        }
        metrics::set_intake_paused(dependency.label(), true);
        tracing::warn!(%dependency, reason, "dependency is broken, intake is paused");
        let broken = Arc::clone(&self.broken);
        drop(tokio::spawn(async move {
            let since = Instant::now();
            let mut pauses = Pauses::default();
            loop {
                tokio::time::sleep(pauses.longer()).await;
                match probe().await {
                    Ok(()) => break,
                    Err(reason) => tracing::debug!(%dependency, reason, "dependency is still broken"),
                }
            }
            let away_ms = since.elapsed().as_millis();
            tracing::info!(%dependency, away_ms, "dependency is back, intake goes on");
            metrics::set_intake_paused(dependency.label(), false);
            broken.send_modify(|broken| drop(broken.remove(&dependency)));
        }));
    }

    /// One broken dependency and its reason, if there is any.
    #[must_use]
    pub fn first_broken(&self) -> Option<(Dependency, String)> {
        self.broken.borrow().iter().next().map(|(dependency, reason)| (*dependency, reason.clone()))
    }

    /// Tells whether intake is open, and every change of that.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<BTreeMap<Dependency, String>> {
        self.broken.subscribe()
    }

    /// Waits until nothing is broken, or until the deadline; says which it was.
    pub async fn recovered(&self, deadline: Instant) -> bool {
        let mut broken = self.watch();
        let recovered = broken.wait_for(BTreeMap::is_empty);
        matches!(tokio::time::timeout_at(deadline.into(), recovered).await, Ok(Ok(_)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_broken_dependency_is_asked_until_it_is_back() {
        let health = Health::default();
        let asked = Arc::new(AtomicU32::new(0));
        let probe = |asked: &Arc<AtomicU32>| -> Probe {
            let asked = Arc::clone(asked);
            Box::new(move || {
                let tries = asked.fetch_add(1, Ordering::SeqCst);
                Box::pin(async move { if tries < 1 { Err("away".into()) } else { Ok(()) } })
            })
        };
        health.report(Dependency::Ledger, "away", probe(&asked));
        health.report(Dependency::Ledger, "away", probe(&asked));
        assert_eq!(health.watch().borrow().len(), 1);
        assert!(!health.recovered(Instant::now()).await);
        assert!(health.recovered(Instant::now() + Duration::from_secs(60)).await);
        assert_eq!(asked.load(Ordering::SeqCst), 2, "one repairer, however often it was reported");
    }
}
