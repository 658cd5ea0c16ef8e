//! `pixwarden models check`: the start-up proof of every detector, each by itself.

use serde_json::{Map, Value, json};

use crate::commands::output::{Format, Output};
use crate::config::Config;
use crate::job::exact;
use crate::screen::{Examined, Proof, examine};

const COLUMNS: [&str; 7] = ["name", "digest", "model_sha256", "device", "labels", "deviation", "proved"];

pub(super) fn run(format: Format, config: &Config) -> anyhow::Result<u8> {
    let mut output = Output::new(format, &COLUMNS)?;
    let mut failures = Vec::new();
    for (folder, examined) in examine(config)? {
        match examined {
            Ok(examined) => output.row(&row(&examined))?,
            Err(e) => {
                // What is not known of a broken detector stays empty; its folder is where to look.
                let known = [("name", json!(folder)), ("proved", json!(false)), ("error", json!(e.to_string()))];
                output.row(&known.map(|(key, value)| (key.to_owned(), value)).into_iter().collect())?;
                failures.push(e);
            }
        }
    }
    output.finish()?;
    for failure in &failures {
        eprintln!("error: {failure}");
    }
    Ok(u8::from(!failures.is_empty()))
}

fn row(Examined { detector, place, proof }: &Examined) -> Map<String, Value> {
    let deviation = match proof {
        Proof::Proved(deviation) => Some(deviation),
        Proof::Unproved => None,
    };
    let fields = [
        ("name", json!(detector.name)),
        ("digest", json!(detector.digest)),
        ("model_sha256", json!(detector.model_sha256)),
        ("device", json!(place)),
        ("labels", json!(detector.labels)),
        ("deviation", json!(deviation.map(|deviation| exact(deviation.size())))),
        ("tolerance", json!(deviation.map(|deviation| exact(deviation.tolerance)))),
        ("proved", json!(deviation.is_some())),
        ("error", Value::Null),
    ];
    fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}
