//! `pixwarden models fetch`: which files of a repository a package needs; the fetching itself is `hub`'s.

use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;

use crate::commands::progress::{Progress, Unit};
use crate::config::{Config, DetectorEntry};
use crate::detector::{MODEL_PLACES, companions};
use crate::hub::{DownloadFolder, FetchedFile, Hub, Listing, RemoteFile, Repository, Settings};
use crate::screen::packages;

/// The record of what was fetched, in the format of `sha256sum`.
const SUMS: &str = "SHA256SUMS";

/// Options of `models fetch`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// hf://owner/name or hf://owner/name@revision; a commit as the revision never changes
    #[arg(value_name = "HF-REFERENCE")]
    repository: Repository,
    /// The package's folder [default: models/NAME]
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// Fetch what models/convert.py reads (PyTorch's weights and their configuration) instead of an ONNX package
    #[arg(long)]
    raw: bool,
}

pub(super) async fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<u8> {
    let (repository, raw) = (arguments.repository.clone(), arguments.raw);
    let to = arguments.to.clone().unwrap_or_else(|| Path::new("models").join(&repository.name));
    let config = config.clone();
    // The hub's client blocks.
    tokio::task::spawn_blocking(move || fetch(&repository, &to, raw, &config)).await??;
    Ok(0)
}

fn fetch(repository: &Repository, to: &Path, raw: bool, config: &Config) -> anyhow::Result<()> {
    let hub = Hub::new(Settings::from_environment(|name| std::env::var(name).ok())?)?;
    let listing = hub.list(repository)?;
    let model = MODEL_PLACES.iter().find_map(|place| file(&listing, Path::new(place)));
    let wanted: Vec<&RemoteFile> = match model {
        _ if raw => listing.files.iter().filter(|file| is_raw(&file.path)).collect(),
        Some(model) => listing.files.iter().filter(|file| *file == model || is_beside(&file.path)).collect(),
        None => bail!(
            "{repository} has no ONNX model ({})\n  hint: fetch PyTorch's weights with --raw, and make a package of them with models/convert.py",
            MODEL_PLACES.join(" or ")
        ),
    };
    if raw && !wanted.iter().any(|file| holds_weights(&file.path)) {
        bail!("{repository} has no weights that models/convert.py reads (*.pt, *.pth, *.bin, *.safetensors)");
    }

    let mut download =
        Download { hub: &hub, listing: &listing, folder: DownloadFolder::open(to)?, fetched: Vec::new() };
    download.all(&wanted)?;
    if let Some(model) = model.filter(|_| !raw) {
        let weights = weights_of(&listing, to, model)?;
        download.all(&weights)?;
        // Most often it is called golden.png, and has come already.
        let golden = golden_image(&listing, to).filter(|image| !is_beside(&image.path));
        download.all(golden.as_slice())?;
    }
    download.folder.write(SUMS, &sums(&mut download.fetched))?;
    eprintln!(
        "{} files of {} are whole in {}, with their sums in {SUMS}",
        download.fetched.len(),
        listing.repository,
        to.display()
    );
    if raw {
        eprintln!("make a package of them with models/convert.py");
        return Ok(());
    }
    configure(to, config)
}

/// Files of one repository on their way to one folder.
struct Download<'a> {
    hub: &'a Hub,
    listing: &'a Listing,
    folder: DownloadFolder,
    fetched: Vec<FetchedFile>,
}

impl Download<'_> {
    fn all(&mut self, files: &[&RemoteFile]) -> anyhow::Result<()> {
        let progress = Progress::new(Unit::Bytes);
        progress.expect(files.iter().map(|file| file.size_bytes).sum());
        for file in files {
            let fetched = self.hub.fetch(self.listing, file, &self.folder, &mut |bytes| progress.advance(bytes));
            // The bar goes before anything is said.
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

/// What a package holds beside its model.
fn is_beside(path: &Path) -> bool {
    let name = path.to_str().unwrap_or_default();
    ["config.json", "preprocessor_config.json", "README.md"].contains(&name)
        || (!name.contains('/') && (name.starts_with("golden.") || name.starts_with("LICENSE")))
}

/// Whether a file may hold PyTorch's weights.
fn holds_weights(path: &Path) -> bool {
    path.extension().is_some_and(|kind| ["pt", "pth", "bin", "safetensors"].iter().any(|known| kind == *known))
}

/// What the converter reads, and what has to stay with it.
fn is_raw(path: &Path) -> bool {
    let name = path.to_str().unwrap_or_default();
    let stays =
        path.extension().is_some_and(|kind| kind == "json") || name == "README.md" || name.starts_with("LICENSE");
    !name.contains('/') && (holds_weights(path) || stays)
}

/// The image that a fetched golden.json names. Whether that is in order is for the package's reader to say.
fn golden_image<'a>(listing: &'a Listing, to: &Path) -> Option<&'a RemoteFile> {
    let text = std::fs::read_to_string(to.join("golden.json")).ok()?;
    let golden: serde_json::Value = serde_json::from_str(&text).ok()?;
    file(listing, Path::new(golden.get("image")?.as_str()?))
}

/// The files in which a fetched model keeps tensors.
fn weights_of<'a>(listing: &'a Listing, to: &Path, model: &RemoteFile) -> anyhow::Result<Vec<&'a RemoteFile>> {
    let beside = model.path.parent().unwrap_or(Path::new(""));
    let locations = companions(&to.join(&model.path))?;
    let find = |location: &String| {
        let path: PathBuf = beside.join(location).components().filter(|part| *part != Component::CurDir).collect();
        // Whatever a model names has to be in the listing, whose names are checked.
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

/// One line a file, as `sha256sum -c` reads them.
fn sums(fetched: &mut [FetchedFile]) -> String {
    fetched.sort_by(|a, b| a.path.cmp(&b.path));
    fetched.iter().map(|file| format!("{}  {}\n", file.sha256, file.path.display())).collect()
}

/// Reads the package as the worker would, and prints what configures it.
fn configure(to: &Path, config: &Config) -> anyhow::Result<()> {
    let path = to.to_str().with_context(|| format!("{} is not UTF-8", to.display()))?;
    let only = Config { detectors: vec![DetectorEntry::Path(path.to_owned())], ..config.clone() };
    for detector in packages(&only)? {
        let text = |text: &str| toml::Value::from(text).to_string();
        // Quoted: a label with a line break in it would become configuration.
        println!("# labels {:?}", detector.labels);
        println!("# digest {}", detector.digest);
        println!("[[detectors]]\nname = {}\npath = {}", text(&detector.name), text(path));
        println!("sha256 = {}", text(&detector.model_sha256));
    }
    Ok(())
}
