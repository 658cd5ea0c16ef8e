//! Arguments in, exit status out.

use std::process::ExitCode;

use clap::Parser;
use pixwarden::commands::{Cli, run, status};
use pixwarden::error_text;

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(status) => ExitCode::from(status),
        // The reader of the output has closed the pipe. That is no error to report.
        Err(error) if is_broken_pipe(&error) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {}", error_text(error.as_ref()));
            ExitCode::from(status(&error))
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kinds = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>()).map(std::io::Error::kind);
    kinds.into_iter().any(|kind| kind == std::io::ErrorKind::BrokenPipe)
}
