//! AVIF, still or animated: AV1 frames in a HEIF file (AV1 Image File Format, version 1.1).
//!
//! A still image is one AV1 frame or a grid of them, and alpha is a second image. An animation is a track of frames.

mod av1;
mod sequence_header;
#[cfg(test)]
mod tests;
mod track;
mod yuv;

use std::borrow::Cow;

use super::animation::FrameChoice;
use super::frame::{Channels, Frame};
use super::isobmff::{self, ColourProperties, Grid, Item, Items, Nclx, Property, Reader};
use super::{DecodeContext, Undecodable, over_limits, rgb};
use crate::job::ImageInfo;
use av1::{Av1Decoder, Av1Options, YuvFrame};
use sequence_header::Av1Summary;
use track::{MAX_SAMPLES, Track, Tracks};
use yuv::YuvToRgb;

/// Reference frames, and the one that is decoded (AV1 specification, 7.20).
const MAX_HELD_FRAMES: u32 = 9;

const DAMAGED_DATA: &str = "its AV1 data is damaged";

/// A smaller tile would cost more than its pixels (MIAF, ISO/IEC 23000-22, 7.3.11.4.2).
const MIN_TILE_SIDE: u32 = 64;

/// Browsers show the animation where the major brand is that of one, and otherwise the still image (AV1 Image File Format,
/// 6.3). Other viewers show the other one, so that both are taken.
pub(super) fn decode(bytes: &[u8], context: &mut DecodeContext<'_>) -> Result<ImageInfo, Undecodable> {
    let items = Items::of(bytes);
    let prefers_tracks = items.is_none() || isobmff::brands(bytes).first() == Some(b"avis");
    let mut animation = match Tracks::of(bytes).map(|tracks| decode_animation(bytes, &tracks, context)) {
        Some(Err(error)) if prefers_tracks => return Err(error),
        Some(Err(error)) => {
            context.record_damage("AVIF", &format_args!("its animation: {error}"));
            None
        }
        Some(Ok(animation)) => Some(animation),
        None => None,
    };
    let Some(items) = items else {
        return animation.map(|animation| animation.info).ok_or_else(|| damaged("it has no valid list of images"));
    };
    let still = decode_still(&items, animation.as_mut(), context);
    match (animation.filter(|_| prefers_tracks), still) {
        (Some(animation), still) => {
            if let Err(error) = still {
                context.record_damage("AVIF", &format_args!("its still image: {error}"));
            }
            Ok(animation.info)
        }
        (None, still) => still,
    }
}

fn damaged(what: &str) -> Undecodable {
    Undecodable::damaged("AVIF", &what)
}

