//! The blocks of a GIF (CompuServe GIF89a, §17 to §27), read as browsers read them.

const EXTENSION: u8 = 0x21;
const IMAGE: u8 = 0x2C;
const GRAPHIC_CONTROL: u8 = 0xF9;

/// What becomes of a frame's pixels before the next frame is drawn (§23).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disposal {
    Keep,
    /// The frame's area becomes transparent.
    Clear,
    /// The frame's area becomes what it was before.
    Restore,
}

/// What a graphic control extension says of the next frame.
#[derive(Debug, Clone, Copy)]
struct GraphicControl {
    transparent: Option<u8>,
    disposal: Disposal,
    duration_ms: u32,
}

impl GraphicControl {
    const NONE: Self = Self { transparent: None, disposal: Disposal::Keep, duration_ms: 0 };

    fn of(flags: u8, delay: u32, transparent: u8) -> Self {
        Self {
            transparent: (flags & 1 != 0).then_some(transparent),
            disposal: match (flags >> 2) & 7 {
                2 => Disposal::Clear,
                3 | 4 => Disposal::Restore,
                _ => Disposal::Keep,
            },
            duration_ms: delay * 10,
        }
    }
}

/// A frame before its indices are decoded.
pub(super) struct GifFrame<'a> {
    pub(super) left: u32,
    pub(super) top: u32,
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) is_interlaced: bool,
    /// Red, green and blue of each index.
    pub(super) palette: &'a [u8],
    pub(super) transparent: Option<u8>,
    pub(super) disposal: Disposal,
    pub(super) duration_ms: u32,
    pub(super) literal_bits: u8,
    /// The sub-blocks with the indices, and what follows them.
    pub(super) data: &'a [u8],
}

impl GifFrame<'_> {
    /// Whether it has no columns or no rows.
    pub(super) fn is_empty(&self) -> bool {
        self.width == 0 || self.height == 0
    }
}

/// Goes through a GIF's blocks from frame to frame.
#[derive(Clone)]
pub(super) struct GifBlocks<'a> {
    rest: &'a [u8],
    palette: &'a [u8],
    control: GraphicControl,
    /// Width and height of the screen, as the file gives them.
    pub(super) screen: (u32, u32),
    /// Whether zeros between blocks were skipped. Chromium shows no frame behind them.
    pub(super) has_zeros: bool,
    /// Whether the file ends within the header of a block.
    pub(super) is_cut: bool,
}

impl<'a> GifBlocks<'a> {
    /// The blocks behind the header, or `None` where the file ends before them.
    pub(super) fn of(bytes: &'a [u8]) -> Option<Self> {
        let mut blocks = Self {
            rest: bytes,
            palette: &[],
            control: GraphicControl::NONE,
            screen: (0, 0),
            has_zeros: false,
            is_cut: false,
        };
        let [_, _, _, _, _, _, w0, w1, h0, h1, flags, _, _] = blocks.take()?;
        blocks.screen = (word(w0, w1), word(h0, h1));
        blocks.palette = blocks.take_palette(flags)?;
        Some(blocks)
    }

    /// The next frame, up to the trailer, the end of the file, or what is no block. Browsers show what comes before.
    pub(super) fn next_frame(&mut self) -> Option<GifFrame<'a>> {
        loop {
            let (kind, rest) = self.rest.split_first()?;
            self.rest = rest;
            let frame = match *kind {
                // Zeros between blocks end the file in some viewers and are skipped in others.
                0 => {
                    self.has_zeros = true;
                    continue;
                }
                EXTENSION => self.take_extension().map(|()| None),
                IMAGE => self.take_frame().map(Some),
                _ => {
                    self.rest = &[];
                    return None;
                }
            };
            match frame {
                Some(Some(frame)) => return Some(frame),
                Some(None) => {}
                None => {
                    self.is_cut = true;
                    self.rest = &[];
                    return None;
                }
            }
        }
    }

    fn take_extension(&mut self) -> Option<()> {
        let [label] = self.take()?;
        if label == GRAPHIC_CONTROL
            && let Some([4..=255, flags, d0, d1, transparent]) = self.rest.first_chunk::<5>()
        {
            self.control = GraphicControl::of(*flags, word(*d0, *d1), *transparent);
        }
        self.skip_sub_blocks().then_some(())
    }

    fn take_frame(&mut self) -> Option<GifFrame<'a>> {
        let [l0, l1, t0, t1, w0, w1, h0, h1, flags] = self.take()?;
        let own_palette = self.take_palette(flags)?;
        let [literal_bits] = self.take()?;
        let GraphicControl { transparent, disposal, duration_ms } =
            std::mem::replace(&mut self.control, GraphicControl::NONE);
        let data = self.rest;
        // Where the sub-blocks have no end, the indices may be whole.
        self.skip_sub_blocks();
        Some(GifFrame {
            left: word(l0, l1),
            top: word(t0, t1),
            width: word(w0, w1),
            height: word(h0, h1),
            is_interlaced: flags & 0x40 != 0,
            palette: if flags & 0x80 == 0 { self.palette } else { own_palette },
            transparent,
            disposal,
            duration_ms,
            literal_bits,
            data,
        })
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*taken)
    }

    /// The colours that follow a descriptor with these flags.
    fn take_palette(&mut self, flags: u8) -> Option<&'a [u8]> {
        let length = if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) };
        let (palette, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(palette)
    }

    /// Whether the sub-blocks end before the file does.
    fn skip_sub_blocks(&mut self) -> bool {
        loop {
            let Some((length, rest)) = self.rest.split_first() else { return false };
            self.rest = rest.get(usize::from(*length)..).unwrap_or_default();
            if *length == 0 {
                return true;
            }
        }
    }
}

fn word(low: u8, high: u8) -> u32 {
    u32::from(u16::from_le_bytes([low, high]))
}
