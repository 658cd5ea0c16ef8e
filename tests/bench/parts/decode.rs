//! Processor time from an image's bytes to what a detector sees: Pixwarden's in both modes, and the `image` crate's.
//!
//! It serves its standard input, so that others can be measured in turns with it: a line names a way and a file, and is
//! answered by a line of JSON.

use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::ValueEnum;
use image::imageops::FilterType;
use pixwarden::config::{DecodeConfig, DecodeMode, Isolation};
use pixwarden::detector::{CropRounding, Geometry, ResampleFilter, Resize};
use pixwarden::job::Lane;
use pixwarden::screen::decode::DecoderPool;
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

/// How an image is decoded and resized.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Way {
    /// Pixwarden, `decode.mode = "exact"`.
    Exact,
    /// Pixwarden, `decode.mode = "fast"`.
    Fast,
    /// The `image` crate, decoding and `resize_exact`.
    Crate,
}

/// What is made of each image.
#[derive(clap::Args)]
pub struct Options {
    /// Width and height of what a detector sees; bicubic.
    #[arg(long, default_value_t = 384)]
    edge: u32,
    /// Where what was seen last is written, `[edge, edge, 3] u8`.
    #[arg(long)]
    pixels: PathBuf,
}

/// Measures until there are no more lines.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let Options { edge, pixels } = options;
    let config = DecodeConfig { threads: 1, isolation: Isolation::Thread, ..DecodeConfig::default() };
    let pool = DecoderPool::start(&config)?;
    let resize = Resize::Exact { width: edge, height: edge };
    let rounding = CropRounding::HalfToEven;
    let geometries =
        Arc::from([Geometry { resize, filter: ResampleFilter::Bicubic, width: edge, height: edge, rounding }]);
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (way, file) = line.split_once('\t').context("a line is a way, a tab and a file")?;
        let way = Way::from_str(way, false).map_err(anyhow::Error::msg)?;
        let bytes = std::fs::read(Path::new(file)).with_context(|| format!("reading {file}"))?;
        let before = processor_nanoseconds();
        let seen = match way {
            Way::Crate => {
                image::load_from_memory(&bytes)?.resize_exact(edge, edge, FilterType::CatmullRom).into_rgb8().into_raw()
            }
            Way::Exact => ours(&pool, DecodeMode::Exact, bytes, &geometries).await?,
            Way::Fast => ours(&pool, DecodeMode::Fast, bytes, &geometries).await?,
        };
        let nanoseconds = processor_nanoseconds() - before;
        std::fs::write(&pixels, seen)?;
        println!("{}", json!({ "nanoseconds": nanoseconds }));
    }
    Ok(())
}

/// On the pool's one thread; handing the image over and waiting is part of it.
async fn ours(
    pool: &DecoderPool,
    mode: DecodeMode,
    bytes: Vec<u8>,
    geometries: &Arc<[Geometry]>,
) -> anyhow::Result<Vec<u8>> {
    let decoded = pool.decode_with_mode(mode, Lane::Live, bytes.into(), Arc::clone(geometries)).await?;
    Ok(decoded.views[0].pixels[0].data.clone())
}

/// Of all threads.
fn processor_nanoseconds() -> i64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}
