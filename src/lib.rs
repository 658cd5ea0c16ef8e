//! Pixwarden screens images: jobs from RabbitMQ, objects from S3, scores from ONNX detectors, verdicts in Postgres,
//! events back to RabbitMQ. A folder may take the place of S3, and a SQLite file that of Postgres.
//!
//! # The way of a job
//!
//! ```text
//!  queue ─▶ accept ─▶ admit ─▶ blob ─▶ decode ─▶ prepare ─▶ gather ─▶ infer ─▶ judge ─▶ persist ─▶ publish ─▶ settle
//!           message   the      object  bytes →   resize,    single →  scores   policy   verdict    outbox →   ack, retry,
//!           → job     gate     → bytes pixels    crop       batch              → word   + event    event      dead letter
//! ```
//!
//! The whole way is told by [`worker`], in the straight functions `live`, `answer`, `verdict_on` and `conclude`; how a
//! worker starts and drains is in `worker/run.rs`.
//!
//! # The map, in reading order
//!
//! | module | what it is for | what it must never know |
//! |---|---|---|
//! | [`job`] | the words: job, lane, outcome, scores, verdict; `job::forms` reads messages | any service |
//! | [`config`] | defaults ← file ← environment ← flags, resolved and checked once | what the options do |
//! | [`lanes`] | live before backfill, and backfill never starved | what travels in them |
//! | `canonical` | the JSON from which digests are made that hold for years | what is digested |
//! | `errors` | how errors are written for people | what failed |
//! | [`detector`] | a model package: labels, preprocessing, digest | how a model is run |
//! | [`policy`] | rules, checked against the configured detectors; `judge`: scores → outcome | how scores are made |
//! | [`screen`] | bytes → judgement: `decode` (and prepare, in decoder processes), `infer` (gather, run) | network, broker, database |
//! | [`evaluate`] | labelled scores → figures and a page; the columns of parquet files | models, services |
//! | [`broker`] | RabbitMQ: connecting, the topology, publishing that is confirmed | jobs |
//! | [`ledger`] | what a ledger promises; `postgres` and `sqlite` keep it | why something is stored |
//! | [`offload`] | blocking reads on a separate thread, as a stream | what is read |
//! | [`retry`] | when to try again | what is tried |
//! | [`worker`] | a delivery's life: `accept`, `admit`, `blob`, `health`, `persist`, `publish`, `settle` | formats, models, queries |
//! | [`backfill`] | an archive → jobs for what has no verdict: listing, comparing, publishing at a pace | formats, models, queries |
//! | [`hub`] | the Hugging Face Hub: what a repository holds, and its files to disk | detectors |
//! | [`certificates`] | whom we trust, and what to do about a certificate that is refused | whom it asks |
//! | [`commands`] | one file a subcommand, thin | |
//! | [`fault_injection`] | bugs and crashes that `tests/chaos` plants; empty without the cargo feature of this name | |
//! | [`telemetry`] | log lines, `metrics`, health over `http`, `traces`: functions that say what happened | why it did |
//!
//! # What is deliberately absent, and checked by `tests/it/invariants.rs`
//!
//! - A stage of `screen/` or `worker/` does not import another stage; `screen.rs`, `screen/start.rs` and `screen/self_test.rs`,
//!   `worker.rs` and `worker/run.rs` put them together. (The exceptions are words: `Frame`, `Pixels`, `Delivery`,
//!   `Fetching`, `Closed`, `Permit`, `Dependency`.)
//! - Image decoders are named in `screen/decode` only, what confines a process (`landlock`, `seccompiler`) in
//!   `screen/decode/sandbox/confine.rs`, `ort` in `screen/infer/onnx`, the S3 SDK in `worker/blob/s3.rs`, memory straight from
//!   the system (`memmap2`) in `worker/blob/spare.rs`, queries in `ledger/`, `backoff` in `retry.rs`, parquet in
//!   `evaluate/columns.rs`, HTTP of our own asking in `hub` and `telemetry/traces/export.rs`, HTTP that we answer in
//!   `telemetry/http.rs`, what counts in `telemetry/metrics.rs`, OpenTelemetry in `telemetry/traces`, paths that
//!   strangers choose (`cap_std`) in `worker/blob/folder` and `hub/download.rs`, and lapin in `broker`, the stages that
//!   talk to it (`accept`, `publish`, `settle`), `backfill/pace.rs` and the command `dead`.
//! - `screen/` names no service at all.
//! - Memory that a decoder's process shares with the worker: pixels travel over a socket, so that what was looked at
//!   cannot change any more.
//! - No job is acknowledged before its outcome is committed: `acker` is used in `settle.rs` only.

mod backfill;
mod bench;
pub mod broker;
mod canonical;
mod certificates;
pub mod commands;
pub mod config;
mod dead;
pub mod detector;
mod error_text;
mod escape;
mod evaluate;
pub mod fault_injection;
mod files;
mod groups;
pub mod hub;
pub mod job;
pub mod lanes;
pub mod ledger;
pub mod life;
pub mod objects;
pub mod offload;
pub mod policy;
mod processes;
pub mod retry;
pub mod screen;
pub mod telemetry;
pub mod worker;

pub use error_text::error_text;
