//! `pixwarden completions` and `pixwarden man`: shell completions and manual pages, generated from the argument parser.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;
use super::console::{note, stdout};

#[derive(Debug, Args)]
#[command(after_help = "For bash: pixwarden completions bash > ~/.local/share/bash-completion/completions/pixwarden")]
pub struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, Args)]
#[command(after_help = "For one user: pixwarden man ~/.local/share/man/man1, then man pixwarden")]
pub struct Man {
    /// The folder to write the pages to, one per subcommand
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

pub(super) fn completions(arguments: &Completions) -> anyhow::Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "pixwarden", &mut script);
    let mut out = stdout();
    out.write_all(&script)?;
    out.flush()?;
    Ok(0)
}

pub(super) fn man(arguments: &Man) -> anyhow::Result<u8> {
    let folder: &Path = &arguments.folder;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    clap_mangen::generate_to(Cli::command(), folder)
        .with_context(|| format!("cannot write the manual pages to {}", folder.display()))?;
    note!("wrote the manual pages to {}", folder.display());
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_its_page() {
        let folder = tempfile::tempdir().unwrap();
        man(&Man { folder: folder.path().join("man1") }).unwrap();
        let page = |name: &str| std::fs::read_to_string(folder.path().join("man1").join(name)).unwrap();
        let mut cli = Cli::command();
        cli.build();
        for command in cli.get_subcommands().filter(|command| command.get_name() != "help" && !command.is_hide_set()) {
            assert!(page(&format!("pixwarden-{}.1", command.get_name())).contains(".SH"), "{}", command.get_name());
        }
        assert!(page("pixwarden-scan.1").contains("sqlite://FILE"));
        cli.debug_assert();
    }
}
