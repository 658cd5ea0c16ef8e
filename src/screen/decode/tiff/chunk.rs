//! Strips and tiles: compressed bytes → samples.

use std::borrow::Cow;
use std::io::{Cursor, Read};

use flate2::read::ZlibDecoder;

use super::page::{Colours, Compression, Page};
use crate::screen::decode::jpeg::InnerJpeg;

/// What went wrong with a strip of which the rest is shown.
pub(super) type Damage = Option<String>;

/// How many bytes of a strip there are, and what went wrong with the others.
type Filled = (usize, Damage);

/// The damage where the budget is used up.
pub(super) const OVERLAP: &str = "its strips overlap";

/// How many more bytes are read, by all pages together. Strips and pages that overlap would make a small file take long.
pub(super) struct Budget(pub(super) usize);

impl Budget {
    /// For files of many small strips, whose tables and costs are larger than they are.
    const FREE_BYTES: usize = 64 << 20;

    pub(super) fn new(file: &[u8]) -> Self {
        Self(file.len().saturating_mul(4).saturating_add(Self::FREE_BYTES))
    }

    /// Whether so many bytes may be read.
    pub(super) fn spend(&mut self, bytes: usize) -> bool {
        let left = self.0.checked_sub(bytes);
        self.0 = left.unwrap_or(0);
        left.is_some()
    }

    /// Whether one more strip may be read that has so many bytes once it is decoded. Each costs the decoder's start, and
    /// tiles may be far larger than what the page shows of them.
    pub(super) fn spend_on_strip(&mut self, bytes: usize) -> bool {
        self.spend(256 + bytes / 64)
    }
}

/// A page's strips.
pub(super) struct Strips<'a> {
    pub(super) page: &'a Page<'a>,
    pub(super) file: &'a [u8],
    pub(super) budget: &'a mut Budget,
    /// The memory for what libjpeg keeps between scans.
    pub(super) coefficient_bytes: u64,
}

impl Strips<'_> {
    /// Reads a strip into `samples`, which is as long as the strip should be. What is missing stays as it was.
    pub(super) fn read(&mut self, index: usize, rows: usize, samples: &mut [u8]) -> Filled {
        let page = self.page;
        let Some(bytes) = stored(page, self.file, index, samples.len()) else {
            return nothing("a strip lies behind the end of the file");
        };
        // Each strip is decoded together with the tables.
        if !self.budget.spend(page.jpeg_tables.len() + bytes.len()) {
            return nothing(OVERLAP);
        }
        let bytes = if page.is_reversed && page.compression != Compression::Jpeg {
            Cow::Owned(bytes.iter().map(|byte| byte.reverse_bits()).collect())
        } else {
            Cow::Borrowed(bytes)
        };
        let filled = match page.compression {
            Compression::None => fill(&bytes[..], samples),
            Compression::Deflate => fill(ZlibDecoder::new(&bytes[..]), samples),
            Compression::Lzw => lzw(&bytes, samples),
            Compression::PackBits => pack_bits(&bytes, samples),
            Compression::Fax4 => fax4(page, &bytes, rows, samples),
            Compression::Jpeg => return self.jpeg(&bytes, rows, samples),
        };
        if page.has_predictor {
            undo_predictor(page, &mut samples[..filled]);
        }
        (filled, (filled < samples.len()).then(|| "a strip is damaged or ends early".to_owned()))
    }

    /// Each strip is a JPEG, whose tables may be in a tag (TIFF Technical Note 2). libtiff hands the colours on as the page
    /// says they are, so that an APP14 segment says the same to libjpeg.
    fn jpeg(&self, strip: &[u8], rows: usize, samples: &mut [u8]) -> Filled {
        let (page, start) = (self.page, [0xFF, 0xD8]);
        let Some(strip) = strip.strip_prefix(&start) else { return nothing("a strip is no JPEG") };
        let tables = page.jpeg_tables.strip_prefix(&start).unwrap_or_default();
        let tables = tables.strip_suffix(&[0xFF, 0xD9]).unwrap_or(tables);
        let transform = u8::from(page.colours == Colours::YCbCr && !page.is_planar);
        let adobe = [0xFF, 0xEE, 0, 14, b'A', b'd', b'o', b'b', b'e', 0, 100, 0, 0, 0, 0, transform];
        let file = [&start[..], &adobe, tables, strip].concat();
        let jpeg = match InnerJpeg::of(&file) {
            Ok(jpeg) => jpeg,
            Err(e) => return nothing(&e.0),
        };
        // The last strip may be higher than what is left of the page.
        if jpeg.width != page.chunk.0 || jpeg.height < rows || jpeg.height > page.chunk.1 {
            return nothing("a strip is a JPEG of another size");
        }
        if jpeg.kept_bytes > self.coefficient_bytes {
            return nothing("a strip is a JPEG that takes too much memory");
        }
        match jpeg.decode(page.samples_in_chunk()) {
            Ok((pixels, damage)) => {
                samples.copy_from_slice(&pixels[..samples.len()]);
                (samples.len(), damage)
            }
            Err(e) => nothing(&e.0),
        }
    }
}

