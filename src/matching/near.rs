//! Finds what resembles one picture in everything that was ever screened.

use std::collections::HashMap;

use uuid::Uuid;

use super::PAGE;
use crate::job::Pdq;
use crate::ledger::{HashedView, ImageHashes, LedgerError, StoredVerdict};

/// A picture to look for, in its eight flips and turns.
#[derive(Debug, Clone, Copy)]
pub struct Likeness {
    pub hash: Pdq,
    /// The largest distance.
    pub within: u32,
}

impl Likeness {
    /// Reads all hashes, and gives the verdicts that match to `found`, each with the distance of its closest view. It takes a
    /// time that grows with the ledger.
    ///
    /// # Errors
    /// When the ledger fails, or `found` does.
    pub async fn find<E: From<LedgerError>>(
        self,
        hashes: &dyn ImageHashes,
        mut found: impl FnMut(u32, &StoredVerdict) -> Result<(), E>,
    ) -> Result<(), E> {
        let turned = self.hash.turned();
        let mut from = Some(0);
        // A verdict that is written once more during the search has its hashes at two places.
        let mut distances: HashMap<Uuid, u32> = HashMap::new();
        while let Some(place) = from {
            let page = hashes.page_of_hashes(place).await?;
            for HashedView { verdict, pdq, .. } in page.views {
                let distance = pdq.and_then(|(pdq, _)| turned.iter().map(|hash| hash.distance(&pdq)).min());
                if let Some(distance) = distance.filter(|distance| *distance <= self.within) {
                    let known = distances.entry(verdict).or_insert(distance);
                    *known = distance.min(*known);
                }
            }
            from = page.next;
        }
        let mut closest: Vec<(u32, Uuid)> = distances.into_iter().map(|(id, distance)| (distance, id)).collect();
        closest.sort_unstable();
        for part in closest.chunks(PAGE) {
            let ids: Vec<Uuid> = part.iter().map(|(_, id)| *id).collect();
            let verdicts = hashes.read_verdicts(&ids).await?;
            let verdicts: HashMap<Uuid, StoredVerdict> =
                verdicts.into_iter().map(|stored| (stored.verdict.id, stored)).collect();
            part.iter()
                .filter_map(|(distance, id)| Some((*distance, verdicts.get(id)?)))
                .try_for_each(|(distance, stored)| found(distance, stored))?;
        }
        Ok(())
    }
}
