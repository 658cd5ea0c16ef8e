//! Downloads a repository's files into one folder. An interrupted download is resumed, and a file gets its name only once
//! its checksum is verified.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cap_std::ambient_authority;
use cap_std::fs::{Dir, File, OpenOptions};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::{Checksum, Hub, HubError, LEAST_BYTES_PER_SECOND, Listing, Mismatch, RemoteFile};

/// A complete and verified file on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedFile {
    /// Relative to the folder.
    pub path: PathBuf,
    /// SHA-256 of its bytes, hexadecimal.
    pub sha256: String,
}

/// The folder of downloads. Names and links that lead out of it fail.
pub struct DownloadFolder {
    dir: Dir,
    path: PathBuf,
}

impl DownloadFolder {
    /// Opens a folder; creates it where it does not exist.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn open(path: &Path) -> Result<Self, HubError> {
        let disk = |error| HubError::Disk { file: path.display().to_string(), error };
        std::fs::create_dir_all(path).map_err(disk)?;
        let dir = Dir::open_ambient_dir(path, ambient_authority()).map_err(disk)?;
        Ok(Self { dir, path: path.to_owned() })
    }

    /// Writes a small file completely or not at all.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write(&self, name: &str, content: &str) -> Result<(), HubError> {
        let part = format!("{name}.part");
        let write = || {
            self.dir.write(&part, content)?;
            self.dir.rename(&part, &self.dir, name)
        };
        write().map_err(|error| self.disk(Path::new(name), error))
    }

    fn disk(&self, file: &Path, error: io::Error) -> HubError {
        HubError::Disk { file: self.path.join(file).display().to_string(), error }
    }
}

/// The hashes of the bytes so far, so that no file is read twice.
struct DownloadHashes {
    sha256: Sha256,
    /// Where the listing has git's hash.
    git: Option<Sha1>,
    bytes: u64,
}

impl DownloadHashes {
    fn new(file: &RemoteFile) -> Self {
        // A git blob's hash begins with its length.
        let git = match file.checksum {
            Checksum::GitBlob(_) => Some(Sha1::new_with_prefix(format!("blob {}\0", file.size_bytes))),
            Checksum::Sha256(_) => None,
        };
        Self { sha256: Sha256::new(), git, bytes: 0 }
    }

    fn update(&mut self, piece: &[u8]) {
        self.sha256.update(piece);
        if let Some(git) = &mut self.git {
            git.update(piece);
        }
        self.bytes += piece.len() as u64;
    }

    /// The SHA-256, if length and checksum match the listing.
    fn check(self, file: &RemoteFile) -> Result<String, Mismatch> {
        if self.bytes != file.size_bytes {
            return Err(Mismatch::Length { found: self.bytes, expected: file.size_bytes });
        }
        let sha256 = hex::encode(self.sha256.finalize());
        let (Checksum::Sha256(expected) | Checksum::GitBlob(expected)) = &file.checksum;
        let (kind, found) = match self.git {
            Some(git) => ("git's SHA-1", hex::encode(git.finalize())),
            None => ("SHA-256", sha256.clone()),
        };
        if found == *expected {
            Ok(sha256)
        } else {
            Err(Mismatch::Checksum { kind, found, expected: expected.clone() })
        }
    }
}

/// An unfinished download: the bytes received, and their hashes.
struct PartialFile {
    file: File,
    hashes: DownloadHashes,
}

impl Hub {
    /// Downloads one file into a folder and verifies it. Calls `progress` with the number of bytes that are newly present.
    ///
    /// # Errors
    /// When the download fails. An interrupted download stays as a `.part` file for the next attempt; a corrupt one is
    /// deleted.
    pub fn fetch(
        &self,
        listing: &Listing,
        file: &RemoteFile,
        folder: &DownloadFolder,
        progress: &mut dyn FnMut(u64),
    ) -> Result<FetchedFile, HubError> {
        let shown = || folder.path.join(&file.path).display().to_string();
        let disk = |error| folder.disk(&file.path, error);
        match existing_file(folder, file).map_err(disk)? {
            ExistingFile::None => {}
            ExistingFile::Verified(existing) => {
                progress(file.size_bytes);
                return Ok(existing);
            }
            ExistingFile::Other => return Err(HubError::InTheWay(shown())),
        }
        // The name contains the checksum, so that the part of another revision is never continued.
        let (Checksum::Sha256(digest) | Checksum::GitBlob(digest)) = &file.checksum;
        let part_name = file.path.with_added_extension(&digest[..12]).with_added_extension("part");
        let mut part = PartialFile::open(folder, file, &part_name).map_err(disk)?;
        let mut was_resumed = part.hashes.bytes > 0;
        progress(part.hashes.bytes);
        loop {
            let completed = self.complete(listing, file, &mut part, progress);
            if matches!(completed, Err(HubError::Corrupt { .. })) {
                folder.dir.remove_file(&part_name).map_err(disk)?;
            }
            completed?;
            let PartialFile { file: written, hashes } = part;
            match hashes.check(file) {
                Ok(sha256) => {
                    let finish =
                        || written.sync_all().and_then(|()| folder.dir.rename(&part_name, &folder.dir, &file.path));
                    finish().map_err(disk)?;
                    return Ok(FetchedFile { path: file.path.clone(), sha256 });
                }
                Err(mismatch) => {
                    folder.dir.remove_file(&part_name).map_err(disk)?;
                    // The part of an earlier attempt may have been corrupt: the download starts again once.
                    if !std::mem::take(&mut was_resumed) {
                        return Err(HubError::Corrupt { file: shown(), mismatch });
                    }
                    part = PartialFile::open(folder, file, &part_name).map_err(disk)?;
                }
            }
        }
    }

