//! `pixwarden models fetch`: which files of a repository a package needs. `hub` downloads them.

use std::io::Write;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;

use crate::commands::console::{note, stdout};
use crate::commands::progress::{Progress, Unit};
use crate::config::{Config, DetectorEntry, DetectorTable};
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
    /// The model's file in the repository [default: model.onnx or onnx/model.onnx]
    ///
    /// For example onnx/model_quantized.onnx, which is smaller. A quantised model often scores a picture differently beside
    /// others: `models check` tells whether this one does.
    #[arg(long, value_name = "PATH", conflicts_with = "raw")]
    file: Option<PathBuf>,
    /// Fetch PyTorch weights and their configuration, which models/convert.py reads, instead of an ONNX package
    #[arg(long)]
    raw: bool,
}

pub(super) async fn run(arguments: &FetchArguments, config: &Config) -> anyhow::Result<u8> {
    let (repository, raw, chosen) = (arguments.repository.clone(), arguments.raw, arguments.file.clone());
    let to = arguments.to.clone().unwrap_or_else(|| Path::new("models").join(&repository.name));
    let config = config.clone();
    // The hub's client is blocking.
    tokio::task::spawn_blocking(move || {
        let wish = if raw { Wish::Weights } else { Wish::Package(chosen) };
        fetch(&repository, &to, &wish, &config)
    })
    .await??;
    Ok(0)
}

/// What is to be fetched.
enum Wish {
    /// An ONNX package, with the model of this path, or of the usual one.
    Package(Option<PathBuf>),
    /// PyTorch weights.
    Weights,
}

fn fetch(repository: &Repository, to: &Path, wish: &Wish, config: &Config) -> anyhow::Result<()> {
    let hub = Hub::new(Settings::from_environment(|name| std::env::var(name).ok())?)?;
    let listing = hub.list(repository)?;
    let model = match wish {
        Wish::Package(chosen) => Some(model_of(&listing, chosen.as_deref())?),
        Wish::Weights => None,
    };
    let wanted: Vec<&RemoteFile> = match model {
        Some(model) => listing.files.iter().filter(|file| *file == model || is_beside(&file.path)).collect(),
        None => listing.files.iter().filter(|file| is_raw(&file.path)).collect(),
    };
    if model.is_none() && !wanted.iter().any(|file| holds_weights(&file.path)) {
        bail!("{repository} has no weights that models/convert.py can read (*.pt, *.pth, *.bin, *.safetensors)");
    }

    let mut download =
        PackageDownload { hub: &hub, listing: &listing, folder: DownloadFolder::open(to)?, fetched: Vec::new() };
    download.all(&wanted)?;
    if let Some(model) = model {
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
    match wish {
        Wish::Weights => note!("convert them to a package with models/convert.py"),
        Wish::Package(chosen) => configure(to, chosen.as_deref(), config)?,
    }
    Ok(())
}

/// The model that is to be fetched: the chosen one, or the first of the usual ones.
fn model_of<'a>(listing: &'a Listing, chosen: Option<&Path>) -> anyhow::Result<&'a RemoteFile> {
    let repository = &listing.repository;
    let models = listing.files.iter().filter(|file| file.path.extension().is_some_and(|kind| kind == "onnx"));
    let models: Vec<String> = models.map(|file| file.path.display().to_string()).collect();
    let found = match chosen {
        Some(path) => file(listing, path),
        None => MODEL_PATHS.iter().find_map(|path| file(listing, Path::new(path))),
    };
    let tried = chosen.map_or_else(|| MODEL_PATHS.join(" or "), |path| path.display().to_string());
    match (found, models.as_slice()) {
        (Some(found), _) => Ok(found),
        (None, []) => bail!(
            "{repository} has no ONNX model ({tried})\n  hint: fetch the PyTorch weights with --raw, and convert them to a package with models/convert.py"
        ),
        (None, [first, ..]) => bail!(
            "{repository} has no {tried}, but {}\n  hint: choose one, for example with --file {first}",
            models.join(", ")
        ),
    }
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
    ["config.json", "preprocessor_config.json", "processor_config.json", "calibration.json", "README.md"]
        .contains(&name)
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
fn configure(to: &Path, chosen: Option<&Path>, config: &Config) -> anyhow::Result<()> {
    let to = std::path::absolute(to).with_context(|| format!("cannot find out where {} is", to.display()))?;
    let path = to.to_str().with_context(|| format!("{} is not UTF-8", to.display()))?;
    let file = chosen.map(|file| file.display().to_string()).unwrap_or_default();
    let table = DetectorTable { path: path.to_owned(), file: file.clone(), ..DetectorTable::default() };
    let only = Config { detectors: vec![DetectorEntry::Table(table)], ..config.clone() };
    for detector in packages(&only)? {
        let text = |text: &str| toml::Value::from(text).to_string();
        // Labels are quoted: otherwise a label with a line break would become configuration.
        let mut out = stdout();
        writeln!(out, "# labels {:?}", detector.labels)?;
        writeln!(out, "# digest {}", detector.digest)?;
        writeln!(out, "[[detectors]]\nname = {}\npath = {}", text(&detector.name), text(path))?;
        if !file.is_empty() {
            writeln!(out, "file = {}", text(&file))?;
        }
        writeln!(out, "sha256 = {}", text(&detector.model_sha256))?;
    }
    Ok(())
}
