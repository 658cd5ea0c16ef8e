//! `pixwarden decoder`: the process that decodes for another Pixwarden.

use anyhow::Context;

use crate::screen::decode::sandbox::child::{Attempt, attempt, serve};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Try what a decoder must not be able to do
    #[arg(long, value_name = "WHAT")]
    attempt: Option<Attempt>,
}

/// An attempt that is refused ends with 0, or with the process killed; one that is not, with 1.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<u8> {
    match arguments.attempt {
        None => serve().context("a decoder is started by Pixwarden itself, with a socket as its standard input")?,
        Some(what) => {
            let Err(refused) = attempt(what) else { anyhow::bail!("nothing refused it") };
            eprintln!("{refused}");
        }
    }
    Ok(0)
}
