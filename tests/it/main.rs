//! Integration tests with RabbitMQ, Postgres, an S3 server and ONNX Runtime.
//!
//! `tests/services/run` starts the services and exports their addresses in `TEST_*` variables. The tests run side by side:
//! each has a separate prefix, database and bucket, and its workers are separate processes. A test that stops a service
//! uses [`support::Lab::with_stoppable_services`].

#![expect(clippy::unwrap_used, reason = "a failed test shows the line")]

mod support;

mod access;
mod attempts;
mod backfill;
mod banks;
mod bench;
mod changes;
mod erasure;
mod errors;
mod faults;
mod guide;
mod hostile;
mod http;
mod hub;
mod interface;
mod invariants;
mod known;
mod lanes;
mod ledger;
mod link;
mod lists;
mod liveness;
mod memory;
mod messages;
mod models;
mod observe;
mod openapi;
mod operate;
mod output;
mod plans;
mod proxy;
mod review;
mod sandbox;
mod scan;
mod throughput;
mod twins;
mod webhooks;
