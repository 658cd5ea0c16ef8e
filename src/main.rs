//! Arguments in, exit status out.

use std::process::ExitCode;

use clap::Parser;
use pixwarden::commands::{Cli, run, status};

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(status(&error))
        }
    }
}
