//! `pixwarden key`: keys of machines that ask over HTTP.

use clap::{Args, Subcommand};

use super::UsageError;
use super::console::{note, stdout};
use super::numbers;
use crate::config::Scope;
use crate::http::{NewKey, is_key_name, new_key};

#[derive(Debug, Args)]
pub struct KeyArguments {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Make a key, and print it once with its table for the configuration file
    Create(CreateArguments),
}

#[derive(Debug, Args)]
struct CreateArguments {
    /// Name of the key; the ids of its jobs begin with it
    #[arg(value_name = "NAME")]
    name: String,
    /// What the key may do [repeatable]
    #[arg(long, value_name = "SCOPE", value_enum, default_value = "screen")]
    scope: Vec<Scope>,
    /// A bucket whose images the key may name and read; "*" stands for any characters [repeatable] [default: all]
    #[arg(long, value_name = "NAME")]
    bucket: Vec<String>,
    /// A policy that may judge what the key sends [repeatable] [default: all]
    #[arg(long, value_name = "NAME")]
    policy: Vec<String>,
    /// Requests a second [default: no limit]
    #[arg(long, value_name = "N", value_parser = |text: &str| numbers::whole_within(text, 1..=u32::MAX))]
    per_second: Option<u32>,
}

pub(super) fn run(arguments: &KeyArguments) -> anyhow::Result<u8> {
    let KeyCommand::Create(create) = &arguments.command;
    if !is_key_name(&create.name) {
        let what = format!(
            "\"{}\" cannot be the name of a key\n  hint: use up to 40 letters, digits, dots, dashes or underscores",
            create.name.escape_debug()
        );
        return Err(UsageError(what).into());
    }
    let key = new_key();
    note!(
        "the key is printed only now; its SHA-256 goes into the configuration file; remove it there to revoke the key"
    );
    create.print(&key)?;
    Ok(0)
}

impl CreateArguments {
    fn print(&self, NewKey { key, sha256 }: &NewKey) -> anyhow::Result<()> {
        use std::io::Write;
        let list = |texts: &[String]| texts.iter().map(|text| format!("{text:?}")).collect::<Vec<_>>().join(", ");
        let scopes: Vec<String> = self.scope.iter().map(|scope| scope.as_str().to_owned()).collect();
        let mut out = stdout();
        writeln!(
            out,
            "{key}\n\n[[http.keys]]\nname = {:?}\nsha256 = \"{sha256}\"\nscopes = [{}]",
            self.name,
            list(&scopes)
        )?;
        if !self.bucket.is_empty() {
            writeln!(out, "buckets = [{}]", list(&self.bucket))?;
        }
        if !self.policy.is_empty() {
            writeln!(out, "policies = [{}]", list(&self.policy))?;
        }
        if let Some(rate) = self.per_second {
            writeln!(out, "per_second = {rate}")?;
        }
        Ok(out.flush()?)
    }
}
