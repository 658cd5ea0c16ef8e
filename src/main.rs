//! Arguments in, exit status out.

#![warn(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

use clap::Parser;
use pixwarden::commands::{CLOSED_PIPE, Cli, is_closed_pipe, print_note, print_parser_text, run, status};
use pixwarden::error_text;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(text) => return ExitCode::from(print_parser_text(&text)),
    };
    match run(&cli) {
        Ok(status) => ExitCode::from(status),
        // The reader of the output has closed the pipe. That is no error to report.
        Err(error) if is_closed_pipe(error.as_ref()) => ExitCode::from(CLOSED_PIPE),
        Err(error) => {
            print_note(format_args!("error: {}", error_text(error.as_ref())));
            ExitCode::from(status(&error))
        }
    }
}
