//! A repository's files to disk: beneath one folder, resumed where they broke off, checked, and only then under their
//! own names.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cap_std::ambient_authority;
use cap_std::fs::{Dir, File, OpenOptions};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::{Checksum, Hub, HubError, LEAST_BYTES_PER_SECOND, Listing, RemoteFile};

/// A file that is on disk, whole and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Relative to the folder.
    pub path: PathBuf,
    /// SHA-256 of its bytes, hexadecimal.
    pub sha256: String,
}

/// A folder that downloads go to, and never out of: names and links that lead elsewhere fail.
pub struct Folder {
    dir: Dir,
    shown: PathBuf,
}

impl Folder {
    /// Opens a folder, making it where it is not there.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn open(path: &Path) -> Result<Self, HubError> {
        let disk = |error| HubError::Disk { file: path.display().to_string(), error };
        std::fs::create_dir_all(path).map_err(disk)?;
        let dir = Dir::open_ambient_dir(path, ambient_authority()).map_err(disk)?;
        Ok(Self { dir, shown: path.to_owned() })
    }

    /// Writes a small file at once or not at all.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn write(&self, name: &str, content: &str) -> Result<(), HubError> {
        let part = format!("{name}.part");
        let write = || {
            self.dir.write(&part, content)?;
            self.dir.rename(&part, &self.dir, name)
        };
        write().map_err(|error| self.disk(Path::new(name), error))
    }

    fn disk(&self, file: &Path, error: io::Error) -> HubError {
        HubError::Disk { file: self.shown.join(file).display().to_string(), error }
    }
}

/// The hashes of what has passed, so that nothing has to be read twice.
struct Hashes {
    sha256: Sha256,
    /// Where the hub promises git's.
    git: Option<Sha1>,
    bytes: u64,
}

impl Hashes {
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

    /// The SHA-256, if length and checksum are those promised; else which is not, in words.
    fn check(self, file: &RemoteFile) -> Result<String, String> {
        if self.bytes != file.size_bytes {
            return Err(format!("it has {} bytes, and the hub promises {}", self.bytes, file.size_bytes));
        }
        let sha256 = hex::encode(self.sha256.finalize());
        let (Checksum::Sha256(promised) | Checksum::GitBlob(promised)) = &file.checksum;
        let (kind, found) = match self.git {
            Some(git) => ("git's SHA-1", hex::encode(git.finalize())),
            None => ("SHA-256", sha256.clone()),
        };
        if found == *promised {
            Ok(sha256)
        } else {
            Err(format!("its {kind} is {found}, and the hub promises {promised}"))
        }
    }
}

/// A download under way: what has arrived, and its hashes.
struct Part {
    file: File,
    hashes: Hashes,
}