/// Whether an auxiliary image of this kind, which may be followed by other data, is alpha.
fn is_alpha(kind: &[u8]) -> bool {
    let name = kind.split(|byte| *byte == 0).next();
    matches!(name, Some(b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha" | b"urn:mpeg:hevc:2015:auxid:1"))
}

/// An image of one or more AV1 frames of equal size, side by side.
struct Mosaic<'a> {
    width: u32,
    height: u32,
    columns: u32,
    /// Width and height of each tile.
    tile: (u32, u32),
    /// The AV1 data of the tiles, row by row. Those that the file ends before are left out.
    data: Vec<Cow<'a, [u8]>>,
    /// Whether all tiles are there.
    is_whole: bool,
    /// The largest of the tiles' sequence headers, and the most frames.
    summary: Av1Summary,
    options: Av1Options,
}

impl<'a> Mosaic<'a> {
    /// The image of an item. An alpha image without a size has that of the colours.
    fn of(items: &Items<'a>, id: u32, size: Option<(u32, u32)>) -> Result<Self, Undecodable> {
        let item = items.item(id).ok_or_else(|| damaged("the image that it shows is not in it"))?;
        check_support(item)?;
        let size = item.size().or(size).ok_or_else(|| damaged("an image has no size"))?;
        if &item.kind == b"grid" {
            let grid = items.parts(item).and_then(|parts| Grid::of(&parts));
            let grid = grid.ok_or_else(|| damaged("its grid is broken"))?;
            return Self::of_grid(items, grid, items.referred(id, b"dimg"));
        }
        Self::of_tiles(items, Grid { rows: 1, columns: 1, width: size.0, height: size.1 }, size, &[id])
    }

    fn of_grid(items: &Items<'a>, grid: Grid, tiles: &[u32]) -> Result<Self, Undecodable> {
        let Grid { rows, columns, width, height } = grid;
        let first = tiles.first().and_then(|id| items.item(*id)).and_then(Item::size);
        let tile = first.ok_or_else(|| damaged("its grid has no tile"))?;
        let fits = |tile: u32, count: u32, whole: u32| {
            let before = u64::from(tile) * u64::from(count - 1);
            tile >= MIN_TILE_SIDE && (before + 1..=before + u64::from(tile)).contains(&u64::from(whole))
        };
        let is_valid = tiles.len() as u64 == u64::from(rows) * u64::from(columns)
            && fits(tile.0, columns, width)
            && fits(tile.1, rows, height);
        if !is_valid {
            return Err(damaged("the tiles of its grid do not cover it"));
        }
        Self::of_tiles(items, grid, tile, tiles)
    }

    fn of_tiles(items: &Items<'a>, grid: Grid, tile: (u32, u32), ids: &[u32]) -> Result<Self, Undecodable> {
        let mut data = Vec::new();
        let mut options = None;
        let mut summary: Option<Av1Summary> = None;
        let mut is_whole = true;
        let mut left = items.max_bytes();
        for id in ids {
            let item =
                items.item(*id).filter(|item| &item.kind == b"av01" && item.size().is_none_or(|size| size == tile));
            let item = item.ok_or_else(|| damaged("an image in it is no AV1 image of the size that is given"))?;
            check_support(item)?;
            let Some(parts) = items.parts(item) else {
                is_whole = false;
                break;
            };
            // An empty part takes time, too.
            let bytes = parts.iter().map(|part| part.len() + 1).fold(0, usize::saturating_add);
            left = left.checked_sub(bytes).ok_or_else(|| damaged("the images in it overlap"))?;
            let whole = match parts.as_slice() {
                [one] => Cow::Borrowed(*one),
                parts => Cow::Owned(parts.concat()),
            };
            let layer = Layer::of(item);
            let bytes = layer.data(whole);
            let found = Av1Summary::of(&bytes).ok_or_else(|| damaged("its AV1 data has no valid header"))?;
            summary = Some(summary.map_or(found, |first| first.largest(found)));
            options = options.or(Some(layer.options()));
            data.push(bytes);
        }
        let cut = || damaged("the file ends before its pixels");
        let (summary, mut options) = (summary.ok_or_else(cut)?, options.ok_or_else(cut)?);
        options.max_pixels = summary.pixels();
        let Grid { columns, width, height, .. } = grid;
        Ok(Self { width, height, columns, tile, data, is_whole, summary, options })
    }

    /// How many lines from the top the tiles fill.
    fn whole_lines(&self) -> u32 {
        let rows = u32::try_from(self.data.len()).unwrap_or(u32::MAX) / self.columns;
        rows.saturating_mul(self.tile.1).min(self.height)
    }

    /// Bytes that decoding takes beside the canvas.
    fn bytes(&self) -> u64 {
        self.summary.bytes()
    }

    /// Decodes the tiles, one after the other, and gives each of them and where it lies. Returns whether all are sound.
    fn decode(
        &self,
        mut paint: impl FnMut(&YuvFrame, (u32, u32)) -> Result<(), Undecodable>,
    ) -> Result<bool, Undecodable> {
        let mut is_sound = true;
        let mut decoder = av1::open(self.options).map_err(|e| damaged(&e))?;
        for (index, data) in (0u32..).zip(&self.data) {
            let frame = decoder.decode(data).map_err(|e| damaged(&e))?;
            is_sound &= !frame.is_damaged;
            paint(&frame, (index % self.columns * self.tile.0, index / self.columns * self.tile.1))?;
        }
        Ok(is_sound)
    }
}

/// An image must not be shown where an essential property of it is not known.
fn check_support(item: &Item<'_>) -> Result<(), Undecodable> {
    let is_known = |property: &Property<'_>| {
        matches!(
            &property.kind,
            b"ispe"
                | b"pixi"
                | b"av1C"
                | b"auxC"
                | b"colr"
                | b"pasp"
                | b"clap"
                | b"irot"
                | b"imir"
                | b"a1op"
                | b"a1lx"
                | b"lsel"
                | b"clli"
                | b"mdcv"
                | b"cclv"
                | b"amve"
        )
    };
    match item.properties.iter().find(|property| property.is_essential && !is_known(property)) {
        Some(property) => {
            let kind = property.kind.escape_ascii();
            Err(Undecodable(format!("unsupported kind of AVIF: an image has the essential property {kind}")))
        }
        None => Ok(()),
    }
}

