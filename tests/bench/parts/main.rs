//! Parts of Pixwarden by themselves, for the comparison in `tests/bench`: each prints what it measured as JSON.

mod broker;
mod decode;
mod ledger;

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
    /// Rows a second into a ledger
    Ledger(ledger::Options),
    /// Jobs a second through the broker
    Broker(broker::Options),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Arguments { part, bench: _ } = Arguments::parse();
    match part {
        Part::Decode(options) => decode::run(options).await,
        Part::Ledger(options) => ledger::run(options).await,
        Part::Broker(options) => broker::run(options).await,
    }
}
