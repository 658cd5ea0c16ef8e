//! `pixwarden models`

use clap::{Args, Subcommand};
use serde_json::{Map, json};

use super::output::{Format, Output};
use crate::config::Config;
use crate::screen::packages;

/// Options of `models`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the configured detectors with their digests; loads no model
    List {
        /// How rows are printed
        #[arg(long, value_enum)]
        format: Option<Format>,
    },
}

pub(super) fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<u8> {
    let Command::List { format } = arguments.command;
    let mut output = Output::new(Format::or_default(format), &["name", "labels", "input", "shadow", "digest"])?;
    for detector in packages(config)? {
        let mut row = Map::new();
        row.insert("name".into(), json!(detector.name));
        row.insert("labels".into(), json!(detector.labels));
        row.insert("input".into(), json!(format!("{}x{}", detector.geometry.width, detector.geometry.height)));
        row.insert("shadow".into(), json!(detector.shadow));
        row.insert("model".into(), json!(detector.model));
        row.insert("digest".into(), json!(detector.digest));
        output.row(&row)?;
    }
    output.finish()?;
    Ok(0)
}
