//! What every decoder of the `image` crate may allocate, and how its errors are explained.

use image::{ImageError, Limits};

use super::{DecodeContext, Undecodable};

/// What may be allocated for a PNG's header, of which a compressed colour profile is a part.
pub(super) fn header_limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_alloc = Some(16 << 20);
    limits
}

/// What a decoder may allocate besides the pixels, which [`DecodeContext::admit`] has counted.
pub(super) fn decoder_limits(context: &DecodeContext<'_>) -> Limits {
    let mut limits = Limits::default();
    limits.max_alloc = Some(context.limits.max_decoded_bytes);
    limits
}

/// A decoder's error as the reason why the image is undecodable.
pub(super) fn explain(name: &str, error: &ImageError) -> Undecodable {
    match error {
        ImageError::Limits(_) => Undecodable(format!("over the decode limits: {name}: {error}")),
        ImageError::Unsupported(_) => Undecodable(format!("unsupported kind of {name}: {error}")),
        _ => Undecodable::damaged(name, error),
    }
}
