//! `pixwarden models fetch`: which files of a repository a package needs. `hub` downloads them.

use std::io::Write;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;

use crate::commands::console::{note, stdout};
use crate::commands::progress::{Progress, Unit};
use crate::config::{Config, DetectorEntry};
use crate::detector::{MODEL_PATHS, external_files};
use crate::hub::{DownloadFolder, FetchedFile, Hub, Listing, RemoteFile, Repository, Settings};
use crate::screen::packages;

/// The record of what was fetched, in the format of `sha256sum`.
const SUMS_FILE: &str = "SHA256SUMS";

/// Options of `models fetch`.
#[derive(Debug, Args)]
pub(super) struct FetchArguments {
    /// hf://owner/name or hf://owner/name@revision; a commit is a revision that never changes
    #[arg(value_name = "HF-REFERENCE")]
    repository: Repository,
    /// The package's folder [default: models/NAME]
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// Fetch PyTorch weights and their configuration, which models/convert.py reads, instead of an ONNX package
    #[arg(long)]
    raw: bool,
}

pub(super) async fn run(arguments: &FetchArguments, config: &Config) -> anyhow::Result<u8> {
    let (repository, raw) = (arguments.repository.clone(), arguments.raw);
    let to = arguments.to.clone().unwrap_or_else(|| Path::new("models").join(&repository.name));
    let config = config.clone();
    // The hub's client is blocking.
    tokio::task::spawn_blocking(move || fetch(&repository, &to, raw, &config)).await??;
    Ok(0)
}

fn fetch(repository: &Repository, to: &Path, raw: bool, config: &Config) -> anyhow::Result<()> {
    let hub = Hub::new(Settings::from_environment(|name| std::env::var(name).ok())?)?;
    let listing = hub.list(repository)?;
    let model = MODEL_PATHS.iter().find_map(|path| file(&listing, Path::new(path)));
    let wanted: Vec<&RemoteFile> = match model {
        _ if raw => listing.files.iter().filter(|file| is_raw(&file.path)).collect(),
        Some(model) => listing.files.iter().filter(|file| *file == model || is_beside(&file.path)).collect(),
        None => bail!(
            "{repository} has no ONNX model ({})\n  hint: fetch the PyTorch weights with --raw, and convert them to a package with models/convert.py",
            MODEL_PATHS.join(" or ")
        ),
    };
    if raw && !wanted.iter().any(|file| holds_weights(&file.path)) {
        bail!("{repository} has no weights that models/convert.py can read (*.pt, *.pth, *.bin, *.safetensors)");
    }

    let mut download =
        PackageDownload { hub: &hub, listing: &listing, folder: DownloadFolder::open(to)?, fetched: Vec::new() };
    download.all(&wanted)?;
    if let Some(model) = model.filter(|_| !raw) {
        let weights = weights_of(&listing, to, model)?;
        download.all(&weights)?;
        // In most packages it is called golden.png, which was fetched already.
        let golden = golden_image(&listing, to).filter(|image| !is_beside(&image.path));
        download.all(golden.as_slice())?;
    }
    download.folder.write(SUMS_FILE, &sums(&mut download.fetched))?;
    note!(
        "fetched {} files of {} to {}, with their SHA-256 sums in {SUMS_FILE}",
        download.fetched.len(),
        listing.repository,
        to.display()
    );
    if raw {
        note!("convert them to a package with models/convert.py");
        return Ok(());
    }
    configure(to, config)
}

/// A download of files from one repository to one folder.
struct PackageDownload<'a> {
    hub: &'a Hub,
    listing: &'a Listing,
    folder: DownloadFolder,
    fetched: Vec<FetchedFile>,
}