    /// Downloads the rest of a part. Only attempts in a row without a new byte are limited.
    fn complete(
        &self,
        listing: &Listing,
        file: &RemoteFile,
        part: &mut PartialFile,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), HubError> {
        let repository = &listing.repository;
        let mut url = self.address([&*repository.owner, &repository.name, "resolve", &repository.revision]);
        if let Ok(mut path) = url.path_segments_mut() {
            path.extend(file.path.iter().filter_map(|component| component.to_str()));
        }
        let deadline = Instant::now() + Duration::from_secs(60 + file.size_bytes / LEAST_BYTES_PER_SECOND);
        let mut pauses = crate::retry::Delays::default();
        let mut attempts = 0;
        while part.hashes.bytes < file.size_bytes {
            let before = part.hashes.bytes;
            let left = deadline.saturating_duration_since(Instant::now());
            let Err(e) = self.attempt(&url, left, file, part, progress) else { continue };
            let received_bytes = part.hashes.bytes > before;
            attempts = if received_bytes { 1 } else { attempts + 1 };
            if !e.may_pass() || attempts >= self.settings.attempts || left.is_zero() {
                return Err(e);
            }
            if received_bytes {
                pauses.reset();
            }
            tracing::debug!(error = %e, received = part.hashes.bytes, "download interrupted, resuming");
            std::thread::sleep(pauses.next_delay());
        }
        Ok(())
    }

    /// One request for the rest of the file.
    fn attempt(
        &self,
        url: &url::Url,
        left: Duration,
        file: &RemoteFile,
        part: &mut PartialFile,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), HubError> {
        let broken = |error: io::Error| HubError::Broken { url: url.to_string(), error: error.into() };
        let shown = file.path.display().to_string();
        let disk = |error| HubError::Disk { file: shown.clone(), error };
        let response = self.get(url, part.hashes.bytes, left)?;
        if response.status() == 206 {
            let range = response.headers().get("content-range").and_then(|range| range.to_str().ok());
            let wanted = format!("bytes {}-", part.hashes.bytes);
            if !range.is_some_and(|range| range.starts_with(&wanted)) {
                let what = format!("requested \"{wanted}\", but the response has the range {range:?}");
                return Err(HubError::Unexpected { url: url.to_string(), what });
            }
        } else {
            // The server does not support resuming: it sends the file from the beginning.
            part.restart(file).map_err(disk)?;
        }
        let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
        let mut piece = vec![0; 1 << 16];
        loop {
            let n = body.read(&mut piece).map_err(&broken)?;
            if n == 0 {
                break;
            }
            if part.hashes.bytes + n as u64 > file.size_bytes {
                let mismatch = Mismatch::TooLong { expected: file.size_bytes };
                return Err(HubError::Corrupt { file: shown, mismatch });
            }
            part.file.write_all(&piece[..n]).map_err(disk)?;
            part.hashes.update(&piece[..n]);
            progress(n as u64);
        }
        if part.hashes.bytes < file.size_bytes {
            let truncated = format!("the response ended after {} of {} bytes", part.hashes.bytes, file.size_bytes);
            return Err(broken(io::Error::new(io::ErrorKind::UnexpectedEof, truncated)));
        }
        Ok(())
    }
}

impl PartialFile {
    /// Opens the part of an earlier download, or a new one.
    fn open(folder: &DownloadFolder, file: &RemoteFile, name: &Path) -> io::Result<Self> {
        if let Some(parent) = name.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            folder.dir.create_dir_all(parent)?;
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut part = Self { file: folder.dir.open_with(name, &options)?, hashes: DownloadHashes::new(file) };
        if part.file.metadata()?.len() > file.size_bytes {
            part.restart(file)?;
        }
        hash_rest(&mut part.file, &mut part.hashes)?;
        Ok(part)
    }

    fn restart(&mut self, file: &RemoteFile) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.hashes = DownloadHashes::new(file);
        Ok(())
    }
}

/// What exists under the name of a download.
enum ExistingFile {
    None,
    Verified(FetchedFile),
    /// Other content.
    Other,
}

fn existing_file(folder: &DownloadFolder, file: &RemoteFile) -> io::Result<ExistingFile> {
    let mut found = match folder.dir.open(&file.path) {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(ExistingFile::None),
        Err(e) => return Err(e),
    };
    let mut hashes = DownloadHashes::new(file);
    hash_rest(&mut found, &mut hashes)?;
    Ok(match hashes.check(file) {
        Ok(sha256) => ExistingFile::Verified(FetchedFile { path: file.path.clone(), sha256 }),
        Err(_) => ExistingFile::Other,
    })
}

/// Adds a file's bytes, to its end, to the hashes.
fn hash_rest(file: &mut File, hashes: &mut DownloadHashes) -> io::Result<()> {
    let mut piece = vec![0; 1 << 16];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(()),
            n => hashes.update(&piece[..n]),
        }
    }
}
