//! `pixwarden models check`: the self-test of every detector, each by itself.

use std::path::Path;

use anyhow::Context;
use serde_json::{Map, Value, json};

use crate::commands::console::note;
use crate::commands::output::{Format, Output};
use crate::config::Config;
use crate::error_text;
use crate::job::exact;
use crate::screen::{CheckedDetector, HOW_TO_WRITE, NewGoldenImage, SelfTest, check_detectors};

const COLUMNS: [&str; 7] = ["name", "digest", "model_sha256", "device", "labels", "deviation", "proved"];

pub(super) fn run(format: Format, write_golden: Option<&Path>, config: &Config) -> anyhow::Result<u8> {
    let read = |file: &Path| {
        let bytes = std::fs::read(file).with_context(|| {
            format!("cannot read {}\n  hint: check the path given with --write-golden", file.display())
        })?;
        anyhow::Ok(NewGoldenImage { file: file.to_owned(), bytes: bytes.into() })
    };
    let golden = write_golden.map(read).transpose()?;
    let mut output = Output::new(format, &COLUMNS)?;
    let mut failures = Vec::new();
    for (folder, checked) in check_detectors(config, golden.as_ref())? {
        match checked {
            Ok(checked) => {
                output.row(&row(&checked))?;
                let name = &checked.detector.name;
                if let Some(batch) = checked.batch.as_ref().filter(|batch| batch.depends_on_neighbours()) {
                    note!(
                        "the scores of {name} depend on the other pictures of a batch: in a batch with {} others, a picture's score for \"{}\" differs by up to {:.4} from its score alone\n  hint: set `inference.max_batch = 1`, or use the model's file in full precision; a model that is quantised while it runs takes its scale from the whole batch",
                        batch.images - 1,
                        batch.label,
                        batch.deviation
                    );
                }
                if checked.self_test == SelfTest::NoGoldenImage {
                    note!("{name} has no golden image, so that nothing proves its scores here\n  hint: {HOW_TO_WRITE}");
                }
            }
            Err(e) => {
                let error = error_text(&e);
                // A detector that fails has no name yet, so that its folder stands for it.
                let known = [("name", json!(folder)), ("proved", json!(false)), ("error", json!(error))];
                output.row(&known.map(|(key, value)| (key.to_owned(), value)).into_iter().collect())?;
                failures.push(error);
            }
        }
    }
    output.finish()?;
    for failure in &failures {
        note!("error: {failure}");
    }
    Ok(u8::from(!failures.is_empty()))
}

fn row(CheckedDetector { detector, device, self_test, batch }: &CheckedDetector) -> Map<String, Value> {
    let deviation = match self_test {
        SelfTest::Passed(deviation) => Some(deviation),
        SelfTest::NoGoldenImage => None,
    };
    let fields = [
        ("name", json!(detector.name)),
        ("digest", json!(detector.digest)),
        ("model_sha256", json!(detector.model_sha256)),
        ("device", json!(device)),
        ("labels", json!(detector.labels)),
        ("deviation", json!(deviation.map(|deviation| exact(deviation.size())))),
        ("tolerance", json!(deviation.map(|deviation| exact(deviation.tolerance)))),
        ("proved", json!(deviation.is_some())),
        ("batch_images", json!(batch.as_ref().map(|batch| batch.images))),
        ("batch_deviation", json!(batch.as_ref().map(|batch| exact(batch.deviation)))),
        ("error", Value::Null),
    ];
    fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}
