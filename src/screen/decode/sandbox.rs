//! Decoding in confined processes.
//!
//! `process` is the worker's half. `child` is the decoder process, `confine` what it gives up before the first image, and
//! `protocol` what the two send each other. `child` and `process` do not import each other.

pub(crate) mod child;
mod confine;
mod process;
mod protocol;

pub(super) use process::SupervisedDecoder;
pub(crate) use protocol::Confinement;
