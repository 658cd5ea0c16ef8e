//! WebP's chunks (RFC 9649, section 2).
//!
//! A file is read as libwebp's demuxer reads it, because browsers show what that one finds. It refuses many files as a
//! whole in which other viewers find an image. Here these are damaged, and the frames before the fault are kept.

use super::libwebp::{self, FeaturesError};

const ICC_FLAG: u8 = 0x20;
const ALPHA_FLAG: u8 = 0x10;
const ANIMATION_FLAG: u8 = 0x02;
const ALL_FLAGS: u8 = 0x3E;

const HEADER_BYTES: usize = 8;
const VP8X_BYTES: usize = 10;
const ANIM_BYTES: usize = 6;
const ANMF_BYTES: usize = 16;
/// The largest size of a chunk without its header. The whole has to fit into 32 bits.
const MAX_CHUNK_BYTES: u32 = u32::MAX - 9;
/// A canvas of so many pixels is refused.
const MAX_AREA: u64 = 1 << 32;

/// What a file holds.
pub(super) struct Container<'a> {
    pub(super) width: u32,
    pub(super) height: u32,
    /// Whether the file says that it may be transparent.
    pub(super) has_alpha_flag: bool,
    pub(super) is_animation: bool,
    /// One or more.
    pub(super) frames: Vec<FrameChunks<'a>>,
    /// The ICC profile that browsers heed.
    pub(super) icc: Option<&'a [u8]>,
    /// Why frames may be missing.
    pub(super) damage: Option<&'static str>,
}

/// A frame, which lies within the canvas.
pub(super) struct FrameChunks<'a> {
    pub(super) left: u32,
    pub(super) top: u32,
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) duration_ms: u32,
    /// Whether its place becomes transparent after it was shown.
    pub(super) is_disposed: bool,
    /// Whether it is drawn over the frame before it, and not in the place of it.
    pub(super) is_blended: bool,
    /// Whether its header, or a chunk of alpha, says that it may be transparent.
    pub(super) has_alpha: bool,
    /// What libwebp decodes: the chunk of alpha, if there is one, and the chunk of the image.
    pub(super) chunks: &'a [u8],
}

/// Why reading ends before the file's end.
enum Stop {
    /// A chunk is longer than what is left of the file.
    Cut,
    Invalid(&'static str),
}

impl Stop {
    fn reason(&self) -> &'static str {
        match self {
            Self::Cut => "the file ends within a chunk",
            Self::Invalid(what) => what,
        }
    }
}

impl<'a> Container<'a> {
    /// Reads a file that begins as a WebP does. The error is a reason for people.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, &'static str> {
        let mut reader = Reader::new(bytes)?;
        let stopped = reader.read_file().err();
        let reason = stopped.as_ref().map(Stop::reason);
        let Reader { canvas, flags, frames, icc, .. } = reader;
        let (Some((width, height)), false) = (canvas, frames.is_empty()) else {
            return Err(reason.unwrap_or("it holds no image"));
        };
        let is_animation = flags & ANIMATION_FLAG != 0;
        let mut damage = reason;
        let mut placed = Vec::with_capacity(frames.len());
        for frame in frames {
            match frame.place(is_animation, width, height) {
                Ok((frame, fault)) => {
                    damage = damage.or(fault);
                    placed.push(frame);
                }
                Err(fault) if placed.is_empty() => return Err(reason.unwrap_or(fault)),
                Err(fault) => {
                    damage = damage.or(Some(fault));
                    break;
                }
            }
        }
        if flags & !ALL_FLAGS != 0 {
            damage = damage.or(Some("its header has unknown flags"));
        }
        Ok(Self {
            width,
            height,
            has_alpha_flag: flags & ALPHA_FLAG != 0,
            is_animation,
            frames: placed,
            icc: icc.filter(|_| !is_animation),
            damage,
        })
    }
}

/// The first chunk `EXIF`. Phones heed it whatever the flags say.
pub(super) fn exif(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes.get(12..)?;
    while let Some((header, behind)) = rest.split_at_checked(HEADER_BYTES) {
        let size = usize::try_from(u32_at(header, 4)).ok()?;
        if header.starts_with(b"EXIF") {
            return Some(&behind[..size.min(behind.len())]);
        }
        rest = behind.get(size.checked_add(size % 2)?..)?;
    }
    None
}

/// A frame as it was read.
#[derive(Default)]
struct RawFrame<'a> {
    left: u32,
    top: u32,
    width: u32,
    height: u32,
    duration_ms: u32,
    is_disposed: bool,
    is_blended: bool,
    has_alpha: bool,
    file: &'a [u8],
    /// Where a chunk `ALPH` begins.
    alpha: Option<usize>,
    /// Where the chunk of the image begins and ends.
    image: Option<(usize, usize)>,
}