impl Hub {
    /// Brings one file into a folder and checks it. `progress` is told of bytes that need not be fetched any more.
    ///
    /// # Errors
    /// When it cannot be had whole. A download that broke off stays as a `.part` for the next time, and what arrived
    /// wrong is removed.
    pub fn fetch(
        &self,
        listing: &Listing,
        file: &RemoteFile,
        folder: &Folder,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Fetched, HubError> {
        let shown = || folder.shown.join(&file.path).display().to_string();
        let disk = |error| folder.disk(&file.path, error);
        if let Some(there) = there(folder, file).map_err(disk)? {
            progress(file.size_bytes);
            return there.map_err(|_| HubError::InTheWay(shown()));
        }
        // Named after its content, so that another revision's beginning is never continued.
        let (Checksum::Sha256(digest) | Checksum::GitBlob(digest)) = &file.checksum;
        let part_name = file.path.with_added_extension(&digest[..12]).with_added_extension("part");
        let mut part = Part::open(folder, file, &part_name).map_err(disk)?;
        let mut was_resumed = part.hashes.bytes > 0;
        progress(part.hashes.bytes);
        loop {
            let completed = self.complete(listing, file, &mut part, progress);
            if matches!(completed, Err(HubError::Corrupt { .. })) {
                folder.dir.remove_file(&part_name).map_err(disk)?;
            }
            completed?;
            let Part { file: written, hashes } = part;
            match hashes.check(file) {
                Ok(sha256) => {
                    let finish =
                        || written.sync_all().and_then(|()| folder.dir.rename(&part_name, &folder.dir, &file.path));
                    finish().map_err(disk)?;
                    return Ok(Fetched { path: file.path.clone(), sha256 });
                }
                Err(what) => {
                    folder.dir.remove_file(&part_name).map_err(disk)?;
                    // The fault may have been in what was left of an earlier time.
                    if !std::mem::take(&mut was_resumed) {
                        return Err(HubError::Corrupt { file: shown(), what });
                    }
                    part = Part::open(folder, file, &part_name).map_err(disk)?;
                }
            }
        }
    }

    /// Downloads what is missing of a part. Tries that bring something on cost nothing; those in a row that do not end
    /// it.
    fn complete(
        &self,
        listing: &Listing,
        file: &RemoteFile,
        part: &mut Part,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), HubError> {
        let repository = &listing.repository;
        let mut url = self.address([&*repository.owner, &repository.name, "resolve", &repository.revision]);
        if let Ok(mut path) = url.path_segments_mut() {
            path.extend(file.path.iter().filter_map(|component| component.to_str()));
        }
        let deadline = Instant::now() + Duration::from_secs(60 + file.size_bytes / LEAST_BYTES_PER_SECOND);
        let mut pauses = crate::retry::Delays::default();
        let mut tries = 0;
        while part.hashes.bytes < file.size_bytes {
            let before = part.hashes.bytes;
            let left = deadline.saturating_duration_since(Instant::now());
            let Err(e) = self.attempt(&url, left, file, part, progress) else { continue };
            let brought_something = part.hashes.bytes > before;
            tries = if brought_something { 1 } else { tries + 1 };
            if !e.may_pass() || tries >= self.settings.tries || left.is_zero() {
                return Err(e);
            }
            if brought_something {
                pauses.reset();
            }
            tracing::debug!(error = %e, arrived = part.hashes.bytes, "the download broke off, going on");
            std::thread::sleep(pauses.next_delay());
        }
        Ok(())
    }

    /// One request for what is missing.
    fn attempt(
        &self,
        url: &url::Url,
        left: Duration,
        file: &RemoteFile,
        part: &mut Part,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), HubError> {
        let broken = |error: String| HubError::Broken { url: url.to_string(), error };
        let shown = file.path.display().to_string();
        let disk = |error| HubError::Disk { file: shown.clone(), error };
        let response = self.get(url, part.hashes.bytes, left)?;
        if response.status() == 206 {
            let range = response.headers().get("content-range").and_then(|range| range.to_str().ok());
            let wanted = format!("bytes {}-", part.hashes.bytes);
            if !range.is_some_and(|range| range.starts_with(&wanted)) {
                let what = format!("asked for \"{wanted}\", it answers with {range:?}");
                return Err(HubError::Unexpected { url: url.to_string(), what });
            }
        } else {
            // The server does not resume, and begins anew.
            part.restart(file).map_err(disk)?;
        }
        let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
        let mut piece = vec![0; 1 << 16];
        loop {
            let n = body.read(&mut piece).map_err(|e| broken(e.to_string()))?;
            if n == 0 {
                break;
            }
            if part.hashes.bytes + n as u64 > file.size_bytes {
                let what = format!("it is longer than the {} bytes that the hub promises", file.size_bytes);
                return Err(HubError::Corrupt { file: shown, what });
            }
            part.file.write_all(&piece[..n]).map_err(disk)?;
            part.hashes.update(&piece[..n]);
            progress(n as u64);
        }
        if part.hashes.bytes < file.size_bytes {
            return Err(broken(format!("it ended after {} of {} bytes", part.hashes.bytes, file.size_bytes)));
        }
        Ok(())
    }
}

impl Part {
    /// Opens what an earlier download left, or begins one.
    fn open(folder: &Folder, file: &RemoteFile, name: &Path) -> io::Result<Self> {
        if let Some(parent) = name.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            folder.dir.create_dir_all(parent)?;
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut part = Self { file: folder.dir.open_with(name, &options)?, hashes: Hashes::new(file) };
        if part.file.metadata()?.len() > file.size_bytes {
            part.restart(file)?;
        }
        copy(&mut part.file, &mut part.hashes)?;
        Ok(part)
    }

    fn restart(&mut self, file: &RemoteFile) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.hashes = Hashes::new(file);
        Ok(())
    }
}

/// What is under the file's own name already: nothing, the file itself, or something else.
fn there(folder: &Folder, file: &RemoteFile) -> io::Result<Option<Result<Fetched, String>>> {
    let mut found = match folder.dir.open(&file.path) {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut hashes = Hashes::new(file);
    copy(&mut found, &mut hashes)?;
    Ok(Some(hashes.check(file).map(|sha256| Fetched { path: file.path.clone(), sha256 })))
}

/// Reads a file to its end through the hashes.
fn copy(file: &mut File, hashes: &mut Hashes) -> io::Result<()> {
    let mut piece = vec![0; 1 << 16];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(()),
            n => hashes.update(&piece[..n]),
        }
    }
}
