//! Pixwarden screens images: jobs come from RabbitMQ, objects from S3, scores from ONNX detectors. Verdicts go to Postgres,
//! events back to RabbitMQ. A folder can replace S3, and a SQLite file can replace Postgres.
//!
//! # The way of a job
//!
//! ```text
//!  worker   accept ─▶ ┌ life ──────────────────────────────────────────────────────────────┐ ─▶ publish ─▶ settle
//!           message   │ identify ─▶ admit ─▶ fetch ─▶ screen ────────────▶ judge ─▶ commit │    event       ack, retry
//!           → job     │ job →       lanes,   object   decode ▶ infer       facts +   verdict│    → broker    or dead
//!                     │ detectors   gates    → bytes  bytes → pixels →     policy →  + event│                letter
//!                     └────────────────────────────── facts ────────────── outcome ────────┘
//! ```
//!
//! `JobProcessor::process` in `life` contains the whole way of a job. `Worker::process_delivery` in [`worker`] contains the
//! way of a delivery around it. `http` gives `life` what comes over HTTP, and `scan` takes the same steps for a file. How a
//! worker starts and drains is in `worker/run.rs`; `worker/serve.rs` does the same without a queue.
//!
//! # The map, in reading order
//!
//! | module | what it is for | what it does not know |
//! |---|---|---|
//! | [`job`] | the shared terms: job, lane, facts, finding, outcome, verdict, event; `job::forms` parses messages | any service |
//! | [`config`] | defaults ← file ← environment ← flags, merged and checked once; each stage has its `options` | what an option does |
//! | [`lanes`] | live before backfill, also at every `Gate`; backfill is never starved | what waits in them |
//! | [`detector`] | a model package: labels, preprocessing, digest | how a model is run |
//! | [`policy`] | rules checked against the detectors; `set` chooses a job's policy; `judge` makes an outcome of facts | where facts come from |
//! | [`objects`] | object stores, S3 or a folder; buckets that are allowed; buffers | jobs |
//! | [`screen`] | bytes to facts: `decode` (in confined processes) and `infer` | network, broker, database |
//! | [`ledger`] | the database of verdicts and banks: a trait for each kind of client, with `postgres` and `sqlite` behind them | why something is stored |
//! | [`banks`] | known images in memory: exact search, changes, lists as files | how a bank is stored, what a match means |
//! | `life` | an identified job becomes a committed verdict | the broker, HTTP |
//! | [`broker`] | RabbitMQ: connections, the topology, publishing with confirms | jobs |
//! | [`worker`] | a delivery's way: `accept`, `publish`, `settle` | formats, models, queries |
//! | [`webhooks`] | sends events to HTTP endpoints: signed, repeated, one sender for each endpoint | who made an event |
//! | [`http`] | images and verdicts over HTTP: one table of routes, access by keys | formats, models, queries |
//! | `backfill` | publishes a job for each image of an archive that has no verdict | formats, models, queries |
//! | `rejudge` | applies changed policies to stored facts | formats, models, queries |
//! | [`review`] | what a person's decision or report does | who people are, queries |
//! | `matching` | looks for a bank in the hashes of all verdicts | formats, models, queries |
//! | `compare` | counts what other policies would make of stored facts | formats, models, queries |
//! | `dead` | lists, replays and drops dead letters | printing |
//! | `evaluate` | labelled images to figures and a page | services |
//! | `bench` | measures this machine with the detectors | printing |
//! | [`hub`] | downloads packages from the Hugging Face Hub | detectors |
//! | [`commands`] | one file per subcommand: arguments in, one call, output | |
//! | [`telemetry`] | log, metrics as types, health, traces | what caused an event |
//! | [`fault_injection`] | bugs and crashes that `tests/chaos` plants; empty without the cargo feature of this name | |
//!
//! Small helpers: `drift` (how far two distributions of scores are apart), `retry` (delays between tries), `groups` (gathers items for one statement), `offload` (a blocking reader
//! as a stream), `canonical` (JSON for digests), `certificates`, `error_text`, `escape`, `files`, `processes`,
//! `text_or_table` (options of two forms).
//!
//! # What is forbidden, and checked by `tests/it/invariants.rs`
//!
//! - An import that is not in the test's table `ROOMS`. `life` imports neither [`broker`] nor [`worker`]. [`screen`]
//!   imports no service. Only [`commands`] and `bench` import [`worker`]; [`config`] imports its options.
//! - A stage that imports another stage of its room. Only the room's own file puts its stages together.
//! - A library outside of its place: lapin in [`broker`], the stages that talk to it, `backfill/pace.rs` and `dead`; the S3 SDK in
//!   `objects/s3.rs`; sqlx in [`ledger`]; ONNX Runtime in `screen/infer/onnx`; image decoders in `screen/decode`.
//! - Memory shared with a decoder process. Pixels travel over a socket, so that they cannot change after they were checked.
//! - An acknowledgement before the outcome is committed: only `worker/settle.rs` acknowledges.

// A failed print is a panic; `commands/console.rs` writes instead.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod backfill;
pub mod banks;
mod bench;
pub mod broker;
mod canonical;
mod certificates;
pub mod commands;
mod compare;
pub mod config;
mod dead;
pub mod detector;
mod drift;
mod error_text;
mod escape;
mod evaluate;
pub mod fault_injection;
mod files;
mod groups;
pub mod http;
pub mod hub;
pub mod job;
pub mod lanes;
pub mod ledger;
mod life;
mod matching;
pub mod objects;
mod offload;
pub mod policy;
mod processes;
mod rejudge;
mod retry;
pub mod review;
pub mod screen;
pub mod telemetry;
mod text_or_table;
pub mod webhooks;
pub mod worker;

pub use error_text::{Described, error_text};
