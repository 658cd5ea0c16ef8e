//! Processor time of an image's hashes: PDQ of its pixels, and SHA-256 and MD5 of its bytes.

use std::hint::black_box;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use image::codecs::jpeg::JpegDecoder;
use image::{DynamicImage, ImageDecoder};
use pixwarden::job::ContentDigests;
use pixwarden::screen::decode::hash_picture;
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

/// What is hashed.
#[derive(clap::Args)]
pub struct Options {
    /// JPEG files
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// How many times each is hashed. The median counts.
    #[arg(long, default_value_t = 21)]
    rounds: usize,
}

/// Prints a line of JSON for each file.
pub fn run(options: Options) -> anyhow::Result<()> {
    for file in options.files {
        let bytes = std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        let decoder = JpegDecoder::new(std::io::Cursor::new(&bytes))?;
        let (width, height) = decoder.dimensions();
        let rgb = DynamicImage::from_decoder(decoder)?.into_rgb8();
        let pdq_ms = median_ms(options.rounds, || _ = black_box(hash_picture(black_box(&rgb), (width, height), 1)));
        let digests_ms = median_ms(options.rounds, || _ = black_box(ContentDigests::of(black_box(&bytes))));
        let (file, bytes) = (file.display().to_string(), bytes.len());
        println!(
            "{}",
            json!({
                "file": file, "bytes": bytes, "width": width, "height": height, "pdq_ms": pdq_ms,
                "digests_ms": digests_ms,
            })
        );
    }
    Ok(())
}

fn median_ms(rounds: usize, mut work: impl FnMut()) -> f64 {
    let processor_ms = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0)).as_secs_f64() * 1e3
    };
    let mut times: Vec<f64> = (0..rounds.max(1))
        .map(|_| {
            let before = processor_ms();
            work();
            processor_ms() - before
        })
        .collect();
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 2]
}
