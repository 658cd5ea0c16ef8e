//! Measures from time to time what waits for people.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::ledger::{ItemKind, Ledger, LedgerError};
use crate::telemetry::metrics::labels::ItemKindLabel;
use crate::telemetry::metrics::{self, WaitingItems};

/// How often the queue is read.
const INTERVAL: Duration = Duration::from_secs(15);

/// Measures while metrics are enabled, until `stop`. After a failure the last values stay.
pub(super) async fn watch_queue(ledger: Arc<dyn Ledger>, stop: CancellationToken) {
    if !metrics::are_enabled() || ledger.reviews().is_err() {
        return;
    }
    loop {
        if let Err(error) = measure(ledger.as_ref()).await {
            tracing::debug!(%error, "review queue not measured");
        }
        if stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_none() {
            return;
        }
    }
}

async fn measure(ledger: &dyn Ledger) -> Result<(), LedgerError> {
    let open = ledger.reviews()?.queue_state().await?;
    for kind in ItemKind::ALL {
        let of_kind = open.iter().find(|open| open.kind == kind);
        let waiting =
            of_kind.map(|open| WaitingItems { items: open.items, overdue: open.overdue, lapsed: open.lapsed });
        metrics::set_review_queue(label(kind), waiting.unwrap_or_default());
    }
    Ok(())
}

const fn label(kind: ItemKind) -> ItemKindLabel {
    match kind {
        ItemKind::Sample => ItemKindLabel::Sample,
        ItemKind::Review => ItemKindLabel::Review,
        ItemKind::Report => ItemKindLabel::Report,
        ItemKind::Appeal => ItemKindLabel::Appeal,
        ItemKind::Legal => ItemKindLabel::Legal,
    }
}
