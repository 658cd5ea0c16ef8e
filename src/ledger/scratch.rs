//! A ledger beside the configured one, with the same tables, on the same server or disk, that is taken away again: to
//! measure commits without a row in anybody's tables.

use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;
use uuid::Uuid;

use super::{Absent, Ledger, LedgerError, OpenError, Postgres, Sqlite};
use crate::config::Config;

/// First part of the name of schema and folder.
const NAME: &str = "pixwarden_bench_";

const HINT: &str = "\n  hint: commits are measured in a schema that is made and dropped again; name with --ledger a user who may make one, the database's owner or somebody with CREATE on the database";

/// Made by [`Scratch::make`], and to be ended by [`Scratch::remove`]: dropped, it leaves a schema behind.
pub struct Scratch {
    /// Empty at first.
    pub ledger: Arc<dyn Ledger>,
    place: Place,
}

enum Place {
    /// A schema of this name, in the configured database.
    Schema(Postgres, String),
    /// A folder beside the configured file.
    Folder(TempDir),
}

impl Scratch {
    /// Makes an empty ledger.
    ///
    /// # Errors
    /// When there is no ledger configured, it does not open, or this user may not make schemas there.
    pub async fn make(config: &Config) -> Result<Self, OpenError> {
        let url = config.ledger()?;
        let (ledger, place): (Arc<dyn Ledger>, _) = if let Some(file) = url.file() {
            let beside = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let folder =
                tempfile::Builder::new().prefix(NAME).tempdir_in(beside).map_err(|e| LedgerError::Unusable {
                    url: url.to_string(),
                    error: format!("{} takes no new folder: {e}", beside.display()),
                })?;
            let ledger = Sqlite::open(&folder.path().join("ledger.db"), Absent::Created).await?;
            (Arc::new(ledger), Place::Folder(folder))
        } else {
            let name = format!("{NAME}{}", Uuid::new_v4().simple());
            let configured = Postgres::open(url).await?;
            configured.create_schema(&name).await.map_err(|e| LedgerError::Unusable {
                url: url.to_string(),
                error: format!("for a schema of its own: {e}{HINT}"),
            })?;
            match Postgres::open_in(url, Some(&name)).await {
                Ok(ledger) => (Arc::new(ledger), Place::Schema(configured, name)),
                Err(e) => {
                    configured.drop_schema(&name).await?;
                    return Err(e.into());
                }
            }
        };
        let scratch = Self { ledger, place };
        if let Err(e) = scratch.ledger.migrate().await {
            scratch.remove().await?;
            return Err(e.into());
        }
        Ok(scratch)
    }

    /// Takes it away with all that is in it.
    ///
    /// # Errors
    /// When the database does not do it; the name of what is left is told.
    pub async fn remove(self) -> Result<(), LedgerError> {
        self.ledger.close().await;
        match self.place {
            Place::Schema(configured, name) => {
                let dropped = configured.drop_schema(&name).await;
                configured.close().await;
                dropped.map_err(|e| LedgerError::Down(format!("the schema {name} is left and has to be dropped: {e}")))
            }
            Place::Folder(folder) => {
                let left = folder.path().display().to_string();
                folder.close().map_err(|e| LedgerError::Down(format!("{left} is left and has to be removed: {e}")))
            }
        }
    }
}
