//! What a worker and its decoder process send each other over one socket: a length (u32, little endian), a message of so
//! many bytes in JSON, and after some messages raw bytes.
//!
//! They share no memory: bytes that were received cannot change while they are checked.

use std::fmt;
use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::{DecodeConfig, DecodeMode};
use crate::detector::Geometry;
use crate::job::ViewHash;

/// More than any valid message needs. A reason is one line.
const MAX_MESSAGE_BYTES: u32 = 64 << 10;

/// Images that one process decodes before it is replaced, so that a process which an image took over does not live on.
pub(super) const MAX_IMAGES_PER_PROCESS: u32 = 1000;

/// From the worker.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum WorkerMessage {
    /// The first message.
    Setup { limits: DecodeConfig },
    /// An image to decode. Its `bytes` bytes follow.
    Image { bytes: u64, geometries: Vec<Geometry>, mode: DecodeMode },
    /// The memory that was asked for may be used.
    MemoryGranted,
}

/// From the decoder process. An image may have taken it over, so that nothing in here is trusted.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum DecoderMessage {
    /// The answer to [`WorkerMessage::Setup`].
    Ready { confinement: Confinement },
    /// The image needs this much memory, in place of what it had before. The decoder waits for
    /// [`WorkerMessage::MemoryGranted`].
    MemoryNeeded { bytes: u64 },
    /// The image was decoded, and gave a view for each of these hashes. The pixels of the views follow,
    /// `[view][geometry][height, width, 3] u8`.
    Decoded { format: String, width: u32, height: u32, frames: u32, damage: String, views: Vec<ViewHash> },
    /// Why the image has no pixels.
    Undecodable { reason: String },
}

/// What keeps a decoder process from doing anything else.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Confinement {
    /// The layers in force, for people.
    pub(crate) active: Vec<String>,
    /// The layers that this system does not have, each with the reason.
    pub(crate) missing: Vec<String>,
}

impl fmt::Display for Confinement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.active.is_empty() {
            write!(f, "not confined")?;
        } else {
            write!(f, "confined by {}", self.active.join(", "))?;
        }
        if self.missing.is_empty() { Ok(()) } else { write!(f, "; missing: {}", self.missing.join(", ")) }
    }
}

pub(super) fn send(mut to: impl Write, message: &impl Serialize) -> io::Result<()> {
    let json = serde_json::to_vec(message)?;
    let length = u32::try_from(json.len()).map_err(io::Error::other)?;
    to.write_all(&[&length.to_le_bytes()[..], &json].concat())
}

pub(super) fn receive<T: DeserializeOwned>(mut from: impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > MAX_MESSAGE_BYTES {
        return Err(invalid_message(&format!("{length} bytes, the limit is {MAX_MESSAGE_BYTES}")));
    }
    let mut json = vec![0; length as usize];
    from.read_exact(&mut json)?;
    serde_json::from_slice(&json).map_err(|e| invalid_message(&e.to_string()))
}

/// The error for a message that the protocol does not allow at this point.
pub(super) fn unexpected_message() -> io::Error {
    invalid_message("it is not allowed at this point of the protocol")
}

fn invalid_message(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("invalid message: {why}"))
}