impl PackageDownload<'_> {
    fn all(&mut self, files: &[&RemoteFile]) -> anyhow::Result<()> {
        let progress = Progress::new(Unit::Bytes);
        progress.expect(files.iter().map(|file| file.size_bytes).sum());
        for file in files {
            let fetched = self.hub.fetch(self.listing, file, &self.folder, &mut |bytes| progress.advance(bytes));
            // The progress bar is removed before an error is printed.
            let fetched = fetched.inspect_err(|_| progress.finish())?;
            self.fetched.push(fetched);
        }
        progress.finish();
        Ok(())
    }
}

fn file<'a>(listing: &'a Listing, path: &Path) -> Option<&'a RemoteFile> {
    listing.files.iter().find(|file| file.path == path)
}

/// Whether a package may hold this file beside its model.
fn is_beside(path: &Path) -> bool {
    let name = path.to_str().unwrap_or_default();
    ["config.json", "preprocessor_config.json", "README.md"].contains(&name)
        || (!name.contains('/') && (name.starts_with("golden.") || name.starts_with("LICENSE")))
}

/// Whether a file may hold PyTorch weights.
fn holds_weights(path: &Path) -> bool {
    path.extension().is_some_and(|kind| ["pt", "pth", "bin", "safetensors"].iter().any(|known| kind == *known))
}

/// Whether the converter reads a file, or the license requires it.
fn is_raw(path: &Path) -> bool {
    let name = path.to_str().unwrap_or_default();
    let stays =
        path.extension().is_some_and(|kind| kind == "json") || name == "README.md" || name.starts_with("LICENSE");
    !name.contains('/') && (holds_weights(path) || stays)
}

/// The image that a fetched golden.json names. The file is checked when the package is read.
fn golden_image<'a>(listing: &'a Listing, to: &Path) -> Option<&'a RemoteFile> {
    let text = std::fs::read_to_string(to.join("golden.json")).ok()?;
    let golden: serde_json::Value = serde_json::from_str(&text).ok()?;
    file(listing, Path::new(golden.get("image")?.as_str()?))
}

/// The files in which a fetched model keeps tensors.
fn weights_of<'a>(listing: &'a Listing, to: &Path, model: &RemoteFile) -> anyhow::Result<Vec<&'a RemoteFile>> {
    let beside = model.path.parent().unwrap_or(Path::new(""));
    let locations = external_files(&to.join(&model.path))?;
    let find = |location: &String| {
        let path: PathBuf = beside.join(location).components().filter(|part| *part != Component::CurDir).collect();
        // Only files of the listing are fetched, and their names were checked.
        file(listing, &path).with_context(|| {
            format!(
                "{} keeps tensors in \"{location}\", and the repository has no {}",
                model.path.display(),
                path.display()
            )
        })
    };
    locations.iter().map(find).collect()
}

/// One line for each file, as `sha256sum -c` reads them.
fn sums(fetched: &mut [FetchedFile]) -> String {
    fetched.sort_by(|a, b| a.path.cmp(&b.path));
    fetched.iter().map(|file| format!("{}  {}\n", file.sha256, file.path.display())).collect()
}

/// Reads the package as the worker does, and prints its table for the configuration. The path is absolute: a configuration
/// file may be in any folder, and paths in it are relative to that folder.
fn configure(to: &Path, config: &Config) -> anyhow::Result<()> {
    let to = std::path::absolute(to).with_context(|| format!("cannot find out where {} is", to.display()))?;
    let path = to.to_str().with_context(|| format!("{} is not UTF-8", to.display()))?;
    let only = Config { detectors: vec![DetectorEntry::Path(path.to_owned())], ..config.clone() };
    for detector in packages(&only)? {
        let text = |text: &str| toml::Value::from(text).to_string();
        // Labels are quoted: otherwise a label with a line break would become configuration.
        let mut out = stdout();
        writeln!(out, "# labels {:?}", detector.labels)?;
        writeln!(out, "# digest {}", detector.digest)?;
        writeln!(out, "[[detectors]]\nname = {}\npath = {}", text(&detector.name), text(path))?;
        writeln!(out, "sha256 = {}", text(&detector.model_sha256))?;
    }
    Ok(())
}
