//! The images that everything is measured with, held in memory.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::super::files;
use super::super::output::printable;
use super::load::{Interrupted, count};
use crate::detector::Geometry;
use crate::job::{ImageInfo, Lane};
use crate::screen::ScreenError;
use crate::screen::decode::{self, DecoderPool};
use crate::screen::pixels::Pixels;

/// Images of a sample; more would only take memory.
pub(super) const MOST: usize = 100;
/// Bytes of all of them.
const MOST_BYTES: usize = 128 << 20;
/// Enough of a file to tell its format.
const HEAD: u64 = 64;
/// The bundled images, beside the executable or in the working directory.
const SAMPLES: &str = "models/samples";

/// Where the images come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// Whoever measures has named them.
    Paths,
    /// The bundled samples.
    Samples,
    /// Made here.
    Noise,
}

impl Origin {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Paths => "paths",
            Self::Samples => "samples",
            Self::Noise => "noise",
        }
    }
}

/// Files that may be images, in no order.
pub(super) struct Candidates {
    pub origin: Origin,
    /// How many there were to choose from.
    pub found: usize,
    pub files: Vec<Bytes>,
}

/// Decoded once, so that every one of them can be.
pub(super) struct Sample {
    pub origin: Origin,
    /// How many there were to choose from.
    pub found: usize,
    /// Of those that were chosen.
    pub undecodable: usize,
    /// At least one.
    pub images: Vec<Image>,
}

/// One image.
pub(super) struct Image {
    pub bytes: Bytes,
    pub seen: ImageInfo,
    /// Frames that are screened.
    pub frames: usize,
    /// The first frame, for each geometry.
    pub pixels: Vec<Arc<Pixels>>,
}

impl Candidates {
    /// Chooses from the files beneath the paths, or takes the bundled samples, or makes something.
    ///
    /// # Errors
    /// When a path cannot be read.
    pub(super) async fn of(paths: Vec<PathBuf>, limit: u64, stop: &CancellationToken) -> anyhow::Result<Self> {
        let (origin, paths) = match samples() {
            _ if !paths.is_empty() => (Origin::Paths, paths),
            Some(samples) => (Origin::Samples, vec![samples]),
            None => {
                let files = noise();
                return Ok(Self { origin: Origin::Noise, found: files.len(), files });
            }
        };
        for path in &paths {
            path.metadata().with_context(|| format!("reading {}", path.display()))?;
        }
        let (found, chosen) = tokio::task::spawn_blocking({
            let stop = stop.clone();
            move || choose(paths, &stop)
        })
        .await?;
        let (mut files, mut bytes) = (Vec::new(), 0);
        for path in chosen {
            if stop.is_cancelled() {
                return Err(Interrupted.into());
            }
            match files::read(path, limit).await {
                Ok(Some((file, _))) if bytes + file.len() <= MOST_BYTES || files.is_empty() => {
                    bytes += file.len();
                    files.push(file);
                }
                // Over the limit, so a worker would reject it; or enough is there.
                Ok(_) => {}
                Err(e) => eprintln!("error: {}", printable(&format!("{e:#}"))),
            }
        }
        Ok(Self { origin, found, files })
    }
}

impl Sample {
    /// Decodes one candidate after another for so long; those that can be are the sample.
    ///
    /// # Errors
    /// When none can be.
    pub(super) async fn of(
        candidates: Candidates,
        (pool, geometries): (&DecoderPool, &Arc<[Geometry]>),
        time: Duration,
        stop: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let Candidates { origin, found, files } = candidates;
        let (mut images, mut undecodable, mut last) = (Vec::new(), 0, None);
        let began = Instant::now();
        for bytes in files {
            if !images.is_empty() && began.elapsed() > time {
                break;
            }
            let decoding = pool.decode(Lane::Live, bytes.clone(), Arc::clone(geometries));
            match stop.run_until_cancelled(decoding).await.ok_or(Interrupted)? {
                Ok(decoded) => {
                    let frames = decoded.frames.len();
                    let pixels = decoded.frames.into_iter().next().unwrap_or_default();
                    images.push(Image { bytes, seen: decoded.info, frames, pixels });
                }
                Err(ScreenError::Undecodable(why)) => {
                    undecodable += 1;
                    last = Some(why);
                }
                Err(e) => return Err(e.into()),
            }
        }
        if images.is_empty() {
            let why = last.map(|why| format!("; the last one that was tried: {why}")).unwrap_or_default();
            bail!(
                "there is no image to measure with: {found} files look like one, and none can be decoded{why}\n  hint: name files, folders or s3://bucket/prefix with JPEG, PNG, WebP, GIF, BMP or TIFF images; without any PATH the bundled samples are taken"
            );
        }
        Ok(Self { origin, found, undecodable, images })
    }

