//! The header of a bitmap (Microsoft's BITMAPCOREHEADER, BITMAPINFOHEADER and its successors; OS/2's
//! BITMAPINFOHEADER2), read as leniently as browsers read it.

/// Where the bitmap is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Container {
    /// A file of its own. Its first header tells where the pixels are.
    File,
    /// An icon. Its height counts twice, for a mask follows the pixels.
    Icon,
}

/// How the pixels are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Storage {
    /// Indices of 1, 2, 4 or 8 bits.
    Indices,
    /// Runs of indices of 4 or 8 bits, or of 24-bit colours.
    Runs,
    /// 2, 3 or 4 bytes, of which masks take the parts.
    Masked,
}

/// The header and what comes before the pixels.
#[derive(Debug)]
pub(super) struct BitmapHeader {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) is_top_down: bool,
    pub(super) bits: u32,
    pub(super) storage: Storage,
    /// Red, green and blue of the indices.
    palette: Vec<[u8; 3]>,
    /// Of red, green, blue and alpha.
    masks: [Mask; 4],
    /// The length of the header, the masks and the palette.
    pub(super) end: usize,
    /// Where an embedded colour profile is: its distance from the header, and its length.
    pub(super) profile: Option<(usize, usize)>,
}

const PLAIN: u32 = 0;
const RUNS_8: u32 = 1;
const RUNS_4: u32 = 2;
const BITFIELDS: u32 = 3;
/// In OS/2's bitmaps. In Windows's it is a JPEG for a printer, which no viewer shows.
const RUNS_24: u32 = 4;
const ALPHA_BITFIELDS: u32 = 6;
const ALPHA_BYTE: u32 = 0xFF00_0000;
const EMBEDDED_PROFILE: u32 = u32::from_be_bytes(*b"MBED");

