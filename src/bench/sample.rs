//! The images that everything is measured with, held in memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::BenchObserver;
use super::load::{Interrupted, as_f64};
use crate::detector::Geometry;
use crate::files;
use crate::job::{ImageInfo, Lane};
use crate::screen::ScreenError;
use crate::screen::decode::{self, DecoderPool};
use crate::screen::pixels::Pixels;

/// Images in a sample; more would only take memory.
pub(super) const MAX_IMAGES: usize = 100;
/// Bytes of all images in a sample.
const MAX_SAMPLE_BYTES: usize = 128 << 20;
/// Bytes of a file that suffice to recognise its format.
const HEADER_BYTES: u64 = 64;
/// The bundled images, beside the executable or in the working directory.
const SAMPLES_FOLDER: &str = "models/samples";

/// Where the images come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SampleOrigin {
    /// Named on the command line.
    Paths,
    /// The bundled samples.
    Samples,
    /// Generated, because the bundled samples were not found.
    Noise,
}

impl SampleOrigin {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Paths => "paths",
            Self::Samples => "samples",
            Self::Noise => "noise",
        }
    }
}

/// Files that look like images, not decoded yet.
pub(super) struct SampleCandidates {
    pub origin: SampleOrigin,
    /// The number of files to choose from.
    pub found: usize,
    pub files: Vec<Bytes>,
}

/// Images that decode without an error.
pub(crate) struct Sample {
    pub origin: SampleOrigin,
    /// The number of files to choose from.
    pub found: usize,
    /// Chosen files that do not decode.
    pub undecodable: usize,
    /// At least one.
    pub images: Vec<SampleImage>,
}

pub(crate) struct SampleImage {
    pub bytes: Bytes,
    pub seen: ImageInfo,
    /// Frames that are screened.
    pub frames: usize,
    /// The first frame, for each geometry.
    pub pixels: Vec<Arc<Pixels>>,
}

impl SampleCandidates {
    /// Chooses from the files below the paths. Without paths takes the bundled samples, or else generates images.
    ///
    /// # Errors
    /// When a path cannot be read.
    pub(super) async fn of(
        paths: Vec<PathBuf>,
        max_object_bytes: u64,
        stop: &CancellationToken,
        observer: &Arc<dyn BenchObserver>,
    ) -> anyhow::Result<Self> {
        let (origin, paths) = match bundled_samples() {
            _ if !paths.is_empty() => (SampleOrigin::Paths, paths),
            Some(samples) => (SampleOrigin::Samples, vec![samples]),
            None => {
                let files = synthetic_images();
                return Ok(Self { origin: SampleOrigin::Noise, found: files.len(), files });
            }
        };
        for path in &paths {
            path.metadata().with_context(|| format!("cannot read {}", files::path_text(path)))?;
        }
        let (found, chosen) = tokio::task::spawn_blocking({
            let (stop, observer) = (stop.clone(), Arc::clone(observer));
            move || choose_files(paths, &stop, |error| observer.unreadable(error))
        })
        .await?;
        let (mut files, mut bytes) = (Vec::new(), 0);
        for path in chosen {
            if stop.is_cancelled() {
                return Err(Interrupted.into());
            }
            match files::read(path, max_object_bytes).await {
                Ok(Some((file, _))) if bytes + file.len() <= MAX_SAMPLE_BYTES || files.is_empty() => {
                    bytes += file.len();
                    files.push(file);
                }
                // A worker would reject a file over the limit; or the sample is full.
                Ok(_) => {}
                Err(e) => observer.unreadable(&e),
            }
        }
        Ok(Self { origin, found, files })
    }
}

impl Sample {
    /// Decodes one candidate after another, for at most `time` once there is an image.
    ///
    /// # Errors
    /// When no candidate decodes, or a decoder process cannot be started.
    pub(super) async fn of(
        candidates: SampleCandidates,
        (pool, geometries): (&DecoderPool, &Arc<[Geometry]>),
        time: Duration,
        stop: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let SampleCandidates { origin, found, files } = candidates;
        let (mut images, mut undecodable, mut last_error) = (Vec::new(), 0, None);
        let started = Instant::now();
        for bytes in files {
            if !images.is_empty() && started.elapsed() > time {
                break;
            }
            let decoding = pool.decode(Lane::Live, bytes.clone(), Arc::clone(geometries));
            match stop.run_until_cancelled(decoding).await.ok_or(Interrupted)? {
                Ok(decoded) => {
                    let frames = decoded.views.len();
                    let pixels = decoded.views.into_iter().next().map(|view| view.pixels).unwrap_or_default();
                    images.push(SampleImage { bytes, seen: decoded.info, frames, pixels });
                }
                Err(ScreenError::Undecodable(why)) => {
                    undecodable += 1;
                    last_error = Some(why);
                }
                Err(e) => return Err(e.into()),
            }
        }
        if images.is_empty() {
            let why = last_error.map(|why| format!(": {why}")).unwrap_or_default();
            bail!(
                "no image to measure with: {found} files look like images, but none decodes{why}\n  hint: name files, folders or s3://bucket/prefix with JPEG, PNG, WebP, GIF, BMP, ICO or TIFF images; without a PATH the bundled samples are used"
            );
        }
        Ok(Self { origin, found, undecodable, images })
    }