impl<'a> RawFrame<'a> {
    /// The frame, and what is wrong with it; or an error where it is no frame.
    fn place(
        self,
        is_animation: bool,
        width: u32,
        height: u32,
    ) -> Result<(FrameChunks<'a>, Option<&'static str>), &'static str> {
        let Self { left, top, .. } = self;
        let Some((begin, end)) = self.image else { return Err("a frame has no image") };
        let fits = |begin: u32, length: u32, edge: u32| match is_animation {
            true => begin.checked_add(length).is_some_and(|end| end <= edge),
            false => length == edge,
        };
        if !fits(left, self.width, width) || !fits(top, self.height, height) {
            return Err("a frame lies outside the canvas");
        }
        let begin_with_alpha = self.alpha.unwrap_or(begin);
        let fault = (begin_with_alpha > begin).then_some("alpha follows its image");
        let frame = FrameChunks {
            left,
            top,
            width: self.width,
            height: self.height,
            duration_ms: self.duration_ms,
            is_disposed: self.is_disposed,
            is_blended: self.is_blended,
            has_alpha: self.has_alpha,
            chunks: &self.file[begin.min(begin_with_alpha)..end],
        };
        Ok((frame, fault))
    }
}

/// Reads the chunks, one after the other.
struct Reader<'a> {
    /// The file to its stated end, or to its real one.
    bytes: &'a [u8],
    /// The stated end.
    end: usize,
    at: usize,
    canvas: Option<(u32, u32)>,
    flags: u8,
    frames: Vec<RawFrame<'a>>,
    icc: Option<&'a [u8]>,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, &'static str> {
        if bytes.len() < 12 + HEADER_BYTES {
            return Err("the file ends in its header");
        }
        let size = u32_at(bytes, 4);
        if !(8..=MAX_CHUNK_BYTES).contains(&size) {
            return Err("its header states an impossible size");
        }
        let end = size as usize + HEADER_BYTES;
        let bytes = &bytes[..bytes.len().min(end)];
        Ok(Self { bytes, end, at: 12, canvas: None, flags: 0, frames: Vec::new(), icc: None })
    }

    fn read_file(&mut self) -> Result<(), Stop> {
        if self.left() < HEADER_BYTES {
            return Err(Stop::Cut);
        }
        match &self.bytes[self.at..self.at + 4] {
            b"VP8 " | b"VP8L" => self.read_still(false),
            b"VP8X" => {
                self.read_canvas()?;
                self.read_chunks()
            }
            _ => Err(Stop::Invalid("its first chunk is unknown")),
        }
    }

    /// The bytes of the file that are left.
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Takes a chunk's header, which is there: its name, its size, and its size with padding.
    fn take_header(&mut self) -> Result<([u8; 4], usize, usize), Stop> {
        let header = &self.bytes[self.at..self.at + HEADER_BYTES];
        let (name, size) = ([header[0], header[1], header[2], header[3]], u32_at(header, 4));
        self.at += HEADER_BYTES;
        let padded = size as usize + size as usize % 2;
        if size > MAX_CHUNK_BYTES || padded > self.end - self.at {
            return Err(Stop::Invalid("a chunk is longer than the file"));
        }
        Ok((name, size as usize, padded))
    }

    /// Whether chunks follow.
    fn has_more(&self) -> Result<bool, Stop> {
        match self.left() {
            _ if self.at == self.end => Ok(false),
            0..HEADER_BYTES => Err(Stop::Cut),
            _ => Ok(true),
        }
    }

    /// `VP8X` (section 2.7).
    fn read_canvas(&mut self) -> Result<(), Stop> {
        let (_, size, padded) = self.take_header()?;
        if size < VP8X_BYTES {
            return Err(Stop::Invalid("its header is too short"));
        }
        if self.left() < padded {
            return Err(Stop::Cut);
        }
        let header = &self.bytes[self.at..];
        self.flags = header[0];
        let (width, height) = (1 + u24_at(header, 4), 1 + u24_at(header, 7));
        if u64::from(width) * u64::from(height) >= MAX_AREA {
            return Err(Stop::Invalid("its canvas is larger than the format allows"));
        }
        self.canvas = Some((width, height));
        self.at += padded;
        if self.end - self.at < HEADER_BYTES {
            return Err(Stop::Invalid("it holds no image"));
        }
        self.has_more().map(drop)
    }

    /// The chunks behind `VP8X`.
    fn read_chunks(&mut self) -> Result<(), Stop> {
        let is_animation = self.flags & ANIMATION_FLAG != 0;
        let mut has_settings = false;
        while self.has_more()? {
            let begin = self.at;
            let (name, size, padded) = self.take_header()?;
            match &name {
                b"VP8X" => return Err(Stop::Invalid("it has two headers")),
                b"ALPH" | b"VP8 " | b"VP8L" => {
                    if has_settings || is_animation {
                        return Err(Stop::Invalid("an image lies outside the frames of an animation"));
                    }
                    self.at = begin;
                    self.read_still(true)?;
                    continue;
                }
                b"ANIM" if padded < ANIM_BYTES => return Err(Stop::Invalid("a chunk is too short")),
                b"ANIM" => has_settings = true,
                b"ANMF" if !has_settings => {
                    return Err(Stop::Invalid("a frame precedes the settings of the animation"));
                }
                b"ANMF" => {
                    self.read_frame(padded, is_animation)?;
                    continue;
                }
                _ => {}
            }
            if self.left() < padded {
                return Err(Stop::Cut);
            }
            if &name == b"ICCP" && self.flags & ICC_FLAG != 0 && self.icc.is_none() {
                self.icc = Some(&self.bytes[self.at..self.at + size]);
            }
            self.at += padded;
        }
        Ok(())
    }

    /// The chunks of an image that is no frame of an animation.
    fn read_still(&mut self, is_extended: bool) -> Result<(), Stop> {
        if !self.frames.is_empty() {
            return Err(Stop::Invalid("it holds two images"));
        }
        let mut frame = RawFrame { file: self.bytes, ..RawFrame::default() };
        let result = self.read_images(&mut frame);
        // Browsers heed the flag. Lossless images have alpha without a chunk.
        if self.flags & ALPHA_FLAG == 0 && frame.alpha.take().is_some() {
            frame.has_alpha = false;
        }
        if !is_extended && frame.image.is_some() {
            self.canvas = Some((frame.width, frame.height));
            self.flags |= if frame.has_alpha { ALPHA_FLAG } else { 0 };
        }
        self.frames.push(frame);
        result
    }

    /// `ANMF` (section 2.7.1.1), behind its header.
    fn read_frame(&mut self, size: usize, is_animation: bool) -> Result<(), Stop> {
        if size < ANMF_BYTES {
            return Err(Stop::Invalid("a chunk is too short"));
        }
        if self.left() < ANMF_BYTES {
            return Err(Stop::Cut);
        }
        let header = &self.bytes[self.at..];
        let mut frame = RawFrame {
            left: 2 * u24_at(header, 0),
            top: 2 * u24_at(header, 3),
            width: 1 + u24_at(header, 6),
            height: 1 + u24_at(header, 9),
            duration_ms: u24_at(header, 12),
            is_disposed: header[15] & 1 != 0,
            is_blended: header[15] & 2 == 0,
            file: self.bytes,
            ..RawFrame::default()
        };
        if u64::from(frame.width) * u64::from(frame.height) >= MAX_AREA {
            return Err(Stop::Invalid("a frame is larger than the format allows"));
        }
        self.at += ANMF_BYTES;
        let (begin, size) = (self.at, size - ANMF_BYTES);
        let result = if self.has_more()? { self.read_images(&mut frame) } else { Ok(()) };
        if is_animation && (frame.alpha.is_some() || frame.image.is_some()) {
            self.frames.push(frame);
        }
        match result {
            Ok(()) if self.at - begin > size => Err(Stop::Invalid("an image is longer than its frame")),
            result => result,
        }
    }

    /// `ALPH`, and `VP8 ` or `VP8L` (sections 2.6, 2.7.1.2), to the first other chunk. The file may end in the image: then
    /// the frame has what there is of it.
    fn read_images(&mut self, frame: &mut RawFrame<'a>) -> Result<(), Stop> {
        loop {
            let begin = self.at;
            let (name, _, padded) = self.take_header()?;
            let is_cut = padded > self.left();
            let end = self.at + padded.min(self.left());
            match &name {
                b"ALPH" if frame.alpha.is_none() => {
                    frame.alpha = Some(begin);
                    frame.has_alpha = true;
                }
                b"VP8L" if frame.alpha.is_some() => return Err(Stop::Invalid("a lossless image has alpha twice")),
                b"VP8 " | b"VP8L" if frame.image.is_none() => {
                    let features = match libwebp::features(&self.bytes[begin..end]) {
                        Ok(features) => features,
                        Err(FeaturesError::Cut) if is_cut => return Err(Stop::Cut),
                        Err(_) => return Err(Stop::Invalid("the header of an image is invalid")),
                    };
                    frame.image = Some((begin, end));
                    (frame.width, frame.height) = (features.width, features.height);
                    frame.has_alpha |= features.has_alpha;
                }
                _ => {
                    self.at = begin;
                    return if is_cut { Err(Stop::Cut) } else { Ok(()) };
                }
            }
            self.at = end;
            if is_cut {
                return Err(Stop::Cut);
            }
            if !self.has_more()? {
                return Ok(());
            }
        }
    }
}

fn u24_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], 0])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
