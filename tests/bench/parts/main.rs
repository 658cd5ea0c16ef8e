//! Parts of Pixwarden by themselves, for the comparison in `tests/bench`: each prints what it measured as JSON.

mod decode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    part: Part,
    /// What cargo adds when it runs this.
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Part {
    /// Processor time from an image's bytes to what a detector sees
    Decode(decode::Options),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Arguments { part, bench: _ } = Arguments::parse();
    match part {
        Part::Decode(options) => decode::run(options).await,
    }
}
