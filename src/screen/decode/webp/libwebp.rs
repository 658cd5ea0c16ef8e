//! The calls of libwebp, which is written in C. No other file of the crate holds unsafe code.
//!
//! libwebp decodes as browsers do, also what is damaged: it is what they decode with. It starts no thread here, because
//! its incremental decoder takes no options.

#![expect(unsafe_code, reason = "libwebp has no safe interface that gives the rows of a damaged image")]

use std::ffi::c_int;
use std::mem::MaybeUninit;

use libwebp_sys::{
    VP8StatusCode, WEBP_CSP_MODE, WEBP_DECODER_ABI_VERSION, WebPBitstreamFeatures, WebPGetFeatures, WebPIDelete,
    WebPINewDecoder, WebPIUpdate, WebPInitDecBufferInternal, WebPRGBABuffer,
};

/// What the header of an image says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Features {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) has_alpha: bool,
}

/// Why an image's header cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FeaturesError {
    /// The data end in it.
    Cut,
    Invalid,
}

/// Reads the header of a chunk `VP8 ` or `VP8L`.
pub(super) fn features(chunk: &[u8]) -> Result<Features, FeaturesError> {
    let mut features = MaybeUninit::<WebPBitstreamFeatures>::zeroed();
    // SAFETY: The bytes are read within their length. The structure is one of integers, for which zeros are valid.
    let (status, features) = unsafe {
        let status = WebPGetFeatures(chunk.as_ptr(), chunk.len(), features.as_mut_ptr());
        (status, features.assume_init())
    };
    match status {
        VP8StatusCode::VP8_STATUS_OK => Ok(Features {
            width: features.width.unsigned_abs(),
            height: features.height.unsigned_abs(),
            has_alpha: features.has_alpha != 0,
        }),
        VP8StatusCode::VP8_STATUS_NOT_ENOUGH_DATA => Err(FeaturesError::Cut),
        _ => Err(FeaturesError::Invalid),
    }
}

/// Decodes the chunks of an image, `ALPH` if there is one, and `VP8 ` or `VP8L`, into `[height, width, 4] u8` of the size
/// that [`features`] gave. Returns whether the image is whole. Rows that could not be decoded stay as they were.
pub(super) fn decode(chunks: &[u8], width: u32, premultiply: bool, rgba: &mut [u8]) -> bool {
    let Ok(stride) = c_int::try_from(u64::from(width) * 4) else { return false };
    let mut buffer = MaybeUninit::uninit();
    // SAFETY: The function fills the structure that the pointer leads to.
    let mut buffer = unsafe {
        if WebPInitDecBufferInternal(buffer.as_mut_ptr(), WEBP_DECODER_ABI_VERSION as c_int) == 0 {
            return false;
        }
        buffer.assume_init()
    };
    buffer.colorspace = if premultiply { WEBP_CSP_MODE::MODE_rgbA } else { WEBP_CSP_MODE::MODE_RGBA };
    buffer.is_external_memory = 1;
    buffer.u.RGBA = WebPRGBABuffer { rgba: rgba.as_mut_ptr(), stride, size: rgba.len() };
    // SAFETY: The decoder lives only in this block, and the buffer, its memory and the chunks outlive it. Before it writes,
    // the decoder checks that the image fits into the stated stride and size. The chunks are read within their length.
    // Deleting a null pointer does nothing, and decoding with one is an error.
    let status = unsafe {
        let decoder = WebPINewDecoder(&raw mut buffer);
        let status = WebPIUpdate(decoder, chunks.as_ptr(), chunks.len());
        WebPIDelete(decoder);
        status
    };
    status == VP8StatusCode::VP8_STATUS_OK
}

/// Encodes RGBA as a whole file, lossless where there is no quality.
#[cfg(test)]
pub(super) fn encode(rgba: &[u8], width: u32, quality: Option<f32>) -> Vec<u8> {
    use libwebp_sys::{WebPEncodeLosslessRGBA, WebPEncodeRGBA, WebPFree};

    let (columns, rows) = (c_int::try_from(width).unwrap(), c_int::try_from(rgba.len() / 4).unwrap() / width as c_int);
    let mut output = std::ptr::null_mut();
    // SAFETY: The samples have the stated size. The output is as long as the encoder says, and is freed once.
    unsafe {
        let length = match quality {
            Some(quality) => WebPEncodeRGBA(rgba.as_ptr(), columns, rows, columns * 4, quality, &raw mut output),
            None => WebPEncodeLosslessRGBA(rgba.as_ptr(), columns, rows, columns * 4, &raw mut output),
        };
        assert!(!output.is_null());
        let file = std::slice::from_raw_parts(output, length).to_vec();
        WebPFree(output.cast());
        file
    }
}
