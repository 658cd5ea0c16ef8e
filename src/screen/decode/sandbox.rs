//! Decoding in a process that can do nothing else: the worker's half (`process`), the process itself (`child`), what it
//! gives up (`confine`), and what the two halves send each other (`protocol`).

pub mod child;
mod confine;
mod process;
mod protocol;

pub(super) use process::Decoder;
pub use protocol::Layers;