    /// What an image has on average.
    pub(super) fn mean(&self, of: impl Fn(&Image) -> f64) -> f64 {
        self.images.iter().map(of).sum::<f64>() / count(self.images.len() as u64)
    }

    pub(super) fn megapixels(&self) -> f64 {
        self.mean(|image| f64::from(image.seen.width) * f64::from(image.seen.height) / 1e6)
    }
}

fn samples() -> Option<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(SAMPLES)));
    beside.into_iter().chain([PathBuf::from(SAMPLES)]).find(|path| path.is_dir())
}

/// Chooses files that begin like an image, each with the same chance, and says how many there are.
fn choose(paths: Vec<PathBuf>, stop: &CancellationToken) -> (usize, Vec<PathBuf>) {
    let mut random = Random::default();
    let (mut found, mut chosen) = (0, Vec::new());
    for path in files::walk(paths).take_while(|_| !stop.is_cancelled()) {
        match path.and_then(|path| Ok(begins_like_image(&path)?.then_some(path))) {
            Ok(None) => {}
            // Reservoir sampling: the nth of them takes the place of one with a chance of MOST to n.
            Ok(Some(path)) => {
                found += 1;
                match random.below(found) {
                    place if found > MOST && place < MOST => chosen[place] = path,
                    _ if found > MOST => {}
                    place => {
                        chosen.push(path);
                        let last = chosen.len() - 1;
                        chosen.swap(place, last);
                    }
                }
            }
            Err(e) => eprintln!("error: {}", printable(&format!("{e:#}"))),
        }
    }
    (found, chosen)
}

fn begins_like_image(path: &Path) -> anyhow::Result<bool> {
    let mut head = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(HEAD).read_to_end(&mut head));
    read.with_context(|| format!("reading {}", path.display()))?;
    Ok(decode::has_image_signature(&head))
}

/// A few JPEGs of a megapixel. Grain on slopes of colour, since plain noise would take an entropy decoder longer than
/// any photograph does.
fn noise() -> Vec<Bytes> {
    let (width, height) = (1152, 896);
    let mut random = Random::default();
    let mut picture = |_| {
        let mut data = Vec::with_capacity(width * height * 3);
        for at in 0..width * height {
            let slopes = [at % width * 160 / width, at / width * 160 / height, 80];
            data.extend(slopes.map(|slope| u8::try_from(slope + random.below(48)).unwrap_or(u8::MAX)));
        }
        // As large as it is: an edge shorter by one has it encoded as a JPEG.
        let pixels = Pixels { width: 1152, height: 896, data };
        decode::encode_picture(&pixels, 1151).ok().map(|picture| Bytes::from(picture.bytes))
    };
    (0..4).filter_map(&mut picture).collect()
}

/// The same numbers every time: SplitMix64 (Steele, Lea and Flood 2014).
#[derive(Default)]
struct Random(u64);

impl Random {
    /// A number below `n`, which is at least 1.
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
    fn of_many_images_some_are_chosen_from_all_over_and_other_files_are_none() {
        let folder = tempfile::tempdir().unwrap();
        for i in 0..3 * MOST {
            let head: &[u8] = if i % 3 == 0 { b"\x89PNG\r\n\x1a\n" } else { b"BM" };
            std::fs::write(folder.path().join(format!("{i:04}")), head).unwrap();
        }
        std::fs::write(folder.path().join("notes.jpg"), "a text").unwrap();
        let choose = || choose(vec![folder.path().to_owned()], &CancellationToken::new());
        let (found, mut chosen) = choose();
        assert_eq!((found, chosen.len()), (3 * MOST, MOST));
        assert_eq!(chosen, choose().1, "the same ones every time");
        chosen.sort();
        chosen.dedup();
        assert_eq!(chosen.len(), MOST);
        let in_last_third = chosen.iter().filter(|path| path.ends_with("0200") || **path > folder.path().join("0200"));
        assert!((20..=46).contains(&in_last_third.count()));
    }

    #[test]
    fn made_images_are_images() {
        let made = noise();
        assert_eq!(made.len(), 4);
        assert!(made.iter().all(|file| decode::has_image_signature(file) && file.len() > 100_000));
    }
}
