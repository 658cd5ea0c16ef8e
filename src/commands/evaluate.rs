//! `pixwarden evaluate`: arguments and output of [`crate::evaluate`].

mod print;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;

use super::console::note;
use super::numbers;
use super::options::ScreeningOptions;
use super::output::{Format, printable};
use super::progress::{Progress, Unit};
use crate::config::{Config, ConfigError};
use crate::evaluate::dataset::{Dataset, LabelResolver};
use crate::evaluate::images::DatasetReader;
use crate::evaluate::report::{self, ReportInfo};
use crate::evaluate::results::{EvaluationResults, UnscoredImages};
use crate::evaluate::screening::{EvaluationObserver, InvalidDataset, screen_all};
use crate::evaluate::subject::{subjects, with_default_rules};
use crate::evaluate::summary::{Summary, TargetRates};
use crate::screen::{Screen, StartError, packages, policies_for};

/// Mistakes of either kind that the page shows per detector.
const MISTAKES_SHOWN: usize = 12;

#[derive(Debug, Args)]
pub struct EvaluateArguments {
    /// Labelled images; datasets with the same name share a row [repeatable]
    ///
    /// PATH is an image, a folder that is searched for images, or a parquet file with an image column. LABEL is one of
    /// the detectors' labels, or `positive` for the label that is looked for and `negative` for any other.
    ///
    /// `column:NAME` takes each row's label from a column of the parquet file (or of every *.parquet file in a folder).
    /// Words are labels. Numbers are positions in the names that the file's Hugging Face metadata give for that column,
    /// and without such names positions in the detector's labels. Null and -1 mean no label. `column:NAME=VALUE` takes
    /// VALUE as positive and any other value as negative.
    #[arg(long = "dataset", required = true, value_name = "NAME=LABEL:PATH", value_parser = Dataset::parse)]
    datasets: Vec<Dataset>,
    /// False-positive rate for flagging: the share of the negative images that may reach `flag_at`. A
    /// higher rate flags more images, and more of them wrongly
    #[arg(long, value_name = "RATE", default_value_t = 0.01, value_parser = numbers::share)]
    fpr: f64,
    /// False-positive rate for review. A higher rate finds more images, and sends more harmless images to people
    /// [default: 5 × --fpr]
    #[arg(long, value_name = "RATE", value_parser = numbers::share)]
    review_fpr: Option<f64>,
    /// Print the figures also by format, size, compression and dataset, and warn where such a property tells the labels
    /// apart: a detector may have learnt it instead of the content
    #[arg(long)]
    slices: bool,
    /// Write a page with curves, histograms and the worst mistakes to one HTML file
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Output format
    #[arg(long, value_enum)]
    format: Option<Format>,
    #[command(flatten)]
    pub(super) screening: ScreeningOptions,
}

pub(super) async fn run(arguments: &EvaluateArguments, config: &Config) -> anyhow::Result<u8> {
    let target_rates = arguments.target_rates()?;
    arguments.check_report()?;
    let detectors = packages(config)?;
    let mut config = config.clone();
    config.policy = with_default_rules(&config.policy, &config.policies, &detectors).map_err(StartError::from)?;
    let subjects: Arc<[_]> = subjects(&config.policy, &config.policies, &detectors).map_err(StartError::from)?.into();
    let labels = LabelResolver::new(Arc::clone(&subjects));
    let reader = DatasetReader::open(&arguments.datasets, labels).map_err(InvalidDataset)?;

    policies_for(&config, &detectors).map_err(StartError::from)?;
    let screen = Screen::start(&config, detectors)?;
    let mut results = EvaluationResults::new(subjects, reader.names.clone(), MISTAKES_SHOWN);
    let bar = EvaluationProgress(Progress::new(Unit::Images));
    bar.0.expect(reader.images());
    screen_all(reader, &screen, &config, &mut results, arguments.report.is_some(), &bar).await?;
    bar.0.finish();

    if results.is_empty() {
        note!("error: no image was scored: there is nothing to evaluate");
        return Ok(1);
    }
    let summaries: Vec<Summary<'_>> =
        (0..results.subjects.len()).map(|index| arguments.summary(&results, index, target_rates)).collect();
    print::print(Format::or_default(arguments.format), &summaries, &results)?;
    if let Some(path) = &arguments.report {
        let info = ReportInfo { made_at: time::OffsetDateTime::now_utc(), version: env!("CARGO_PKG_VERSION") };
        let page = report::page(&summaries, &results, &info);
        std::fs::write(path, page).with_context(|| format!("cannot write the report {}", path.display()))?;
    }
    Ok(0)
}

/// Shows the screening on the progress bar.
struct EvaluationProgress(Progress);

impl EvaluationObserver for EvaluationProgress {
    fn scored(&self) {
        self.0.advance(1);
    }

    fn unscored(&self, unscored: &UnscoredImages) {
        // Names and reasons come from untrusted files.
        let words = printable(&format!("{}: {}", unscored.image, unscored.reason));
        self.0.around(|| note!("not scored: {words}"));
        self.0.advance(unscored.images);
    }
}

impl EvaluateArguments {
    fn target_rates(&self) -> Result<TargetRates, ConfigError> {
        let rates = TargetRates { review: self.review_fpr.unwrap_or((5.0 * self.fpr).min(1.0)), flag: self.fpr };
        // Every comparison with NaN is false, so NaN is refused too.
        if !(0.0 <= rates.flag && rates.flag <= rates.review && rates.review <= 1.0) {
            let what = format!(
                "0 <= --fpr <= --review-fpr <= 1 must hold, but they are {} and {}: a flagged image also reaches review",
                rates.flag, rates.review
            );
            return Err(ConfigError::Invalid { option: "--fpr".into(), what });
        }
        Ok(rates)
    }

    fn summary<'a>(&self, results: &'a EvaluationResults, index: usize, target_rates: TargetRates) -> Summary<'a> {
        let summary = Summary::new(results, index, target_rates);
        if self.slices { summary.with_slices(results, index) } else { summary }
    }

    /// Checked before the screening, which may take an hour.
    fn check_report(&self) -> Result<(), ConfigError> {
        let Some(path) = &self.report else { return Ok(()) };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if path.is_dir() || folder.is_some_and(|folder| !folder.is_dir()) {
            let what = format!("cannot write {}\n  hint: name a file in a folder that exists", path.display());
            return Err(ConfigError::Invalid { option: "--report".into(), what });
        }
        Ok(())
    }
}