/// Which layer of an image of several layers is shown (AV1 Image File Format, 2.3).
struct Layer {
    operating_point: u8,
    /// The layer that the item selects, and the size of each layer but the last.
    selected: Option<(u16, Vec<usize>)>,
}

impl Layer {
    fn of(item: &Item<'_>) -> Self {
        let operating_point = item.property(b"a1op").and_then(|body| Reader(body).u8()).unwrap_or_default() & 31;
        // 0xFFFF is the highest one.
        let selected = item.property(b"lsel").and_then(|body| Reader(body).u16()).filter(|layer| *layer != 0xFFFF);
        let sizes = || {
            let mut a1lx = Reader(item.property(b"a1lx")?);
            let is_large = a1lx.u8()? & 1 == 1;
            (0..3).map(|_| if is_large { a1lx.u32() } else { a1lx.u16().map(u32::from) }).collect::<Option<Vec<_>>>()
        };
        let sizes = || sizes().unwrap_or_default().into_iter().take_while(|size| *size > 0).map(|size| size as usize);
        Self { operating_point, selected: selected.map(|layer| (layer, sizes().collect())) }
    }

    /// The data up to the layer's end.
    fn data<'a>(&self, whole: Cow<'a, [u8]>) -> Cow<'a, [u8]> {
        let Some((layer, sizes)) = &self.selected else { return whole };
        let Some(sizes) = sizes.get(..=usize::from(*layer)) else { return whole };
        let end = sizes.iter().sum::<usize>().min(whole.len());
        match whole {
            Cow::Borrowed(data) => Cow::Borrowed(&data[..end]),
            Cow::Owned(mut data) => {
                data.truncate(end);
                Cow::Owned(data)
            }
        }
    }

    fn options(&self) -> Av1Options {
        let takes_last_layer = self.selected.is_some();
        Av1Options { max_pixels: 0, operating_point: self.operating_point, takes_last_layer }
    }
}

impl Av1Summary {
    fn largest(self, other: Self) -> Self {
        Self { header: self.header.largest(other.header), frames: self.frames.max(other.frames) }
    }

    /// Pixels of the largest frame.
    fn pixels(&self) -> u32 {
        self.header.width.saturating_mul(self.header.height)
    }

    /// Bytes that a decoder takes.
    fn bytes(&self) -> u64 {
        let pixels = u64::from(self.header.width) * u64::from(self.header.height);
        // One more for the grain of a film.
        let held = u64::from(self.frames.min(MAX_HELD_FRAMES)) + 1;
        let frames = pixels.saturating_mul(self.header.bytes_per_pixel()).saturating_mul(held);
        frames.saturating_add(av1::padding(self.pixels()) as u64)
    }
}

/// What is painted on.
struct Canvas {
    samples: Vec<u8>,
    channels: Channels,
    width: u32,
    height: u32,
}

impl Canvas {
    /// A canvas that is black, and transparent where it has alpha.
    fn new((width, height): (u32, u32), channels: Channels) -> Self {
        let samples = vec![0; width as usize * height as usize * channels.count()];
        Self { samples, channels, width, height }
    }

    /// The part of a line from `x` on, of `width` pixels or up to the end of the line.
    fn line(&mut self, x: u32, y: u32, width: u32) -> &mut [u8] {
        let step = self.channels.count();
        let start = (y as usize * self.width as usize + x as usize) * step;
        let width = width.min(self.width - x) as usize;
        &mut self.samples[start..start + width * step]
    }

