//! `pixwarden bench`: arguments and output of [`crate::bench`].

mod print;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::console::note;
use super::options::{DetectorOption, DeviceOption, LabelOption, ServiceOptions};
use super::output::printable;
use super::progress::{Progress, Unit};
use super::signals::{INTERRUPTED, Signals};
use super::{UsageError, numbers};
use crate::bench::{Bench, BenchObserver, Conclusions, Interrupted, ObjectPath, start_screen};
use crate::config::{Config, Overlay};
use crate::error_text;

#[derive(Debug, Args)]
#[command(
    after_help = "Everything is measured with images in memory: at most 100, as many as one decoder decodes in --seconds. \
The configured services are measured too. Commits go to a temporary schema or file, messages to a temporary queue; both \
are deleted afterwards. Objects are only read, and only where a PATH begins with s3://. Stop other programs on this \
machine first: they make the figures too low."
)]
pub struct BenchArguments {
    /// Files and folders with your images, or s3://bucket/prefix, whose downloads are measured too; without a PATH, the
    /// bundled samples
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// How long each part is measured; longer gives steadier figures
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0, value_parser = |text: &str| numbers::within(text, 0.01..=3600.0))]
    seconds: f64,
    /// Cost of this machine per hour, in any currency
    #[arg(long, value_name = "PRICE", value_parser = numbers::not_negative)]
    price_per_hour: Option<f64>,
    /// Output format
    #[arg(long, value_enum)]
    format: Option<BenchFormat>,
    #[command(flatten)]
    services: ServiceOptions,
    #[command(flatten)]
    detector: DetectorOption,
    // Nothing is judged, but without its label some detectors do not start.
    #[command(flatten)]
    label: LabelOption,
    #[command(flatten)]
    device: DeviceOption,
}

/// The report is one document, not rows: it has no CSV form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BenchFormat {
    /// For people; the default on a terminal
    Table,
    /// One JSON object on one line; the default elsewhere
    #[value(alias = "jsonl")]
    Json,
}

impl BenchArguments {
    pub(super) fn overlay(&self, overlay: &mut Overlay) {
        self.services.set(overlay);
        self.detector.set(overlay);
        self.label.set(overlay);
        self.device.set(overlay);
    }

    fn time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

/// Separates files and folders from `s3://` paths.
fn local_and_remote(paths: &[PathBuf]) -> Result<(Vec<PathBuf>, Vec<ObjectPath>), UsageError> {
    let (mut local, mut remote) = (Vec::new(), Vec::new());
    for path in paths {
        let Some(text) = path.to_str().filter(|path| path.starts_with("s3://")) else {
            local.push(path.clone());
            continue;
        };
        let invalid = || UsageError(format!("\"{text}\" is not s3://bucket/key or s3://bucket/prefix"));
        remote.push(ObjectPath::parse(text).ok_or_else(invalid)?);
    }
    Ok((local, remote))
}

/// Shows the measurements on the progress bar.
struct BenchProgress(Progress);

impl BenchObserver for BenchProgress {
    fn planned(&self, measurements: u64) {
        self.0.expect(measurements);
    }

    fn started(&self, measurement: &str) {
        self.0.set_message(measurement.to_owned());
    }

    fn completed(&self) {
        self.0.advance(1);
    }

    fn unreadable(&self, error: &anyhow::Error) {
        self.0.around(|| note!("error: {}", printable(&error_text(error.as_ref()))));
    }
}

pub(super) async fn run(arguments: &BenchArguments, config: &Config) -> anyhow::Result<u8> {
    let time = arguments.time();
    let (local, remote) = local_and_remote(&arguments.paths)?;
    let (screen, policies) = start_screen(config)?;
    let progress = Progress::new(Unit::Measurements);
    let bar = progress.clone();
    let stop = Signals::listen()?.stop(move || bar.around(|| note!("stopping; a second signal stops at once")));
    let observer = Arc::new(BenchProgress(progress.clone()));
    let bench = Bench { config, screen: &screen, policies: &policies, time, stop, observer };
    let report = bench.measure(local, &remote).await;
    progress.finish();
    let report = match report {
        Ok(report) => report,
        Err(e) if e.is::<Interrupted>() => {
            note!("stopped before the end: there are no figures");
            return Ok(INTERRUPTED);
        }
        Err(e) => return Err(e),
    };
    let conclusions = Conclusions::of(config, &report, arguments.price_per_hour);
    let default = if std::io::stdout().is_terminal() { BenchFormat::Table } else { BenchFormat::Json };
    print::print(arguments.format.unwrap_or(default), config, &report, &conclusions)?;
    let failures = report.failures();
    failures.iter().for_each(|why| note!("error: {why}"));
    Ok(u8::from(!failures.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s3_paths_are_told_from_files() {
        let paths = ["a/b.jpg", "s3://bucket/key", "/srv/s3"].map(PathBuf::from);
        let (local, remote) = local_and_remote(&paths).unwrap();
        assert_eq!((local.len(), remote[0].to_string().as_str(), remote.len()), (2, "s3://bucket/key", 1));
        assert!(local_and_remote(&["s3:///key".into()]).is_err());
    }
}
