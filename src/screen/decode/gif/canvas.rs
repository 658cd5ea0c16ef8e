//! The canvas that a GIF's frames are drawn on.

use super::blocks::{Disposal, GifFrame};
use super::lzw::{CodeTable, IndexSink, decode_indices};

/// `[height, width, 4] u8`: red, green, blue, alpha. It is transparent at first.
pub(super) struct Canvas {
    pub(super) pixels: Vec<u8>,
    width: usize,
    height: usize,
    /// How the area of the last frame is disposed of.
    disposal: Disposal,
    area: Area,
    /// What the canvas was before the last frame, where it has to be restored.
    before: Vec<u8>,
    is_first: bool,
    /// Frames that are not drawn yet.
    left: u32,
}

/// The part of a frame that lies on the canvas.
#[derive(Default)]
struct Area {
    left: usize,
    right: usize,
    top: usize,
    bottom: usize,
}

impl Canvas {
    /// A canvas for so many frames.
    pub(super) fn new((width, height): (u32, u32), frames: u32) -> Self {
        let (width, height) = (width as usize, height as usize);
        Self {
            pixels: vec![0; width * height * 4],
            width,
            height,
            disposal: Disposal::Keep,
            area: Area::default(),
            before: Vec::new(),
            is_first: true,
            left: frames,
        }
    }

    /// Draws the next frame. The result says whether all its pixels were there.
    pub(super) fn draw(&mut self, frame: &GifFrame<'_>, codes: &mut CodeTable) -> Drawn {
        self.dispose();
        self.left = self.left.saturating_sub(1);
        let clip = |from: u32, length: u32, end: usize| {
            let (from, to) = (from as usize, from as usize + length as usize);
            (from.min(end), to.min(end))
        };
        let (left, right) = clip(frame.left, frame.width, self.width);
        let (top, bottom) = clip(frame.top, frame.height, self.height);
        self.area = Area { left, right, top, bottom };
        // The last frame is not disposed of, so that a still needs no copy.
        self.disposal = if self.left == 0 { Disposal::Keep } else { frame.disposal };
        if self.disposal == Disposal::Restore {
            self.before.clear();
            self.before.extend_from_slice(&self.pixels);
        }
        let mut painter = Painter {
            palette: colours(frame),
            frame,
            fills_gaps: self.is_first && frame.transparent.is_none(),
            x: 0,
            row: None,
            rows: RowOrder::of(frame),
            canvas: self,
        };
        painter.next_row();
        decode_indices(frame.data, frame.literal_bits, codes, &mut painter);
        let drawn = match (painter.is_done(), painter.has_begun()) {
            _ if frame.is_empty() => Drawn::Nothing,
            (true, _) => Drawn::Whole,
            (false, true) => Drawn::Partly,
            (false, false) => Drawn::Nothing,
        };
        self.is_first = false;
        drawn
    }

    #[cfg(test)]
    pub(super) fn before_bytes(&self) -> usize {
        self.before.capacity()
    }

    fn dispose(&mut self) {
        let Area { left, right, top, bottom } = self.area;
        for row in top..bottom {
            let range = (row * self.width + left) * 4..(row * self.width + right) * 4;
            match self.disposal {
                Disposal::Keep => return,
                Disposal::Clear => self.pixels[range].fill(0),
                Disposal::Restore => self.pixels[range.clone()].copy_from_slice(&self.before[range]),
            }
        }
    }
}

/// How much of a frame was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Drawn {
    Whole,
    Partly,
    Nothing,
}

/// Red, green, blue and alpha of each index. An index beyond the palette is black. The transparent index is drawn
/// nowhere.
fn colours(frame: &GifFrame<'_>) -> [[u8; 4]; 256] {
    let mut colours = [[0, 0, 0, 255]; 256];
    for (colour, rgb) in colours.iter_mut().zip(frame.palette.chunks_exact(3)) {
        colour[..3].copy_from_slice(rgb);
    }
    if let Some(transparent) = frame.transparent {
        colours[usize::from(transparent)] = [0; 4];
    }
    colours
}

/// The rows of a frame in the order in which the file has them (GIF89a, appendix E).
struct RowOrder {
    height: usize,
    pass: usize,
    next: usize,
}

impl RowOrder {
    /// First row, distance of rows, and the rows that one row stands for until later passes come.
    const PASSES: [(usize, usize, usize); 4] = [(0, 8, 8), (4, 8, 4), (2, 4, 2), (1, 2, 1)];
    const PLAIN: usize = 4;

    fn of(frame: &GifFrame<'_>) -> Self {
        let pass = if frame.is_interlaced { 0 } else { Self::PLAIN };
        Self { height: frame.height as usize, pass, next: 0 }
    }

    /// A row, and the number of rows that it stands for until the later passes come.
    fn next(&mut self) -> Option<(usize, usize)> {
        while self.next >= self.height {
            self.pass += 1;
            self.next = Self::PASSES.get(self.pass)?.0;
        }
        let row = self.next;
        let (_, step, stands_for) = Self::PASSES.get(self.pass).copied().unwrap_or((0, 1, 1));
        self.next += step;
        Some((row, stands_for))
    }
}

/// Draws indices as they are decoded.
struct Painter<'a> {
    canvas: &'a mut Canvas,
    frame: &'a GifFrame<'a>,
    palette: [[u8; 4]; 256],
    rows: RowOrder,
    /// Whether a row of an interlaced frame stands for the rows below it until they come, as in browsers.
    fills_gaps: bool,
    x: usize,
    row: Option<(usize, usize)>,
}

impl Painter<'_> {
    fn next_row(&mut self) {
        self.x = 0;
        self.row = if self.frame.is_empty() { None } else { self.rows.next() };
    }

    fn is_done(&self) -> bool {
        self.row.is_none()
    }

    fn has_begun(&self) -> bool {
        self.x > 0 || self.row.is_none_or(|(row, _)| row > 0)
    }

    /// Draws the indices that begin at `x` in a row, as far as they lie on the canvas.
    fn paint(&mut self, row: usize, indices: &[u8]) {
        let y = self.frame.top as usize + row;
        let left = self.frame.left as usize + self.x;
        if y >= self.canvas.height || left >= self.canvas.width {
            return;
        }
        let start = (y * self.canvas.width + left) * 4;
        let end = (y + 1) * self.canvas.width * 4;
        for (pixel, index) in self.canvas.pixels[start..end].chunks_exact_mut(4).zip(indices) {
            let colour = self.palette[usize::from(*index)];
            if colour[3] != 0 {
                pixel.copy_from_slice(&colour);
            }
        }
    }

    fn fill_gap(&mut self, row: usize, stands_for: usize) {
        let Area { left, right, bottom, .. } = self.canvas.area;
        let stride = self.canvas.width * 4;
        let y = self.frame.top as usize + row;
        if y < bottom {
            let source = y * stride + left * 4..y * stride + right * 4;
            for below in y + 1..(y + stands_for).min(bottom) {
                self.canvas.pixels.copy_within(source.clone(), below * stride + left * 4);
            }
        }
    }
}

impl IndexSink for Painter<'_> {
    fn put(&mut self, mut indices: &[u8]) -> bool {
        let width = self.frame.width as usize;
        while let Some((row, stands_for)) = self.row {
            let (part, rest) = indices.split_at(indices.len().min(width - self.x));
            if part.is_empty() {
                return true;
            }
            self.paint(row, part);
            self.x += part.len();
            indices = rest;
            if self.x == width {
                if self.fills_gaps && stands_for > 1 {
                    self.fill_gap(row, stands_for);
                }
                self.next_row();
            }
        }
        false
    }
}