    /// Paints the colours of a frame, or its luma as alpha, in a tile that begins at `(x, y)`.
    fn paint(
        &mut self,
        frame: &YuvFrame,
        colour: Nclx,
        layer: PaintLayer,
        ((x, y), tile): ((u32, u32), (u32, u32)),
    ) -> Result<(), Undecodable> {
        let mut convert = YuvToRgb::new(colour, frame).ok_or_else(|| {
            Undecodable(format!("unsupported kind of AVIF: its colours have the matrix {} of H.273", colour.matrix))
        })?;
        let mut write = |line: u32, step: usize, row: &mut [u8]| match layer {
            PaintLayer::Colour => convert.write_rgb(frame, line, step, row),
            PaintLayer::Alpha => convert.write_alpha(frame, line, row),
        };
        let lines = tile.1.min(self.height - y);
        if (frame.width, frame.height) == tile {
            let step = self.channels.count();
            (0..lines).for_each(|line| write(line, step, self.line(x, y + line, tile.0)));
            return Ok(());
        }
        // As much of the frame as shares in a line is read for it, so that no second picture is held.
        let part = match layer {
            PaintLayer::Colour => 0..3,
            PaintLayer::Alpha => 3..4,
        };
        let (down, across) = (Shares::new(frame.height, tile.1), Shares::new(frame.width, tile.0));
        let mut row = vec![0; frame.width as usize * 4];
        let mut mixed = vec![0f32; row.len()];
        let step = self.channels.count();
        for line in 0..lines {
            mixed.fill(0.0);
            down.each(line, |from, share| {
                write(from, 4, &mut row);
                mixed.iter_mut().zip(&row).for_each(|(sum, sample)| *sum += share * f32::from(*sample));
            });
            for (column, to) in (0u32..).zip(self.line(x, y + line, tile.0).chunks_exact_mut(step)) {
                let mut pixel = [0f32; 4];
                across.each(column, |from, share| {
                    let from = &mixed[from as usize * 4..][..4];
                    pixel.iter_mut().zip(from).for_each(|(sum, sample)| *sum += share * sample);
                });
                let pixel = pixel.map(yuv::to_byte);
                to[part.clone()].copy_from_slice(&pixel[part.clone()]);
            }
        }
        Ok(())
    }

    /// Makes the first lines opaque.
    fn fill_alpha(&mut self, lines: u32) {
        let width = self.width as usize;
        self.samples.chunks_exact_mut(4).take(width * lines as usize).for_each(|pixel| pixel[3] = 255);
    }

    /// The part of it that is shown.
    fn crop(mut self, clean: Option<(u32, u32, u32, u32)>) -> Self {
        let Some((x, y, width, height)) = clean else { return self };
        let step = self.channels.count();
        let row_bytes = width as usize * step;
        for line in 0..height {
            let from = ((y + line) as usize * self.width as usize + x as usize) * step;
            self.samples.copy_within(from..from + row_bytes, line as usize * row_bytes);
        }
        self.samples.truncate(row_bytes * height as usize);
        Self { samples: self.samples, channels: self.channels, width, height }
    }
}

/// How samples make up those of a row or column of another length: each as much as it is near.
struct Shares {
    from: u32,
    /// Old samples for one new sample.
    scale: f32,
}

impl Shares {
    fn new(from: u32, to: u32) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a frame has fewer than 2^24 samples across")]
        let scale = from as f32 / to as f32;
        Self { from, scale }
    }

    /// Gives the old samples that share in a new one, and their shares, which are 1 in all.
    fn each(&self, index: u32, mut give: impl FnMut(u32, f32)) {
        #![expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let reach = self.scale.max(1.0);
        let middle = (index as f32 + 0.5) * self.scale;
        let first = ((middle - reach).max(0.0) as u32).min(self.from - 1);
        let end = ((middle + reach).ceil() as u32).clamp(first + 1, self.from);
        let share = |sample: u32| (1.0 - ((sample as f32 + 0.5 - middle) / reach).abs()).max(0.0);
        let all: f32 = (first..end).map(share).sum();
        (first..end).for_each(|sample| give(sample, share(sample) / all));
    }
}

#[derive(Debug, Clone, Copy)]
enum PaintLayer {
    Colour,
    Alpha,
}

