//! The options of decoding: `[decode]`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::ConfigError;

/// Where images are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// In confined decoder processes, one per decoder thread.
    Process,
    /// On threads of the worker's process.
    Thread,
}

/// A decoder process describes all views of an image in one message of limited length.
const LARGEST_MAX_VIEWS: u32 = 100;

/// How much of an image is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DecodeMode {
    /// Every pixel.
    Exact,
    /// A large JPEG at a half, a quarter or an eighth of its size.
    Fast,
}

/// `[decode]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DecodeConfig {
    /// How much of an image is decoded.
    pub mode: DecodeMode,
    /// Decoder threads; 0: one per core.
    pub threads: usize,
    /// Whether the threads decode, or a process per thread.
    pub isolation: Isolation,
    /// Processor time that one image may take in a decoder process. The elapsed time may be three times as long, without
    /// the wait for memory.
    pub deadline_ms: u64,
    /// The decoder process's program, called with the argument `decoder`; empty: this one.
    pub helper: String,
    /// An image wider than this is not decoded.
    pub max_width: u32,
    /// An image higher than this is not decoded.
    pub max_height: u32,
    /// An image of more pixels than this is not decoded.
    pub max_pixels: u64,
    /// An image whose decoding needs more memory than this is not decoded.
    pub max_decoded_bytes: u64,
    /// Memory for all images being decoded; further ones wait.
    pub memory_bytes: u64,
    /// Frames of an animated image that are screened.
    #[serde(deserialize_with = "crate::config::above_zero")]
    pub max_frames: u32,
    /// Views of an image that are screened: its frames, each perhaps over two backgrounds and both ways up.
    #[serde(deserialize_with = "crate::config::above_zero")]
    pub max_views: u32,
    /// An animation of more pixels than this, over all its frames, is not decoded. A frame counts as at least 2048.
    pub max_animation_pixels: u64,
}

impl Default for DecodeConfig {
    fn default() -> Self {
        Self {
            mode: DecodeMode::Exact,
            threads: 0,
            isolation: Isolation::Process,
            deadline_ms: 10_000,
            helper: String::new(),
            max_width: 1_000_000,
            max_height: 1_000_000,
            max_pixels: 100_000_000,
            max_decoded_bytes: 512 << 20,
            memory_bytes: 256 << 20,
            max_frames: 8,
            max_views: 18,
            max_animation_pixels: 500_000_000,
        }
    }
}

impl DecodeConfig {
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if !self.helper.is_empty() && !Path::new(&self.helper).is_absolute() {
            return Err(ConfigError::invalid("decode.helper", format!("\"{}\" is not an absolute path", self.helper)));
        }
        if self.max_views > LARGEST_MAX_VIEWS {
            let what = format!("{} is too large, the largest value is {LARGEST_MAX_VIEWS}", self.max_views);
            return Err(ConfigError::invalid("decode.max_views", what));
        }
        if self.max_views < self.max_frames {
            let what = format!(
                "{} is less than decode.max_frames, which is {}\n  hint: each frame is at least one view",
                self.max_views, self.max_frames
            );
            return Err(ConfigError::invalid("decode.max_views", what));
        }
        ConfigError::refuse_zero(&[
            ("decode.deadline_ms", self.deadline_ms),
            ("decode.memory_bytes", self.memory_bytes),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_views_is_bounded_on_both_sides() {
        let checked = |max_views| {
            let config = DecodeConfig { max_views, ..DecodeConfig::default() };
            config.check().map_err(|e| e.to_string())
        };
        assert!(checked(7).unwrap_err().contains("7 is less than decode.max_frames"));
        assert_eq!((checked(8), checked(100)), (Ok(()), Ok(())));
        assert!(checked(101).unwrap_err().contains("101 is too large, the largest value is 100"));
    }
}
