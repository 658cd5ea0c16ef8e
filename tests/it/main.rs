//! Integration tests against a real RabbitMQ, a real Postgres, real S3 servers and a real ONNX Runtime.
//!
//! `tests/services/run` starts them and says in `TEST_*` where they are. Each test has a prefix, a database and buckets
//! of its own; the worker under test is the real binary in a process of its own.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod support;

mod access;
mod attempts;
mod backfill;
mod bench;
mod changes;
mod errors;
mod faults;
mod hostile;
mod hub;
mod interface;
mod invariants;
mod lanes;
mod ledger;
mod link;
mod lists;
mod liveness;
mod memory;
mod messages;
mod models;
mod observe;
mod operate;
mod proxy;
mod sandbox;
mod scan;
mod throughput;
mod twins;
