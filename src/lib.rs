//! map
pub mod broker;
pub mod commands;
pub mod config;
pub mod detector;
pub mod job;
pub mod retry;
pub mod lanes;
pub mod ledger;
pub mod policy;
pub mod screen;
pub mod telemetry;
pub mod worker;
