//! Whose fault a refusal of the ledger is.
//!
//! A trigger may refuse one row or all, and so may a damaged index. The reason may also be gone already, for instance a
//! privilege that was missing for a moment. So a refused call is repeated between two probes. The row is at fault only if the
//! ledger accepts the row of a probe before and after.

use crate::ledger::{DatabaseError, Ledger, LedgerError};

/// The result of a call that was refused, once it is known whose fault it is: what the repeated call gives,
/// [`LedgerError::Refused`], or [`LedgerError::Down`].
pub(super) async fn resolve_refusal<T, F: Future<Output = Result<T, LedgerError>> + Send>(
    ledger: &dyn Ledger,
    refused: DatabaseError,
    again: impl FnOnce() -> F + Send,
) -> Result<T, LedgerError> {
    if ledger.ping().await.is_err() {
        return Err(LedgerError::Down(refused));
    }
    match again().await {
        Err(LedgerError::Refused(reason) | LedgerError::RefusedUnclear(reason)) => match ledger.ping().await {
            Ok(()) => Err(LedgerError::Refused(reason)),
            Err(_) => Err(LedgerError::Down(reason)),
        },
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ledger::{MissingFile, Sqlite};

    #[tokio::test]
    async fn it_is_the_rows_fault_only_if_the_ledger_accepts_a_probe_before_and_after() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Sqlite::open(&folder.path().join("ledger.db"), MissingFile::Create).await.unwrap();
        ledger.migrate().await.unwrap();
        let ledger: Arc<dyn Ledger> = Arc::new(ledger);
        let refused = || DatabaseError::from("refused".to_owned());
        let resolve = async |again: Result<u8, LedgerError>| {
            resolve_refusal(ledger.as_ref(), refused(), || std::future::ready(again)).await
        };
        assert!(matches!(resolve(Ok(7)).await, Ok(7)), "the reason is gone");
        assert!(matches!(resolve(Err(LedgerError::RefusedUnclear(refused()))).await, Err(LedgerError::Refused(_))));
        assert!(matches!(resolve(Err(LedgerError::Down(refused()))).await, Err(LedgerError::Down(_))));
        let closing = || async {
            ledger.close().await;
            Err::<u8, _>(LedgerError::RefusedUnclear(refused()))
        };
        let closed = resolve_refusal(ledger.as_ref(), refused(), closing).await;
        assert!(matches!(closed, Err(LedgerError::Down(_))), "{closed:?}");
        assert!(matches!(resolve(Ok(7)).await, Err(LedgerError::Down(_))));
    }
}
