//! Animated PNG (PNG, third edition, section 13.4): frames are composed on one canvas.

use super::super::animation::{FRAME_COST_PIXELS, FrameChoice};
use super::super::frame::Channels;
use super::super::{DecodeContext, Undecodable};
use super::chunks::{FrameControl, FramePart, Layout};
use super::{Picture, Reader, Shortage, Target, Unfinished, open, read_picture, refuse, skips_default_image};

const DISPOSE_TO_BACKGROUND: u8 = 1;
const DISPOSE_TO_PREVIOUS: u8 = 2;
const BLEND_SOURCE: u8 = 0;
const BLEND_OVER: u8 = 1;

/// The pixels of a whole picture, RGBA.
struct Canvas {
    pixels: Vec<u8>,
    size: (u32, u32),
}

/// A frame that was read, and where it goes.
struct Layer {
    pixels: Vec<u8>,
    control: FrameControl,
}

/// Decodes all frames, also those that browsers do not show. The default image, where it is no frame, is one more picture
/// for viewers that know no animations. Its number is the count of frames.
pub(super) fn decode<'a>(
    picture: &Picture<'a>,
    layout: &Layout<'_>,
    mut reader: Reader<'a>,
    context: &mut DecodeContext<'_>,
) -> Result<(), Undecodable> {
    let (width, height) = picture.size;
    let count = layout.frame_count();
    let cost = (u64::from(width) * u64::from(height)).max(FRAME_COST_PIXELS);
    context.check_animation(count, cost * u64::from(count))?;
    let rows = picture.rows.row_bytes_per_pixel(height);
    // The canvas, the frame or a copy of the canvas, the canvas before the frame, and a copy over a background.
    let _grant = context.admit(width, height, 4 + 4 + 4 + 3 + rows)?;

    let durations: Vec<u32> =
        layout.frames.iter().map(|frame| frame.control.map_or(0, |control| control.duration_ms)).collect();
    let mut choice = FrameChoice::new(&durations, frames_shown(picture.bytes), context.limits.max_frames);
    let mut canvas = Canvas::new(picture.size);
    let mut source = Source { picture, reader: &mut reader };
    let mut is_first = true;
    for (number, part) in (0..).zip(&layout.frames) {
        let Some(layer) = source.read(number, part, context)? else { continue };
        let before = (layer.control.dispose == DISPOSE_TO_PREVIOUS && !is_first).then(|| canvas.pixels.clone());
        canvas.draw(&layer);
        let Layer { mut pixels, control } = layer;
        if choice.takes(number, &canvas.pixels) {
            pixels.clone_from(&canvas.pixels);
            take(picture, number, pixels, context)?;
        }
        match (control.dispose, before) {
            (_, Some(before)) => canvas.pixels = before,
            (DISPOSE_TO_BACKGROUND | DISPOSE_TO_PREVIOUS, None) => canvas.clear(control),
            _ => {}
        }
        is_first = false;
    }
    if let Some(damage) = choice.damage() {
        context.record_damage("PNG", &damage);
    }
    let number = layout.frames.len().try_into().unwrap_or(u32::MAX);
    if let Some(part) = &layout.default_image
        && let Some(layer) = source.read(number, part, context)?
        && choice.takes_last(&layer.pixels)
    {
        take(picture, number, layer.pixels, context)?;
    }
    Ok(())
}

/// The number of frames that browsers show, of the first ones. They stop behind those that the file declares, and before at
/// the first chunk that is wrong. No pixel is decoded.
fn frames_shown(bytes: &[u8]) -> usize {
    let Ok(mut reader) = open(bytes, true) else { return 0 };
    let first = usize::from(!skips_default_image(reader.info()));
    first + std::iter::from_fn(|| reader.next_frame_info().is_ok().then_some(())).count()
}

fn take(
    picture: &Picture<'_>,
    number: u32,
    pixels: Vec<u8>,
    context: &mut DecodeContext<'_>,
) -> Result<(), Undecodable> {
    let mut frame = picture.frame(pixels, Channels::Rgba);
    frame.number = number;
    context.take(&mut frame)
}

/// Where frames are read from.
struct Source<'a, 'b> {
    picture: &'a Picture<'b>,
    /// Stands before the first picture of the file, until the first frame is read.
    reader: &'a mut Reader<'b>,
}