impl BitmapHeader {
    /// Reads the header at the beginning of `bytes`, or explains why nothing is shown.
    pub(super) fn of(bytes: &[u8], container: Container) -> Result<Self, &'static str> {
        Reader { bytes }.read(container).unwrap_or(Err("the file ends within its header"))
    }

    /// Bytes from one row to the next where pixels are not stored as runs.
    pub(super) fn stride(&self) -> usize {
        (self.width as usize * self.bits as usize).div_ceil(32) * 4
    }

    /// An index beyond the palette is black.
    pub(super) fn colour_of(&self, index: u8) -> [u8; 4] {
        let [red, green, blue] = self.palette.get(usize::from(index)).copied().unwrap_or_default();
        [red, green, blue, u8::MAX]
    }

    /// Whether the first three bytes of a pixel are its blue, green and red, and there is no alpha.
    pub(super) fn is_blue_green_red(&self) -> bool {
        let [colours @ .., alpha] = self.masks;
        colours == [16, 8, 0].map(|shift| Mask { shift, bits: 8 }) && alpha.bits == 0
    }

    /// A pixel whose parts are taken by masks.
    pub(super) fn unmask(&self, bytes: &[u8]) -> [u8; 4] {
        let pixel = bytes.iter().rev().fold(0, |pixel, byte| pixel << 8 | u32::from(*byte));
        let [red, green, blue, alpha] = self.masks;
        [red.of(pixel), green.of(pixel), blue.of(pixel), if alpha.bits == 0 { u8::MAX } else { alpha.of(pixel) }]
    }

    pub(super) fn has_alpha(&self) -> bool {
        self.masks[3].bits > 0
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl Reader<'_> {
    fn u16(&self, at: usize) -> Option<u32> {
        Some(u32::from(u16::from_le_bytes(*self.bytes.get(at..)?.first_chunk()?)))
    }

    fn u32(&self, at: usize) -> Option<u32> {
        Some(u32::from_le_bytes(*self.bytes.get(at..)?.first_chunk()?))
    }

    /// `None` where the file ends.
    fn read(&self, container: Container) -> Option<Result<BitmapHeader, &'static str>> {
        let size = self.u32(0)? as usize;
        let is_os2_1 = size == 12;
        let is_windows = matches!(size, 40 | 52 | 56 | 108 | 124);
        let is_os2_2 = !is_windows && matches!(size, 16..=64) && (size.is_multiple_of(4) || matches!(size, 42 | 46));
        if !(is_os2_1 || is_os2_2 || is_windows) {
            return Some(Err("its header has an unknown size"));
        }
        self.bytes.get(..size)?;
        // OS/2's second header may end anywhere. What it does not have is 0.
        let field = |at: usize| if size >= at + 4 { self.u32(at) } else { Some(0) };

        let (width, mut height, bits) = if is_os2_1 {
            (self.u16(4)?.cast_signed(), self.u16(6)?.cast_signed(), self.u16(10)?)
        } else {
            (self.u32(4)?.cast_signed(), self.u32(8)?.cast_signed(), self.u16(14)?)
        };
        if container == Container::Icon {
            height /= 2;
        }
        let is_top_down = height < 0;
        let (width, height) = (u32::try_from(width).unwrap_or_default(), height.unsigned_abs());
        if width == 0 || height == 0 || width >= 1 << 16 || height >= 1 << 16 {
            return Some(Err("it has a size that is not shown"));
        }
        let compression = if is_os2_1 { PLAIN } else { field(16)? };
        let storage = match (compression, bits) {
            (PLAIN, 1 | 4 | 8) => Storage::Indices,
            (PLAIN, 2) if !is_os2_1 => Storage::Indices,
            (PLAIN, 24) => Storage::Masked,
            (PLAIN | BITFIELDS | ALPHA_BITFIELDS, 16 | 32) if !is_os2_1 => Storage::Masked,
            (RUNS_8, 8) | (RUNS_4, 4) => Storage::Runs,
            (RUNS_24, 24) if is_os2_2 => Storage::Runs,
            _ => return Some(Err("its compression and its bits per pixel do not go together")),
        };

        // Windows's second to fifth header have the masks. They follow the other headers.
        let has_masks = matches!(compression, BITFIELDS | ALPHA_BITFIELDS);
        let masks_at = if is_windows { 40 } else { size };
        let has_alpha_mask = is_windows && (size >= 56 || compression == ALPHA_BITFIELDS);
        let masks = if has_masks {
            let alpha = if has_alpha_mask { self.u32(masks_at + 12)? } else { 0 };
            [self.u32(masks_at)?, self.u32(masks_at + 4)?, self.u32(masks_at + 8)?, alpha]
        } else if storage != Storage::Masked {
            [0; 4]
        } else if bits == 16 {
            [0x7C00, 0x3E0, 0x1F, 0]
        } else {
            let has_alpha = if size >= 108 { self.u32(52)? != 0 } else { container == Container::Icon };
            [0xFF_0000, 0xFF00, 0xFF, if bits == 32 && has_alpha { ALPHA_BYTE } else { 0 }]
        };
        let Some(masks) = Mask::all(masks, bits) else {
            return Some(Err("its masks have gaps, or are wider than a pixel"));
        };

        let entry = if is_os2_1 { 3 } else { 4 };
        let colours = match (bits, field(32)? as usize) {
            (9.., _) => 0,
            (_, 0) => 1 << bits,
            (_, used) => used.min(1 << bits),
        };
        let palette = self.bytes.get(size..size + colours * entry)?;
        let palette = palette.chunks_exact(entry).map(|colour| [colour[2], colour[1], colour[0]]).collect();
        let masks_end = if has_masks { masks_at + if has_alpha_mask { 16 } else { 12 } } else { 0 };
        let end = masks_end.max(size + colours * entry);
        let has_profile = size == 124 && self.u32(56)? == EMBEDDED_PROFILE;
        let profile = if has_profile { Some((self.u32(112)? as usize, self.u32(116)? as usize)) } else { None };
        Some(Ok(BitmapHeader { width, height, is_top_down, bits, storage, palette, masks, end, profile }))
    }
}

/// Which bits of a pixel are one of its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mask {
    shift: u32,
    /// The number of bits, at most 8. 0: the pixels have no such part.
    bits: u32,
}

impl Mask {
    /// The masks, or `None` where a browser refuses one of them.
    fn all(masks: [u32; 4], pixel_bits: u32) -> Option<[Self; 4]> {
        let [red, green, blue, alpha] = masks.map(|mask| Self::of_bits(mask, pixel_bits));
        Some([red?, green?, blue?, alpha?])
    }

    fn of_bits(mask: u32, pixel_bits: u32) -> Option<Self> {
        if mask == 0 {
            return Some(Self { shift: 0, bits: 0 });
        }
        let (shift, bits) = (mask.trailing_zeros(), mask.count_ones());
        let has_no_gap = (mask >> shift).trailing_ones() == bits;
        // The eight highest bits count.
        (has_no_gap && shift + bits <= pixel_bits)
            .then_some(Self { shift: shift + bits.saturating_sub(8), bits: bits.min(8) })
    }

    /// This part of a pixel, from 0 to 255.
    fn of(self, pixel: u32) -> u8 {
        let most = (1 << self.bits) - 1;
        let value = pixel >> self.shift & most;
        u8::try_from((value * 255 + most / 2) / most.max(1)).unwrap_or(u8::MAX)
    }
}