/// How the properties of an image say that it is shown.
#[derive(PartialEq)]
struct Appearance<'a> {
    colours: ColourProperties<'a>,
    /// The code points of its frames.
    coded: Nclx,
    orientation: u8,
    clean: Option<(u32, u32, u32, u32)>,
}

impl<'a> Appearance<'a> {
    fn of(properties: &[Property<'a>], summary: &Av1Summary, size: (u32, u32)) -> Self {
        Self {
            colours: ColourProperties::of(properties),
            coded: summary.header.colour,
            orientation: isobmff::orientation(properties),
            clean: isobmff::clean_aperture(properties, size),
        }
    }

    /// The code points in the file count, and where there are none those in its frames.
    fn code_points(&self) -> Nclx {
        self.colours.nclx.unwrap_or(self.coded)
    }

    fn frame(&self, canvas: Canvas) -> Frame {
        let Canvas { samples, channels, width, height } = canvas.crop(self.clean);
        let mut frame = Frame::new(samples, channels, (width, height));
        (frame.orientation, frame.colour) = (self.orientation, self.colours.conversion(Some(self.coded)));
        frame
    }

    /// The size that a viewer shows of an image of this size.
    fn shown(&self, size: (u32, u32)) -> (u32, u32) {
        let (width, height) = self.clean.map_or(size, |(_, _, width, height)| (width, height));
        rgb::upright(width, height, self.orientation)
    }
}

/// The bytes for each pixel of a canvas: what is decoded beside it, itself, and the copy over a background.
fn bytes_per_pixel(size: (u32, u32), channels: Channels, beside: u64) -> u64 {
    let pixels = (u64::from(size.0) * u64::from(size.1)).max(1);
    let canvas = match channels {
        Channels::Rgb => 3,
        Channels::Rgba => 4 + 3,
    };
    beside.div_ceil(pixels).saturating_add(canvas)
}

/// The still image is taken unless it is one of the frames that were taken.
fn decode_still(
    items: &Items<'_>,
    animation: Option<&mut Animation<'_>>,
    context: &mut DecodeContext<'_>,
) -> Result<ImageInfo, Undecodable> {
    let colour = Mosaic::of(items, items.primary, None)?;
    let size = (colour.width, colour.height);
    let alpha_id = find_alpha(items, items.primary);
    let alpha = match alpha_id {
        Some(id) => Some(Mosaic::of(items, id, Some(size))?),
        None => tile_alphas(items, &colour)?,
    };
    let lines = alpha.iter().map(Mosaic::whole_lines).chain([colour.whole_lines()]).min().unwrap_or_default();
    if lines == 0 {
        return Err(damaged("the file ends before its pixels"));
    }
    let is_whole = colour.is_whole && alpha.as_ref().is_none_or(|alpha| alpha.is_whole);
    if !is_whole {
        context.record_damage("AVIF", &"the file ends before its last tile");
    }
    if let Some(alpha) = &alpha
        && (alpha.width, alpha.height) != size
    {
        return Err(damaged("its alpha has another size than its colours"));
    }
    let channels = if alpha.is_some() || !is_whole { Channels::Rgba } else { Channels::Rgb };
    for mosaic in alpha.iter().chain([&colour]) {
        context.check_size(mosaic.summary.header.width, mosaic.summary.header.height, 1)?;
    }
    let beside = alpha.as_ref().map_or(0, Mosaic::bytes).max(colour.bytes());
    let hold = context.admit(size.0, size.1, bytes_per_pixel(size, channels, beside))?;
    let properties = items.item(items.primary).map_or(&[][..], |item| &item.properties);
    let appearance = Appearance::of(properties, &colour.summary, size);
    let mut canvas = Canvas::new(size, channels);
    let mut is_sound = colour
        .decode(|frame, at| canvas.paint(frame, appearance.code_points(), PaintLayer::Colour, (at, colour.tile)))?;
    if let Some(alpha) = &alpha {
        is_sound &= alpha.decode(|frame, at| {
            canvas.paint(frame, alpha.summary.header.colour.for_alpha(), PaintLayer::Alpha, (at, alpha.tile))
        })?;
        if alpha_id.is_some_and(|id| items.referred(items.primary, b"prem").contains(&id)) {
            rgb::unmultiply(&mut canvas.samples);
        }
    } else if !is_whole {
        canvas.fill_alpha(lines);
    }
    if !is_sound {
        context.record_damage("AVIF", &DAMAGED_DATA);
    }
    let (width, height) = appearance.shown(size);
    let number = animation.as_ref().map_or(0, |animation| animation.info.frames);
    if animation.is_none_or(|animation| !animation.shows(&canvas, &appearance)) {
        take(&appearance, canvas, number, context)?;
    }
    drop(hold);
    Ok(ImageInfo { format: "avif", width, height, frames: 1 })
}

impl Nclx {
    /// Alpha is luma alone: only its range counts.
    fn for_alpha(self) -> Self {
        Self { matrix: 1, ..self }
    }
}

/// The alpha image of an item.
fn find_alpha(items: &Items<'_>, id: u32) -> Option<u32> {
    let is_alpha_item = |id: &u32| {
        let kind = items.item(*id).and_then(|item| item.property(b"auxC")).and_then(|body| body.get(4..));
        kind.is_some_and(is_alpha)
    };
    items.auxiliary(id).iter().copied().find(is_alpha_item)
}

/// The alpha of a grid whose tiles each have an alpha image.
fn tile_alphas<'a>(items: &Items<'a>, colour: &Mosaic<'a>) -> Result<Option<Mosaic<'a>>, Undecodable> {
    let tiles = items.referred(items.primary, b"dimg");
    let alphas: Option<Vec<_>> = tiles.iter().map(|id| find_alpha(items, *id)).collect();
    let Some(alphas) = alphas.filter(|alphas| !alphas.is_empty()) else { return Ok(None) };
    let columns = colour.columns;
    let rows = u32::try_from(alphas.len()).unwrap_or(u32::MAX) / columns;
    let grid = Grid { rows, columns, width: colour.width, height: colour.height };
    Mosaic::of_grid(items, grid, &alphas).map(Some)
}

/// A track that is being decoded.
struct OpenTrack<'a> {
    track: &'a Track<'a>,
    summary: Av1Summary,
    decoder: Box<dyn Av1Decoder>,
}