fn nothing(why: &str) -> Filled {
    (0, Some(why.to_owned()))
}

/// The bytes of a strip. Without a length it reaches to the end of the file, or is as long as its samples.
fn stored<'a>(page: &Page<'_>, file: &'a [u8], index: usize, expected: usize) -> Option<&'a [u8]> {
    let offset = usize::try_from(page.offsets.get(index)?).ok()?;
    let rest = file.get(offset..).filter(|rest| !rest.is_empty())?;
    let length = page.lengths.and_then(|lengths| lengths.get(index)).and_then(|length| usize::try_from(length).ok());
    let length = match (page.compression, length) {
        (_, Some(length)) if length > 0 => length,
        (Compression::None, _) => expected,
        _ => rest.len(),
    };
    Some(&rest[..length.min(rest.len())])
}

/// Reads as much as there is, and returns how much that is. What is behind an error is missing.
fn fill(mut from: impl Read, to: &mut [u8]) -> usize {
    let mut filled = 0;
    while filled < to.len() {
        match from.read(&mut to[filled..]) {
            Ok(0) | Err(_) => break,
            Ok(read) => filled += read,
        }
    }
    filled
}

/// TIFF 6.0, section 13.
fn lzw(mut from: &[u8], to: &mut [u8]) -> usize {
    let mut decoder = weezl::decode::Decoder::with_tiff_size_switch(weezl::BitOrder::Msb, 8);
    let mut filled = 0;
    while filled < to.len() {
        let result = decoder.decode_bytes(from, &mut to[filled..]);
        from = &from[result.consumed_in..];
        filled += result.consumed_out;
        let has_more = matches!(result.status, Ok(weezl::LzwStatus::Ok));
        if !has_more || (result.consumed_in == 0 && result.consumed_out == 0) {
            break;
        }
    }
    filled
}

/// TIFF 6.0, section 9.
fn pack_bits(from: &[u8], to: &mut [u8]) -> usize {
    let (mut at, mut filled) = (0, 0);
    while let Some(&header) = from.get(at) {
        at += 1;
        let room = to.len() - filled;
        let count = match header {
            0..=127 => {
                let literal = &from[at..from.len().min(at + usize::from(header) + 1)];
                let count = literal.len().min(room);
                to[filled..filled + count].copy_from_slice(&literal[..count]);
                at += literal.len();
                count
            }
            128 => 0,
            129..=255 => {
                let Some(&byte) = from.get(at) else { break };
                at += 1;
                let count = (257 - usize::from(header)).min(room);
                to[filled..filled + count].fill(byte);
                count
            }
        };
        filled += count;
        if filled == to.len() {
            break;
        }
    }
    filled
}

/// Differences between neighbours (TIFF 6.0, section 14).
fn undo_predictor(page: &Page<'_>, samples: &mut [u8]) {
    let step = page.samples_in_chunk();
    for row in samples.chunks_mut(page.row_bytes()) {
        if page.bits == 8 {
            for at in step..row.len() {
                row[at] = row[at].wrapping_add(row[at - step]);
            }
        } else {
            let read =
                |bytes: [u8; 2]| if page.is_little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) };
            let write = |sum: u16| if page.is_little { sum.to_le_bytes() } else { sum.to_be_bytes() };
            for at in (2 * step..row.len().saturating_sub(1)).step_by(2) {
                let before = read([row[at - 2 * step], row[at - 2 * step + 1]]);
                let sum = read([row[at], row[at + 1]]).wrapping_add(before);
                row[at..at + 2].copy_from_slice(&write(sum));
            }
        }
    }
}

/// CCITT group 4 by the decoder of the `tiff` crate, which takes whole files: the strip becomes one.
fn fax4(page: &Page<'_>, strip: &[u8], rows: usize, samples: &mut [u8]) -> usize {
    if page.bits != 1 || page.samples_in_chunk() != 1 {
        return 0;
    }
    let tags: [(u16, usize); 8] = [
        (256, page.chunk.0),
        (257, rows),
        (258, 1),
        (259, 4),
        (262, 1),
        (273, 8 + 2 + 8 * 12 + 4),
        (278, rows),
        (279, strip.len()),
    ];
    let mut file = b"II*\0\x08\0\0\0\x08\0".to_vec();
    for (tag, value) in tags {
        file.extend(tag.to_le_bytes());
        file.extend(4_u16.to_le_bytes());
        file.extend(1_u32.to_le_bytes());
        file.extend(u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes());
    }
    file.extend([0; 4]);
    file.extend(strip);
    // What is missing is white, which is 0 here.
    samples.fill(0);
    let decoder = tiff::decoder::Decoder::new(Cursor::new(file));
    match decoder.and_then(|mut decoder| decoder.read_image_bytes(samples)) {
        Ok(()) => samples.len(),
        Err(_) => samples.len() - 1,
    }
}
