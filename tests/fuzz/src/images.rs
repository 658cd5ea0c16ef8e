//! Bytes → pixels, with the limits that the memory of this process has to keep to (`tests/fuzz/run`).

use std::sync::{Arc, OnceLock};

use pixwarden::config::{DecodeConfig, DecodeMode, Isolation};
use pixwarden::detector::{CropRounding, Geometry, ResampleFilter, Resize};
use pixwarden::job::{ImageInfo, Lane};
use pixwarden::screen::decode::{DecoderPool, is_within_limits};
use tokio::runtime::{Builder, Runtime};

const EDGE: u32 = 32;

struct Decoding {
    pool: DecoderPool,
    runtime: Runtime,
    limits: DecodeConfig,
    geometries: Arc<[Geometry]>,
}

fn start() -> Decoding {
    let limits = DecodeConfig {
        threads: 1,
        isolation: Isolation::Thread,
        max_width: 4_096,
        max_height: 4_096,
        max_pixels: 4 << 20,
        max_decoded_bytes: 64 << 20,
        memory_bytes: 64 << 20,
        max_animation_pixels: 4 << 20,
        ..DecodeConfig::default()
    };
    let geometry = |resize| Geometry {
        resize,
        filter: ResampleFilter::Bicubic,
        width: EDGE,
        height: EDGE,
        rounding: CropRounding::HalfToEven,
    };
    Decoding {
        pool: DecoderPool::start(&limits).expect("cannot start a decoder thread"),
        runtime: Builder::new_current_thread().build().expect("cannot start a runtime"),
        limits,
        geometries: [
            geometry(Resize::Exact { width: EDGE, height: EDGE }),
            geometry(Resize::Fit { width: EDGE, height: EDGE, fill: [0; 3] }),
        ]
        .into(),
    }
}

/// Decodes an image; whatever it is, it becomes pixels of the size asked for or a reason. A JPEG is decoded in both modes,
/// which must know the same of it.
pub fn decode(data: &[u8]) {
    static DECODING: OnceLock<Decoding> = OnceLock::new();
    let decoding = DECODING.get_or_init(start);
    let exact = decode_with_mode(DecodeMode::Exact, data, decoding);
    if data.starts_with(&[0xFF, 0xD8]) {
        assert_eq!(exact, decode_with_mode(DecodeMode::Fast, data, decoding));
    }
}

/// Decodes an image, and returns what is known of it or the reason.
fn decode_with_mode(mode: DecodeMode, data: &[u8], decoding: &Decoding) -> Result<ImageInfo, String> {
    let Decoding { pool, runtime, limits, geometries } = decoding;
    let bytes = data.to_vec().into();
    match runtime.block_on(pool.decode_with_mode(mode, Lane::Live, bytes, Arc::clone(geometries))) {
        Ok(decoded) => {
            assert!(is_within_limits(limits, decoded.info), "within the limits: {:?}", decoded.info);
            assert!(!decoded.views.is_empty() && decoded.views.len() <= limits.max_views as usize);
            for pixels in decoded.views.iter().flat_map(|view| &view.pixels) {
                assert_eq!((pixels.width, pixels.height), (EDGE, EDGE));
                assert_eq!(pixels.data.len(), (EDGE * EDGE * 3) as usize);
            }
            Ok(decoded.info)
        }
        Err(unread) => {
            let reason = unread.to_string();
            assert!(!reason.is_empty() && !reason.contains('\n'));
            Err(reason)
        }
    }
}
