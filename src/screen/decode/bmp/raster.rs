//! The pixels of a bitmap.

use super::header::{BitmapHeader, Storage};

/// `[height, width, 4] u8`: red, green, blue, alpha. It is transparent where nothing was drawn.
pub(super) struct Raster {
    pub(super) pixels: Vec<u8>,
    width: usize,
    height: usize,
    is_top_down: bool,
    /// Rows so far, from the end of the image that comes first in the file.
    row: usize,
}

impl Raster {
    pub(super) fn new(header: &BitmapHeader) -> Self {
        let (width, height) = (header.width as usize, header.height as usize);
        Self { pixels: vec![0; width * height * 4], width, height, is_top_down: header.is_top_down, row: 0 }
    }

    /// Decodes the pixels at the beginning of `data`, as far as they go.
    pub(super) fn decode(&mut self, header: &BitmapHeader, data: &[u8]) {
        if header.storage == Storage::Runs {
            // Where the runs end early, the rows until then are there.
            let _end = self.decode_runs(header, data);
        } else {
            self.decode_rows(header, data);
        }
    }

    pub(super) fn has_begun(&self) -> bool {
        self.row > 0
    }

    pub(super) fn is_whole(&self) -> bool {
        self.row == self.height
    }

    /// Makes all pixels that were drawn opaque where all of them are transparent, and returns whether they were.
    pub(super) fn drop_empty_alpha(&mut self) -> bool {
        let is_empty = self.pixels.chunks_exact(4).all(|pixel| pixel[3] == 0);
        if is_empty {
            let drawn = self.row;
            self.row = 0;
            while self.row < drawn {
                self.next_row().chunks_exact_mut(4).for_each(|pixel| pixel[3] = u8::MAX);
            }
        }
        is_empty
    }

    /// Makes transparent what is set in an icon's mask, which has a bit for each pixel and follows the pixels. The result
    /// says whether the mask was whole.
    pub(super) fn apply_mask(&mut self, header: &BitmapHeader, data: &[u8]) -> bool {
        let mask = data.get(header.stride() * self.height..).unwrap_or_default();
        self.row = 0;
        for bytes in mask.chunks_exact(self.width.div_ceil(32) * 4).take(self.height) {
            for (number, pixel) in self.next_row().chunks_exact_mut(4).enumerate() {
                if index_at(bytes, 1, number) == 1 {
                    pixel.fill(0);
                }
            }
        }
        self.is_whole()
    }

    fn decode_rows(&mut self, header: &BitmapHeader, data: &[u8]) {
        for bytes in data.chunks_exact(header.stride()).take(self.height) {
            let row = self.next_row().chunks_exact_mut(4);
            let pixels = bytes.chunks_exact((header.bits as usize / 8).max(1));
            if header.storage == Storage::Indices {
                row.enumerate().for_each(|(number, pixel)| {
                    pixel.copy_from_slice(&header.colour_of(index_at(bytes, header.bits, number)));
                });
            } else if header.is_blue_green_red() {
                // Nearly all bitmaps. It is several times as fast.
                row.zip(pixels).for_each(|(pixel, bgr)| pixel.copy_from_slice(&[bgr[2], bgr[1], bgr[0], u8::MAX]));
            } else {
                row.zip(pixels).for_each(|(pixel, bytes)| pixel.copy_from_slice(&header.unmask(bytes)));
            }
        }
    }

    /// Decodes runs of pixels (Microsoft's BI_RLE8 and BI_RLE4, OS/2's RLE24). Pixels that are skipped are black, and
    /// what does not fit into its row is dropped. A row appears when it has ended.
    fn decode_runs(&mut self, header: &BitmapHeader, mut data: &[u8]) -> Option<()> {
        let mut row = vec![BLACK; self.width];
        let mut x = 0;
        while self.row < self.height {
            let [count, code] = take(&mut data)?;
            match (count, code) {
                (0, END_OF_ROW) => {
                    self.finish_rows(1, &mut row);
                    x = 0;
                }
                (0, END_OF_IMAGE) => self.finish_rows(self.height, &mut row),
                (0, MOVE) => {
                    let [right, down] = take(&mut data)?;
                    self.finish_rows(usize::from(down), &mut row);
                    x += usize::from(right);
                }
                (0, length) => {
                    let length = usize::from(length);
                    let used = (length * header.bits as usize).div_ceil(8);
                    let (bytes, rest) = data.split_at_checked(used.next_multiple_of(2))?;
                    data = rest;
                    let colour = |number: usize| match header.bits {
                        24 => [bytes[number * 3 + 2], bytes[number * 3 + 1], bytes[number * 3], u8::MAX],
                        bits => header.colour_of(index_at(bytes, bits, number)),
                    };
                    put(&mut row, &mut x, (0..length).map(colour));
                }
                (length, code) => {
                    let colours = match header.bits {
                        24 => {
                            let [green, red] = take(&mut data)?;
                            [[red, green, code, u8::MAX]; 2]
                        }
                        4 => [code >> 4, code & 15].map(|index| header.colour_of(index)),
                        _ => [header.colour_of(code); 2],
                    };
                    put(&mut row, &mut x, (0..usize::from(length)).map(|number| colours[number % 2]));
                }
            }
        }
        Some(())
    }

    /// Writes a row, and black ones up to `count`. The row is black afterwards.
    fn finish_rows(&mut self, count: usize, row: &mut [[u8; 4]]) {
        for _ in 0..count.min(self.height - self.row) {
            self.next_row().copy_from_slice(row.as_flattened());
            row.fill(BLACK);
        }
    }

    fn next_row(&mut self) -> &mut [u8] {
        let y = if self.is_top_down { self.row } else { self.height - 1 - self.row };
        self.row += 1;
        &mut self.pixels[y * self.width * 4..(y + 1) * self.width * 4]
    }
}

const BLACK: [u8; 4] = [0, 0, 0, u8::MAX];

const END_OF_ROW: u8 = 0;
const END_OF_IMAGE: u8 = 1;
const MOVE: u8 = 2;

fn take<const N: usize>(data: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = data.split_first_chunk()?;
    *data = rest;
    Some(*taken)
}

/// Draws pixels from `x` on, which may lie beyond the row.
fn put(row: &mut [[u8; 4]], x: &mut usize, colours: impl Iterator<Item = [u8; 4]>) {
    for (pixel, colour) in row.iter_mut().skip(*x).zip(colours) {
        *pixel = colour;
        *x += 1;
    }
}

/// The index of this number. The first one is in the highest bits of its byte.
fn index_at(bytes: &[u8], bits: u32, number: usize) -> u8 {
    let bit = number * bits as usize;
    let shift = 8 - bits as usize - bit % 8;
    bytes[bit / 8] >> shift & (u8::MAX >> (8 - bits))
}