    /// The mean of a property over the images.
    pub(crate) fn mean(&self, property: impl Fn(&SampleImage) -> f64) -> f64 {
        self.images.iter().map(property).sum::<f64>() / as_f64(self.images.len() as u64)
    }

    pub(crate) fn megapixels(&self) -> f64 {
        self.mean(|image| f64::from(image.seen.width) * f64::from(image.seen.height) / 1e6)
    }
}

fn bundled_samples() -> Option<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(SAMPLES_FOLDER)));
    beside.into_iter().chain([PathBuf::from(SAMPLES_FOLDER)]).find(|path| path.is_dir())
}

/// Chooses up to [`MAX_IMAGES`] files that begin like an image, each with the same probability. Also returns how many
/// there are.
fn choose_files(
    paths: Vec<PathBuf>,
    stop: &CancellationToken,
    unreadable: impl Fn(&anyhow::Error),
) -> (usize, Vec<PathBuf>) {
    let mut random = SplitMix64::default();
    let (mut found, mut chosen) = (0, Vec::new());
    for path in files::walk(paths).take_while(|_| !stop.is_cancelled()) {
        match path.and_then(|path| Ok(begins_like_image(&path)?.then_some(path))) {
            Ok(None) => {}
            // Reservoir sampling: the nth file replaces a chosen one with the probability MAX_IMAGES / n.
            Ok(Some(path)) => {
                found += 1;
                match random.below(found) {
                    index if found > MAX_IMAGES && index < MAX_IMAGES => chosen[index] = path,
                    _ if found > MAX_IMAGES => {}
                    index => {
                        chosen.push(path);
                        let last = chosen.len() - 1;
                        chosen.swap(index, last);
                    }
                }
            }
            Err(e) => unreadable(&e),
        }
    }
    (found, chosen)
}

fn begins_like_image(path: &Path) -> anyhow::Result<bool> {
    let head =
        files::read_head(path, HEADER_BYTES).with_context(|| format!("cannot read {}", files::path_text(path)))?;
    Ok(decode::has_image_signature(&head))
}

/// A few JPEGs of a megapixel: grain on colour gradients. Plain noise would take an entropy decoder longer than any
/// photograph does.
fn synthetic_images() -> Vec<Bytes> {
    let (width, height) = (1152, 896);
    let mut random = SplitMix64::default();
    let mut picture = |_| {
        let mut data = Vec::with_capacity(width * height * 3);
        for at in 0..width * height {
            let gradients = [at % width * 160 / width, at / width * 160 / height, 80];
            data.extend(gradients.map(|level| u8::try_from(level + random.below(48)).unwrap_or(u8::MAX)));
        }
        // `picture` encodes as a JPEG only what it shrinks: hence an edge limit that is shorter by one.
        let pixels = Pixels { width: 1152, height: 896, data };
        decode::encode_picture(&pixels, 1151).ok().map(|picture| Bytes::from(picture.bytes))
    };
    (0..4).filter_map(&mut picture).collect()
}

/// A generator that yields the same numbers in every run (Steele, Lea and Flood 2014).
#[derive(Default)]
struct SplitMix64(u64);

impl SplitMix64 {
    /// A number below `n`, which must be at least 1.
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % n as u64).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_chosen_evenly_from_all_images_and_other_files_are_ignored() {
        let folder = tempfile::tempdir().unwrap();
        for i in 0..3 * MAX_IMAGES {
            let head: &[u8] = if i % 3 == 0 { b"\x89PNG\r\n\x1a\n" } else { b"BM" };
            std::fs::write(folder.path().join(format!("{i:04}")), head).unwrap();
        }
        std::fs::write(folder.path().join("notes.jpg"), "a text").unwrap();
        let choose = || choose_files(vec![folder.path().to_owned()], &CancellationToken::new(), |e| panic!("{e}"));
        let (found, mut chosen) = choose();
        assert_eq!((found, chosen.len()), (3 * MAX_IMAGES, MAX_IMAGES));
        assert_eq!(chosen, choose().1, "the same ones every time");
        chosen.sort();
        chosen.dedup();
        assert_eq!(chosen.len(), MAX_IMAGES);
        let in_last_third = chosen.iter().filter(|path| path.ends_with("0200") || **path > folder.path().join("0200"));
        assert!((20..=46).contains(&in_last_third.count()));
    }

    #[test]
    fn synthetic_images_look_like_images() {
        let generated = synthetic_images();
        assert_eq!(generated.len(), 4);
        assert!(generated.iter().all(|file| decode::has_image_signature(file) && file.len() > 100_000));
    }
}
