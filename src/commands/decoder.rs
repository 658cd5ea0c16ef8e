//! `pixwarden decoder`: the decoder process of a worker.

use anyhow::Context;

use super::console::note;
use crate::screen::decode::sandbox::child::{ForbiddenAction, serve, try_forbidden};

#[derive(Debug, clap::Args)]
pub(super) struct DecoderArguments {
    /// Try an action that a decoder process must not be able to do
    #[arg(long, value_name = "ACTION")]
    attempt: Option<ForbiddenAction>,
}

/// An action that is refused ends with 0, or with the process killed. One that is allowed ends with 1.
pub(super) fn run(arguments: &DecoderArguments) -> anyhow::Result<u8> {
    match arguments.attempt {
        None => serve()
            .context("cannot serve as a decoder process\n  hint: this command is for workers, which start it with a socket as standard input")?,
        Some(action) => {
            let Err(refusal) = try_forbidden(action) else { anyhow::bail!("the action was not refused") };
            note!("{refusal}");
        }
    }
    Ok(0)
}
