//! What a PNG's chunks hold, read without heeding checksums and order: the pictures that some viewer may show.

use std::ops::Range;

use flate2::Crc;

/// The signature that begins a PNG.
const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// The pictures in a file.
pub(super) struct Layout<'a> {
    /// Browsers show the first one first. The others follow in the order of the file.
    pub(super) frames: Vec<FramePart>,
    /// A picture that is no frame of the animation. Viewers that know no animations show it.
    pub(super) default_image: Option<FramePart>,
    /// The first EXIF data, wherever it is.
    pub(super) exif: Option<&'a [u8]>,
    /// The first colour profile whose checksum is right: a name, a zero, another zero, and compressed data.
    pub(super) profile: Option<&'a [u8]>,
    /// The number of frames that the file declares.
    declared: Option<u32>,
    has_bad_checksum: bool,
    has_gap: bool,
}

/// Where a picture's data are, and where it goes.
#[derive(Clone)]
pub(super) struct FramePart {
    /// Chunks of image data, with others between them.
    data: Range<usize>,
    /// Of the default image, only an animation's has one.
    pub(super) control: Option<FrameControl>,
}

/// The chunk fcTL (PNG, third edition, section 11.3.6.2).
#[derive(Debug, Clone, Copy)]
pub(super) struct FrameControl {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) left: u32,
    pub(super) top: u32,
    pub(super) duration_ms: u32,
    pub(super) dispose: u8,
    pub(super) blend: u8,
}

impl From<png::FrameControl> for FrameControl {
    fn from(control: png::FrameControl) -> Self {
        let per_second = if control.delay_den == 0 { 100 } else { u32::from(control.delay_den) };
        Self {
            width: control.width,
            height: control.height,
            left: control.x_offset,
            top: control.y_offset,
            duration_ms: 1000 * u32::from(control.delay_num) / per_second,
            dispose: control.dispose_op as u8,
            blend: control.blend_op as u8,
        }
    }
}

struct Chunk<'a> {
    kind: [u8; 4],
    body: &'a [u8],
    /// Of the body and the kind, where both and the checksum are complete.
    is_intact: Option<bool>,
    range: Range<usize>,
}

impl<'a> Layout<'a> {
    /// Walks the chunks up to IEND or the file's end. `skips_default_image` says whether the picture in IDAT is no frame.
    pub(super) fn of(bytes: &'a [u8], skips_default_image: bool) -> Self {
        let mut walk = Walk::default();
        let mut layout = Self {
            frames: Vec::new(),
            default_image: None,
            exif: None,
            profile: None,
            declared: None,
            has_bad_checksum: false,
            has_gap: false,
        };
        for chunk in chunks(bytes, SIGNATURE.len()) {
            match &chunk.kind {
                b"IEND" => break,
                b"acTL" => layout.declared = layout.declared.or(number(chunk.body, 0).filter(|count| *count > 0)),
                b"eXIf" => layout.exif = layout.exif.or(Some(chunk.body)),
                b"iCCP" if chunk.is_intact == Some(true) => layout.profile = layout.profile.or(Some(chunk.body)),
                b"fcTL" => {
                    layout.has_gap |= walk.is_out_of_order(chunk.body);
                    walk.control = FrameControl::of(chunk.body);
                    walk.frame_is_open = false;
                }
                b"IDAT" => {
                    layout.has_bad_checksum |= chunk.is_intact == Some(false);
                    walk.add_default(&chunk);
                }
                b"fdAT" => {
                    layout.has_bad_checksum |= chunk.is_intact == Some(false);
                    layout.has_gap |= walk.is_out_of_order(chunk.body);
                    walk.add_frame(&chunk);
                }
                _ => {}
            }
        }
        layout.frames = walk.frames;
        if skips_default_image {
            layout.default_image = walk.default_image;
        } else {
            layout.frames.splice(0..0, walk.default_image);
        }
        layout
    }

    /// Whether there is more than the first picture.
    pub(super) fn is_animated(&self) -> bool {
        self.declared.is_some() && (self.frames.len() > 1 || self.default_image.is_some())
    }

    /// The frames that are there, at least 1.
    pub(super) fn frame_count(&self) -> u32 {
        if self.declared.is_none() {
            return 1;
        }
        u32::try_from(self.frames.len()).unwrap_or(u32::MAX).max(1)
    }

