//! What a worker and a process that decodes for it say to each other, over one socket: a length (u32, little endian),
//! so many bytes of JSON, and behind some messages raw bytes.
//!
//! No memory is shared: what was received cannot change while it is looked at.

use std::fmt;
use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::{DecodeConfig, DecodeMode};
use crate::detector::Geometry;

/// More than any honest message: reasons are a line.
const MAX_MESSAGE_BYTES: u32 = 64 << 10;

/// Images that one process decodes, so that what an image may have done to it does not last.
pub(super) const IMAGES: u32 = 1000;

/// To the process that decodes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// The first one.
    Setup { limits: DecodeConfig },
    /// An image to decode, `bytes` long, and then its bytes.
    Image { bytes: u64, geometries: Vec<Geometry>, mode: DecodeMode },
    /// The memory asked for may be used.
    Granted,
}

/// From the process that decodes, which nobody has to believe.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// The answer to a setup, before any byte of an image.
    Ready { layers: Layers },
    /// The image needs so much memory, instead of what it had until now; it waits for the grant.
    Need { bytes: u64 },
    /// The image's facts, and then the pixels of the `taken` frames, `[taken][geometry][height, width, 3] u8`.
    Seen { format: String, width: u32, height: u32, frames: u32, taken: u32 },
    /// Why it has no pixels.
    Undecodable { reason: String },
}

/// What keeps a process that decodes from doing anything else.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layers {
    /// The layers, by name.
    pub active: Vec<String>,
    /// Those that cannot be had here, each with the reason.
    pub missing: Vec<String>,
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let active = if self.active.is_empty() { "nothing".into() } else { self.active.join(", ") };
        write!(f, "{active}")?;
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
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {length} bytes")));
    }
    let mut json = vec![0; length as usize];
    from.read_exact(&mut json)?;
    Ok(serde_json::from_slice(&json)?)
}