impl<'a> OpenTrack<'a> {
    fn of(file: &[u8], track: &'a Track<'a>) -> Result<Self, Undecodable> {
        let first = track.sample(file, 0).ok_or_else(|| damaged("the file ends before its first frame"))?;
        let mut summary = Av1Summary::of(first).ok_or_else(|| damaged("its AV1 data has no valid header"))?;
        // Later samples have frames, too.
        summary.frames = MAX_HELD_FRAMES;
        let options = Av1Options { max_pixels: summary.pixels(), operating_point: 0, takes_last_layer: false };
        let decoder = av1::open(options).map_err(|e| damaged(&e))?;
        Ok(Self { track, summary, decoder })
    }

    /// Decodes the next frame and paints it. Returns whether it is sound.
    fn paint(
        &mut self,
        file: &[u8],
        index: usize,
        colour: Nclx,
        layer: PaintLayer,
        canvas: &mut Canvas,
    ) -> Result<bool, Undecodable> {
        let sample = self.track.sample(file, index).ok_or_else(|| damaged("the file ends before its last frame"))?;
        let frame = self.decoder.decode(sample).map_err(|e| damaged(&e))?;
        let size = (canvas.width, canvas.height);
        canvas.paint(&frame, colour, layer, ((0, 0), size))?;
        Ok(!frame.is_damaged)
    }
}

impl Track<'_> {
    fn sample<'f>(&self, file: &'f [u8], index: usize) -> Option<&'f [u8]> {
        let sample = self.samples.get(index)?;
        file.get(usize::try_from(sample.offset).ok()?..)?.get(..sample.size as usize)
    }
}

/// An animation whose frames were taken.
struct Animation<'a> {
    info: ImageInfo,
    /// Width and height of its canvas.
    size: (u32, u32),
    appearance: Appearance<'a>,
    choice: FrameChoice,
}

impl Animation<'_> {
    /// Whether a frame that was taken looks like this.
    fn shows(&mut self, canvas: &Canvas, appearance: &Appearance<'_>) -> bool {
        let is_alike = (canvas.width, canvas.height) == self.size && *appearance == self.appearance;
        is_alike && !self.choice.takes_last(&canvas.samples)
    }
}