    /// What is wrong although the pictures may be complete.
    pub(super) fn flaws(&self) -> impl Iterator<Item = String> {
        let declared = self.declared.unwrap_or_default();
        let found = self.frames.len();
        let missing =
            (declared as usize > found).then(|| format!("frames are missing: it declares {declared} and has {found}"));
        let checksum = self.has_bad_checksum.then(|| "the checksum of image data is wrong".to_owned());
        let gap = (self.has_gap && self.declared.is_some()).then(|| "chunks of its animation are missing".to_owned());
        [checksum, gap, missing].into_iter().flatten()
    }
}

#[derive(Default)]
struct Walk {
    default_image: Option<FramePart>,
    frames: Vec<FramePart>,
    control: Option<FrameControl>,
    frame_is_open: bool,
    sequence: u32,
}

impl Walk {
    /// Whether this chunk's sequence number is another than the one that follows.
    fn is_out_of_order(&mut self, body: &[u8]) -> bool {
        let sequence = number(body, 0);
        let is_next = sequence == Some(self.sequence);
        self.sequence = sequence.unwrap_or(self.sequence).wrapping_add(1);
        !is_next
    }

    fn add_default(&mut self, chunk: &Chunk<'_>) {
        match &mut self.default_image {
            Some(image) => image.data.end = chunk.range.end,
            None => self.default_image = Some(FramePart { data: chunk.range.clone(), control: self.control.take() }),
        }
    }

    fn add_frame(&mut self, chunk: &Chunk<'_>) {
        match self.frames.last_mut() {
            Some(frame) if self.frame_is_open => frame.data.end = chunk.range.end,
            _ if self.control.is_some() => {
                self.frames.push(FramePart { data: chunk.range.clone(), control: self.control.take() });
                self.frame_is_open = true;
            }
            _ => {}
        }
    }
}

impl FramePart {
    /// The frame as a PNG without checksums, with the header of the file that it is from.
    pub(super) fn as_png(&self, file: &[u8], (width, height): (u32, u32)) -> Vec<u8> {
        // Depth, colour type, compression, filter and interlacing.
        let kind = file.get(24..29).unwrap_or_default();
        let mut bytes = SIGNATURE.to_vec();
        let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), kind].concat();
        put(&mut bytes, *b"IHDR", &header);
        for chunk in chunks(&file[..self.data.end], self.data.start) {
            match &chunk.kind {
                b"IDAT" => put(&mut bytes, *b"IDAT", chunk.body),
                b"fdAT" => put(&mut bytes, *b"IDAT", chunk.body.get(4..).unwrap_or_default()),
                _ => {}
            }
        }
        put(&mut bytes, *b"IEND", &[]);
        bytes
    }
}

impl FrameControl {
    fn of(body: &[u8]) -> Option<Self> {
        let [width, height, left, top] = [4, 8, 12, 16].map(|at| number(body, at));
        let delay = |at: usize| Some(u32::from(u16::from_be_bytes([*body.get(at)?, *body.get(at + 1)?])));
        // A denominator of 0 stands for 100.
        let per_second = Some(delay(22)?).filter(|number| *number > 0).unwrap_or(100);
        Some(Self {
            width: width?,
            height: height?,
            left: left?,
            top: top?,
            duration_ms: 1000 * delay(20)? / per_second,
            dispose: *body.get(24)?,
            blend: *body.get(25)?,
        })
    }
}

/// The chunks from a place on. The last one may be cut.
fn chunks(bytes: &[u8], mut at: usize) -> impl Iterator<Item = Chunk<'_>> {
    std::iter::from_fn(move || {
        let length = number(bytes, at)? as usize;
        let kind: [u8; 4] = bytes.get(at + 4..at + 8)?.try_into().ok()?;
        let end = (at + 8).saturating_add(length);
        let body = &bytes[at + 8..end.min(bytes.len())];
        let is_intact = number(bytes, end).map(|checksum| {
            let mut crc = Crc::new();
            crc.update(&bytes[at + 4..end]);
            crc.sum() == checksum
        });
        let range = at..end.saturating_add(4).min(bytes.len());
        at = range.end;
        Some(Chunk { kind, body, is_intact, range })
    })
}

fn put(bytes: &mut Vec<u8>, kind: [u8; 4], body: &[u8]) {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&kind);
    bytes.extend_from_slice(body);
    bytes.extend_from_slice(&[0; 4]);
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let digits = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(digits.try_into().ok()?))
}
