//! Parts of Pixwarden by themselves, for the comparison in `tests/bench`: each prints what it measured as JSON.

mod bank;
mod broker;
mod decode;
mod hash;
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
    /// Processor time of an image's hashes
    Hash(hash::Options),
    /// Rows a second into a ledger
    Ledger(ledger::Options),
    /// Memory and processor time of searches in a bank of hashes
    Bank(bank::Options),
    /// Jobs a second through the broker
    Broker(broker::Options),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Arguments { part, bench: _ } = Arguments::parse();
    match part {
        Part::Decode(options) => decode::run(options).await,
        Part::Hash(options) => hash::run(options),
        Part::Ledger(options) => ledger::run(options).await,
        Part::Bank(options) => bank::run(options),
        Part::Broker(options) => broker::run(options).await,
    }
}
