//! `pixwarden models list`

use serde_json::{Map, json};

use crate::commands::output::{Format, Output};
use crate::config::Config;
use crate::screen::packages;

pub(super) fn run(format: Format, config: &Config) -> anyhow::Result<u8> {
    let mut output = Output::new(format, &["name", "labels", "input", "shadow", "digest", "sha256"])?;
    for detector in packages(config)? {
        let mut row = Map::new();
        row.insert("name".into(), json!(detector.name));
        row.insert("labels".into(), json!(detector.labels));
        row.insert("input".into(), json!(format!("{}x{}", detector.geometry.width, detector.geometry.height)));
        row.insert("shadow".into(), json!(detector.shadow));
        row.insert("model".into(), json!(detector.model));
        row.insert("digest".into(), json!(detector.digest));
        // The value for `sha256` in a [[detectors]] table.
        row.insert("sha256".into(), json!(detector.model_sha256));
        output.row(&row)?;
    }
    output.finish()?;
    Ok(0)
}