fn decode_animation<'a>(
    file: &[u8],
    tracks: &Tracks<'a>,
    context: &mut DecodeContext<'_>,
) -> Result<Animation<'a>, Undecodable> {
    let track = &tracks.colour;
    let size = (track.width, track.height);
    let count = u32::try_from(track.samples.len()).unwrap_or(u32::MAX);
    if count > MAX_SAMPLES {
        return Err(over_limits(format_args!("it has more than {MAX_SAMPLES} frames")));
    }
    let stored = |track: &Track<'_>| -> usize {
        (0..track.samples.len()).filter_map(|index| track.sample(file, index)).map(<[u8]>::len).sum()
    };
    if [Some(track), tracks.alpha.as_ref()].into_iter().flatten().map(stored).sum::<usize>() > isobmff::max_bytes(file)
    {
        return Err(damaged("the frames in it overlap"));
    }
    let mut colour = OpenTrack::of(file, track)?;
    let mut alpha = tracks.alpha.as_ref().map(|alpha| OpenTrack::of(file, alpha)).transpose()?;
    // Its frames may be larger than they are shown.
    let coded = alpha.iter().chain([&colour]).map(|track| (track.summary.header.width, track.summary.header.height));
    let pixels = coded.chain([size]).map(|(width, height)| u64::from(width) * u64::from(height)).max();
    context.check_animation(count, pixels.unwrap_or_default().saturating_mul(count.into()))?;
    for track in alpha.iter().chain([&colour]) {
        context.check_size(track.summary.header.width, track.summary.header.height, 1)?;
    }
    let channels = if alpha.is_some() { Channels::Rgba } else { Channels::Rgb };
    let decoders = alpha.iter().chain([&colour]).map(|track| track.summary.bytes());
    // The frame before is held, too.
    let before = u64::from(size.0) * u64::from(size.1) * channels.count() as u64;
    let beside = decoders.fold(before, u64::saturating_add);
    let hold = context.admit(size.0, size.1, bytes_per_pixel(size, channels, beside))?;
    let appearance = Appearance::of(&track.properties, &colour.summary, size);
    let durations: Vec<u32> = track.samples.iter().map(|sample| sample.duration_ms).collect();
    let mut choice = FrameChoice::new(&durations, durations.len(), context.limits.max_frames);
    let mut last = None;
    for number in 0..count {
        let index = number as usize;
        let mut canvas = Canvas::new(size, channels);
        let painted =
            colour.paint(file, index, appearance.code_points(), PaintLayer::Colour, &mut canvas).and_then(|is_sound| {
                match &mut alpha {
                    Some(track) => {
                        let range = track.summary.header.colour.for_alpha();
                        Ok(track.paint(file, index, range, PaintLayer::Alpha, &mut canvas)? && is_sound)
                    }
                    None => Ok(is_sound),
                }
            });
        match painted {
            Ok(true) => {}
            Ok(false) => context.record_damage("AVIF", &format!("frame {number}: {DAMAGED_DATA}")),
            Err(error) if number == 0 => return Err(error),
            Err(error) => {
                context.record_damage("AVIF", &format!("frame {number}: {error}"));
                let is_taken = |(_, canvas): &mut (u32, Canvas)| choice.takes_last(&canvas.samples);
                if let Some((number, canvas)) = last.take_if(is_taken) {
                    take(&appearance, canvas, number, context)?;
                }
                break;
            }
        }
        if track.is_premultiplied && alpha.is_some() {
            rgb::unmultiply(&mut canvas.samples);
        }
        last = None;
        if choice.takes(number, &canvas.samples) {
            take(&appearance, canvas, number, context)?;
        } else {
            last = Some((number, canvas));
        }
    }
    drop(hold);
    let (width, height) = appearance.shown(size);
    let info = ImageInfo { format: "avif", width, height, frames: count };
    Ok(Animation { info, size, appearance, choice })
}

fn take(
    appearance: &Appearance<'_>,
    canvas: Canvas,
    number: u32,
    context: &mut DecodeContext<'_>,
) -> Result<(), Undecodable> {
    let mut frame = appearance.frame(canvas);
    frame.number = number;
    context.take(&mut frame)
}
