//! A temporary ledger beside the configured one, with the same tables on the same server or disk: `bench` measures commits
//! without writing into the tables that are in use.

use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;
use uuid::Uuid;

use super::{DatabaseError, Ledger, LedgerError, MissingFile, OpenError, Postgres, Sqlite};
use crate::config::Config;

/// The beginning of the name of schema and folder.
const NAME_PREFIX: &str = "pixwarden_bench_";

const HINT: &str = "\n  hint: commits are measured in a schema that is created and dropped; name a user with --ledger who may create one: the owner of the database, or a user with CREATE on it";

/// Created by [`Scratch::create`]. Call [`Scratch::remove`] at the end: dropping this value leaves the schema behind.
pub struct Scratch {
    /// Empty at first.
    pub ledger: Arc<dyn Ledger>,
    location: ScratchLocation,
}

enum ScratchLocation {
    /// A schema of this name in the configured database.
    Schema(Postgres, String),
    /// A folder beside the configured file.
    Folder(TempDir),
}

/// Creates an empty ledger in a temporary folder, which is deleted when the returned value is dropped.
///
/// # Errors
/// When the folder or its file cannot be created.
pub async fn open_temporary() -> Result<(Arc<dyn Ledger>, TempDir), LedgerError> {
    let folder = tempfile::tempdir().map_err(|e| LedgerError::CannotOpen {
        url: "a temporary file".into(),
        error: DatabaseError::new(format!("cannot create a folder in {}: {e}", std::env::temp_dir().display()), e),
    })?;
    let ledger = Sqlite::open(&folder.path().join("verdicts.db"), MissingFile::Create).await?;
    ledger.migrate().await?;
    Ok((Arc::new(ledger), folder))
}

impl Scratch {
    /// Creates an empty ledger.
    ///
    /// # Errors
    /// When no ledger is configured, it cannot be opened, or the user may not create schemas.
    pub async fn create(config: &Config) -> Result<Self, OpenError> {
        let url = config.ledger()?;
        let (ledger, location): (Arc<dyn Ledger>, _) = if let Some(file) = url.file() {
            let beside = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let folder = tempfile::Builder::new().prefix(NAME_PREFIX).tempdir_in(beside).map_err(|e| {
                LedgerError::CannotOpen {
                    url: url.to_string(),
                    error: DatabaseError::new(format!("cannot create a folder in {}: {e}", beside.display()), e),
                }
            })?;
            let ledger = Sqlite::open(&folder.path().join("ledger.db"), MissingFile::Create).await?;
            (Arc::new(ledger), ScratchLocation::Folder(folder))
        } else {
            let name = format!("{NAME_PREFIX}{}", Uuid::new_v4().simple());
            let configured = Postgres::open(url).await?;
            configured.create_schema(&name).await.map_err(|e| LedgerError::CannotOpen {
                url: url.to_string(),
                error: DatabaseError::new(format!("cannot create a schema: {e}{HINT}"), e),
            })?;
            match Postgres::open_in(url, Some(&name)).await {
                Ok(ledger) => (Arc::new(ledger), ScratchLocation::Schema(configured, name)),
                Err(e) => {
                    configured.drop_schema(&name).await?;
                    return Err(e.into());
                }
            }
        };
        let scratch = Self { ledger, location };
        if let Err(e) = scratch.ledger.migrate().await {
            scratch.remove().await?;
            return Err(e.into());
        }
        Ok(scratch)
    }

    /// Removes the ledger with everything in it.
    ///
    /// # Errors
    /// When removing fails. The message names what is left.
    pub async fn remove(self) -> Result<(), LedgerError> {
        self.ledger.close().await;
        match self.location {
            ScratchLocation::Schema(configured, name) => {
                let dropped = configured.drop_schema(&name).await;
                configured.close().await;
                dropped.map_err(|e| {
                    let text = format!("cannot drop the schema {name}: {e}\n  hint: DROP SCHEMA {name} CASCADE");
                    LedgerError::Down(DatabaseError::new(text, e))
                })
            }
            ScratchLocation::Folder(folder) => {
                let left = folder.path().display().to_string();
                folder.close().map_err(|e| {
                    LedgerError::Down(DatabaseError::new(format!("cannot remove the folder {left}: {e}"), e))
                })
            }
        }
    }
}