impl Source<'_, '_> {
    /// Reads a frame as far as it is there, or nothing where it has no row or is larger than the canvas.
    ///
    /// The first frame is read as browsers read it. The others are read without heeding checksums and sequence numbers,
    /// since viewers differ in what they then show.
    fn read(
        &mut self,
        number: u32,
        part: &FramePart,
        context: &mut DecodeContext<'_>,
    ) -> Result<Option<Layer>, Undecodable> {
        let as_browsers = number == 0 && self.skip_default_image();
        let (width, height) = self.picture.size;
        let control = if as_browsers { self.reader.info().frame_control.map(Into::into) } else { part.control };
        let whole = FrameControl { width, height, left: 0, top: 0, duration_ms: 0, dispose: 0, blend: BLEND_SOURCE };
        let mut control = control.unwrap_or(whole);
        let fits = |edge: u32, limit: u32| 0 < edge && edge <= limit;
        if !fits(control.width, width) || !fits(control.height, height) {
            context.record_damage("PNG", &"a frame is larger than the picture");
            return Ok(None);
        }
        let size = (control.width, control.height);
        let format = &self.picture.rows;
        let mut pixels = vec![0; size.0 as usize * size.1 as usize * 4];
        let target = Target { samples: &mut pixels, channels: Channels::Rgba, size };
        let outcome = if as_browsers {
            read_picture(self.reader, format, target)
        } else {
            let bytes = part.as_png(self.picture.bytes, size);
            let mut reader = open(&bytes, false).map_err(|e| refuse(&e))?;
            read_picture(&mut reader, format, target)
        };
        if let Err(Unfinished { error, rows }) = outcome {
            context.record_damage("PNG", &Shortage(error));
            if rows == 0 {
                return Ok(None);
            }
            // Pixels that are missing leave those below as they are.
            control.blend = BLEND_OVER;
        }
        Ok(Some(Layer { pixels, control }))
    }

    /// Moves to the first frame's data, and returns whether browsers can do so, too.
    fn skip_default_image(&mut self) -> bool {
        !skips_default_image(self.reader.info()) || self.reader.next_frame_info().is_ok()
    }
}

impl Canvas {
    fn new(size: (u32, u32)) -> Self {
        Self { pixels: vec![0; size.0 as usize * size.1 as usize * 4], size }
    }

    /// The rows of a region, as ranges of bytes. What is outside of the canvas is left out.
    fn rows(&self, control: FrameControl) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
        let (width, height) = self.size;
        let clip = |start: u32, length: u32, limit: u32| start.min(limit)..start.saturating_add(length).min(limit);
        let columns = clip(control.left, control.width, width);
        clip(control.top, control.height, height).map(move |row| {
            let at = |column: u32| (row as usize * width as usize + column as usize) * 4;
            at(columns.start)..at(columns.end)
        })
    }

    fn draw(&mut self, layer: &Layer) {
        let stride = layer.control.width as usize * 4;
        for (row, source) in self.rows(layer.control).zip(layer.pixels.chunks_exact(stride)) {
            let target = &mut self.pixels[row];
            let source = &source[..target.len()];
            if layer.control.blend == BLEND_SOURCE {
                target.copy_from_slice(source);
                continue;
            }
            for (below, above) in target.chunks_exact_mut(4).zip(source.chunks_exact(4)) {
                blend(below, above);
            }
        }
    }

    fn clear(&mut self, control: FrameControl) {
        for row in self.rows(control) {
            self.pixels[row].fill(0);
        }
    }
}

/// Draws a pixel over another one. Neither is premultiplied.
fn blend(below: &mut [u8], above: &[u8]) {
    let alpha = u32::from(above[3]);
    match alpha {
        0 => return,
        255 => return below.copy_from_slice(above),
        _ => {}
    }
    // What is left of the pixel below, times 255.
    let rest = u32::from(below[3]) * (255 - alpha);
    let total = 255 * alpha + rest;
    let mix = |above: u8, below: u8| {
        let sum = 255 * alpha * u32::from(above) + rest * u32::from(below);
        #[expect(clippy::cast_possible_truncation, reason = "a weighted mean of bytes is a byte")]
        let byte = ((sum + total / 2) / total) as u8;
        byte
    };
    for at in 0..3 {
        below[at] = mix(above[at], below[at]);
    }
    #[expect(clippy::cast_possible_truncation, reason = "the sum is at most 255 * 255")]
    let total = ((total + 127) / 255) as u8;
    below[3] = total;
}
