//! Banks of made hashes in memory: size, time to build, and processor time per search.
//!
//! Made hashes are as far from each other as different pictures, so that no search ends early.

use std::time::Duration;

use pixwarden::banks::index::Index;
use pixwarden::job::Pdq;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

/// What to search, and how often.
#[derive(clap::Args)]
pub struct Options {
    /// Entries of each bank.
    #[arg(long, value_delimiter = ',', default_value = "1000000,10000000")]
    entries: Vec<usize>,
    /// Searches for each distance.
    #[arg(long, default_value_t = 5_000)]
    searches: u32,
    /// Searches in which all hashes are compared.
    #[arg(long, default_value_t = 20)]
    scans: u32,
}

/// Beyond the tables' distances, all hashes are compared.
const SCANNED_DISTANCE: u32 = 32;

/// Prints a line of JSON for each bank.
pub fn run(options: Options) -> anyhow::Result<()> {
    for entries in &options.entries {
        println!("{}", measured(*entries, &options)?);
    }
    Ok(())
}

fn measured(entries: usize, options: &Options) -> anyhow::Result<Value> {
    let mut made = MadeHashes(0);
    let hashes = made.by_ref().take(entries).collect();
    let before = processor_time();
    let index = Index::build(hashes);
    let built = processor_time() - before;
    let mut searched = |max_distance: u32, searches: u32| {
        let mut times: Vec<Duration> = made
            .by_ref()
            .take(searches as usize)
            .map(|query| {
                let before = processor_time();
                std::hint::black_box(index.nearest(&query, max_distance));
                processor_time() - before
            })
            .collect();
        times.sort_unstable();
        let microseconds = |time: Duration| time.as_secs_f64() * 1e6;
        let mean = microseconds(times.iter().sum::<Duration>()) / f64::from(searches);
        let quantile = |hundredths: usize| microseconds(times[times.len() * hundredths / 100]);
        (mean, json!({"mean_us": mean, "p50_us": quantile(50), "p99_us": quantile(99)}))
    };
    let (near, at_15) = searched(15, options.searches);
    let (far, at_31) = searched(31, options.searches);
    let (all, scan) = searched(SCANNED_DISTANCE, options.scans);
    Ok(json!({
        "entries": entries,
        "bytes": index.bytes(),
        "build_cpu_s": built.as_secs_f64(),
        "within_15": at_15,
        "within_31": at_31,
        "comparing_all": scan,
        "comparing_all_ratio_15": all / near,
        "comparing_all_ratio_31": all / far,
        "searches_per_s_on_two_threads_31": on_two_threads(&index, options.searches)?,
    }))
}

/// Searches to a distance of 31 a second, in all.
fn on_two_threads(index: &Index, searches: u32) -> anyhow::Result<f64> {
    let began = std::time::Instant::now();
    std::thread::scope(|scope| {
        let search = |seed| {
            move || MadeHashes(seed).take(searches as usize).filter(|query| index.nearest(query, 31).is_some()).count()
        };
        let threads = [scope.spawn(search(1 << 40)), scope.spawn(search(1 << 41))];
        let ended = threads.map(std::thread::ScopedJoinHandle::join);
        anyhow::ensure!(ended.iter().all(Result::is_ok), "a thread that searches has panicked");
        Ok(2.0 * f64::from(searches) / began.elapsed().as_secs_f64())
    })
}

/// Of this thread.
fn processor_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or_default())
}

/// Hashes without a pattern, by SplitMix64 (Steele, Lea, Flood 2014).
struct MadeHashes(u64);

impl Iterator for MadeHashes {
    type Item = Pdq;

    fn next(&mut self) -> Option<Pdq> {
        let mut hash = Pdq([0; 32]);
        for word in hash.0.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
            word.copy_from_slice(&(mixed ^ mixed >> 31).to_le_bytes());
        }
        Some(hash)
    }
}
