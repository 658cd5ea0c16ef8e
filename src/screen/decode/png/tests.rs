use std::io::Write;

use flate2::Crc;
use flate2::write::ZlibEncoder;

use super::super::memory_budget::StrictMemory;
use super::super::shown::{is_near, swapping_profile};
use super::super::{DecodeRequest, DecodeScratch, DecodedImage, decode as decode_any};
use super::*;
use crate::config::DecodeConfig;
use crate::detector::{CropRounding, Geometry, ResampleFilter, Resize};
use crate::job::{Background, View};

/// Most pictures are 8x8, and all are prepared for 8x8. So pixels arrive as they are.
const EDGE: u32 = 8;

const RED: [u8; 3] = [255, 0, 0];
const GREEN: [u8; 3] = [0, 255, 0];
const BLUE: [u8; 3] = [0, 0, 255];
const WHITE: [u8; 3] = [255; 3];

fn decode_with(bytes: &[u8], limits: &DecodeConfig) -> Result<DecodedImage, Undecodable> {
    let resize = Resize::Exact { width: EDGE, height: EDGE };
    let (width, height, rounding) = (EDGE, EDGE, CropRounding::Down);
    let geometry = Geometry { resize, filter: ResampleFilter::Bicubic, width, height, rounding };
    let request = DecodeRequest { bytes, geometries: &[geometry], mode: limits.mode };
    decode_any(&request, limits, &StrictMemory::default(), &mut DecodeScratch::new(limits))
}

fn decoded(bytes: &[u8]) -> DecodedImage {
    decode_with(bytes, &DecodeConfig::default()).unwrap()
}

/// The pixel of a view over white, counted over all views over white.
fn pixel(image: &DecodedImage, view: usize, x: usize, y: usize) -> [u8; 3] {
    let over_white = |view: &&super::super::DecodedView| view.view.background == Background::White;
    let view = image.views.iter().filter(over_white).nth(view).unwrap();
    let at = (y * EDGE as usize + x) * 3;
    view.pixels[0].data[at..at + 3].try_into().unwrap()
}

fn views(image: &DecodedImage) -> Vec<View> {
    image.views.iter().map(|view| view.view).collect()
}

/// The numbers of all views over white.
fn numbers(image: &DecodedImage) -> Vec<u32> {
    views(image).iter().filter(|view| view.background == Background::White).map(|view| view.frame).collect()
}

fn chunk(kind: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut crc = Crc::new();
    crc.update(kind);
    crc.update(body);
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&length[..], kind, body, &crc.sum().to_be_bytes()].concat()
}

/// The chunk with another checksum than is right.
fn broken(mut chunk: Vec<u8>) -> Vec<u8> {
    *chunk.last_mut().unwrap() ^= 1;
    chunk
}

fn header(width: u32, height: u32, color: u8, depth: u8, interlaced: u8) -> Vec<u8> {
    let kind = [depth, color, 0, 0, interlaced];
    chunk(b"IHDR", &[&width.to_be_bytes()[..], &height.to_be_bytes(), &kind].concat())
}

fn deflated(raw: &[u8]) -> Vec<u8> {
    // Stored, so that a cut leaves rows.
    let mut encoder = ZlibEncoder::new(Vec::new(), flate2::Compression::none());
    encoder.write_all(raw).unwrap();
    encoder.finish().unwrap()
}

/// The rows of a picture of one colour, as the image data of a chunk.
fn plain(color: [u8; 3], width: usize, height: usize) -> Vec<u8> {
    deflated(&[&[0][..], &color.repeat(width)].concat().repeat(height))
}

fn file(chunks: &[Vec<u8>]) -> Vec<u8> {
    [&b"\x89PNG\r\n\x1a\n"[..], &chunks.concat(), &chunk(b"IEND", b"")].concat()
}

/// An RGB picture with these chunks before its data.
fn rgb_file(before: &[Vec<u8>], color: [u8; 3]) -> Vec<u8> {
    file(&[header(8, 8, 2, 8, 0), before.concat(), chunk(b"IDAT", &plain(color, 8, 8))])
}

fn animation_control(frames: u32) -> Vec<u8> {
    chunk(b"acTL", &[frames.to_be_bytes(), [0; 4]].concat())
}

/// A frame of this place and size: x, y, width, height; then how it is disposed of and blended.
fn frame_control(sequence: u32, place: [u32; 4], dispose: u8, blend: u8) -> Vec<u8> {
    let [left, top, width, height] = place.map(u32::to_be_bytes);
    chunk(
        b"fcTL",
        &[&sequence.to_be_bytes()[..], &width, &height, &left, &top, &[0, 10, 0, 100, dispose, blend]].concat(),
    )
}

fn frame_data(sequence: u32, data: &[u8]) -> Vec<u8> {
    chunk(b"fdAT", &[&sequence.to_be_bytes()[..], data].concat())
}

/// The rows of a picture that is taller than what the decoder holds back.
const TALL: u32 = 16_384;

const WHOLE: [u32; 4] = [0, 0, 8, 8];

#[test]
fn an_index_beyond_the_palette_has_its_last_colour_and_alpha_beyond_it_is_ignored() {
    for depth in [1, 2, 4, 8_u8] {
        let row_bytes = usize::from(depth);
        let file = |colors: &[u8], alpha: &[u8]| {
            let rows = [&[0][..], &vec![0xFF; row_bytes]].concat().repeat(8);
            let colors = [chunk(b"PLTE", colors), chunk(b"tRNS", alpha)].concat();
            file(&[header(8, 8, 3, depth, 0), colors, chunk(b"IDAT", &deflated(&rows))])
        };
        let image = decoded(&file(&[1, 2, 3], &[255; 9]));
        assert_eq!((pixel(&image, 0, 7, 7), image.damage.as_str()), ([1, 2, 3], ""), "{depth} bits");
        assert_eq!(image.views.len(), 1, "all is opaque");
        let image = decoded(&file(&[1, 2, 3], &[0, 255]));
        assert_eq!(views(&image)[1].background, Background::Black, "{depth} bits: the last colour is transparent");
    }
}

#[test]
fn rows_agree_with_those_of_another_decoder_for_every_kind() {
    let kinds = [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (3, 1), (3, 2), (3, 4), (3, 8)];
    for (color, depth) in kinds.into_iter().chain([(4, 8), (4, 16), (6, 8), (6, 16)]) {
        for interlaced in [0, 1] {
            for transparent in [false, true] {
                let (width, height) = (13, 11);
                // Some bytes for a row of every length, each with a filter of 0.
                let raw: Vec<u8> = (0..4000_u32).map(|i| u8::try_from(i * i * 31 % 251).unwrap()).collect();
                let samples = [1, 0, 3, 1, 2, 0, 4][usize::from(color)];
                let row = |columns: usize| (columns * samples * usize::from(depth)).div_ceil(8);
                let rows: Vec<usize> = if interlaced == 0 {
                    vec![row(width as usize); height as usize]
                } else {
                    let passes = [(2, 2), (2, 2), (4, 1), (3, 3), (7, 3), (6, 6), (13, 5)];
                    passes.iter().flat_map(|(columns, rows)| vec![row(*columns); *rows]).collect()
                };
                let data: Vec<u8> = rows
                    .iter()
                    .zip((0..).step_by(17))
                    .flat_map(|(bytes, at)| [&[0], &raw[at..at + bytes]].concat())
                    .collect();
                let colors: Vec<u8> = (0..768_u32).map(|i| u8::try_from(i * 7 % 256).unwrap()).collect();
                let mut chunks = vec![header(width, height, color, depth, interlaced)];
                if color == 3 {
                    chunks.push(chunk(b"PLTE", &colors[..3 << depth]));
                }
                if transparent && color < 4 {
                    let key = if color == 3 { vec![0, 100] } else { vec![0, 1, 0, 1, 0, 1] };
                    chunks.push(chunk(b"tRNS", &key[..if color == 0 { 2 } else { key.len() }]));
                }
                chunks.push(chunk(b"IDAT", &deflated(&data)));
                let bytes = file(&chunks);

                let mut reader = open(&bytes, true).unwrap();
                let mut samples = vec![0; width as usize * height as usize * 4];
                let format = RowFormat::of(reader.info(), None).unwrap();
                let size = (width, height);
                let target = Target { samples: &mut samples, channels: Channels::Rgba, size };
                assert!(read_picture(&mut reader, &format, target).is_ok());
                let expected = image::load_from_memory(&bytes).unwrap().to_rgba8();
                let differ = samples.iter().zip(expected.as_raw()).filter(|(ours, other)| ours.abs_diff(**other) > 1);
                assert_eq!(differ.count(), 0, "type {color}, {depth} bits, interlaced {interlaced}, {transparent}");
            }
        }
    }
}

#[test]
fn a_cut_file_shows_the_rows_that_are_there_and_the_rest_is_transparent() {
    let whole = rgb_file(&[], RED);
    // Rows have 25 bytes, and before them are 60 bytes and those that begin a stream.
    let image = decoded(&whole[..8 + 25 + 8 + 7 + 4 * 25 + 3]);
    assert_eq!((pixel(&image, 0, 0, 3), pixel(&image, 0, 7, 4)), (RED, WHITE));
    assert_eq!(views(&image).last().unwrap().background, Background::Black);
    assert_eq!(image.damage, "PNG: rows of a picture are missing: the file ends too early");
    let error = decode_with(&whole[..60], &DecodeConfig::default()).unwrap_err();
    assert_eq!(error.0, "damaged PNG: the file ends too early");
}

#[test]
fn what_changes_no_pixel_is_no_damage() {
    let data = plain(RED, 8, 8);
    let parts = |before: Vec<u8>, data: &[u8], after: &[u8]| {
        let mut bytes = file(&[header(8, 8, 2, 8, 0), before, chunk(b"IDAT", data)]);
        bytes.truncate(bytes.len() - 12);
        [&bytes, after].concat()
    };
    let mut other_sum = data.clone();
    *other_sum.last_mut().unwrap() ^= 1;
    for (what, bytes) in [
        ("no end marker", parts(Vec::new(), &data, b"")),
        ("junk for an end marker", parts(Vec::new(), &data, b"junk that is no chunk")),
        ("a second picture", [rgb_file(&[], RED), rgb_file(&[], BLUE)].concat()),
        ("a wrong chunk behind the end marker", [rgb_file(&[], RED), broken(chunk(b"IDAT", &data))].concat()),
        ("text with a wrong checksum", parts(broken(chunk(b"tEXt", b"Title\0x")), &data, b"")),
        ("alpha with a wrong checksum", parts(broken(chunk(b"tRNS", &[0, 255, 0, 0, 0, 0])), &data, b"")),
        ("a wrong Adler-32", parts(Vec::new(), &other_sum, b"")),
        ("no Adler-32", parts(Vec::new(), &data[..data.len() - 4], b"")),
    ] {
        let image = decoded(&bytes);
        assert_eq!((pixel(&image, 0, 7, 7), image.damage.as_str(), image.views.len()), (RED, "", 1), "{what}");
    }
}

#[test]
fn image_data_with_a_wrong_checksum_are_shown_and_damaged() {
    let image = decoded(&file(&[header(8, 8, 2, 8, 0), broken(chunk(b"IDAT", &plain(RED, 8, 8)))]));
    assert_eq!((pixel(&image, 0, 7, 7), image.damage.as_str()), (RED, "PNG: the checksum of image data is wrong"));
    // Browsers stop at the checksum. The picture is tall, since the decoder holds back the last rows that it has.
    let data = plain(RED, 8, TALL as usize);
    let (first, second) = data.split_at(data.len() / 2);
    let header = header(8, TALL, 2, 8, 0);
    let image = decoded(&file(&[header, broken(chunk(b"IDAT", first)), chunk(b"IDAT", second)]));
    assert_eq!((pixel(&image, 0, 7, 0), pixel(&image, 0, 7, 6)), (RED, WHITE));
    assert_eq!(image.damage, "PNG: the checksum of image data is wrong");
}

#[test]
fn an_interlaced_picture_is_filled_from_the_passes_that_are_there() {
    let passes = [(1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4)];
    let color = |pass: usize| if pass == 0 { RED } else { GREEN };
    let rows: Vec<u8> = (0..)
        .zip(passes)
        .flat_map(|(pass, (columns, rows))| [&[0][..], &color(pass).repeat(columns)].concat().repeat(rows))
        .collect();
    let whole = file(&[header(8, 8, 2, 8, 1), chunk(b"IDAT", &deflated(&rows))]);
    let image = decoded(&whole);
    assert_eq!((pixel(&image, 0, 0, 0), pixel(&image, 0, 1, 1), image.damage.as_str()), (RED, GREEN, ""));
    let image = decoded(&whole[..8 + 25 + 8 + 7 + 4]);
    assert_eq!((pixel(&image, 0, 0, 0), pixel(&image, 0, 7, 7)), (RED, RED));
    assert!(image.damage.starts_with("PNG: rows of a picture are missing"), "{}", image.damage);
}

#[test]
fn a_default_image_that_is_no_frame_is_one_more_view() {
    let bytes = file(&[
        header(8, 8, 2, 8, 0),
        animation_control(1),
        chunk(b"IDAT", &plain(GREEN, 8, 8)),
        frame_control(0, WHOLE, 0, 0),
        frame_data(1, &plain(RED, 8, 8)),
    ]);
    let image = decoded(&bytes);
    assert_eq!((numbers(&image), image.info.frames, image.damage.as_str()), (vec![0, 1], 1, ""));
    assert_eq!((pixel(&image, 0, 0, 0), pixel(&image, 1, 0, 0)), (RED, GREEN));
}

#[test]
fn frames_that_browsers_do_not_show_are_views() {
    let first = chunk(b"IDAT", &plain(GREEN, 8, 8));
    let control = |sequence| frame_control(sequence, WHOLE, 0, 0);
    let second = |sequence| frame_data(sequence, &plain(RED, 8, 8));
    let one = animation_control(1);
    for (what, damage, chunks) in [
        ("acTL behind the picture", "", [first.clone(), animation_control(2), control(0), second(1)].concat()),
        ("more frames than acTL says", "", [one.clone(), control(0), first.clone(), control(1), second(2)].concat()),
        ("two acTL", "", [one, animation_control(5), control(0), first.clone(), control(1), second(2)].concat()),
        (
            "a gap in the sequence",
            "PNG: chunks of its animation are missing",
            [animation_control(2), control(0), first.clone(), control(2), second(3)].concat(),
        ),
        (
            "a frame with a wrong checksum",
            "PNG: the checksum of image data is wrong",
            [animation_control(2), control(0), first.clone(), control(1), broken(second(2))].concat(),
        ),
        (
            "a frame less than acTL says",
            "PNG: frames are missing: it declares 3 and has 2",
            [animation_control(3), control(0), first, control(1), second(2)].concat(),
        ),
    ] {
        let image = decoded(&file(&[header(8, 8, 2, 8, 0), chunks]));
        assert_eq!((numbers(&image), image.info.frames, image.damage.as_str()), (vec![0, 1], 2, damage), "{what}");
        assert_eq!((pixel(&image, 0, 0, 0), pixel(&image, 1, 0, 0)), (GREEN, RED), "{what}");
    }
}

#[test]
fn frames_that_browsers_do_not_show_push_out_none_that_they_do() {
    let timed = |sequence: u32, seconds: u8, dispose: u8| {
        let edge = EDGE.to_be_bytes();
        let place = [&sequence.to_be_bytes()[..], &edge, &edge, &[0; 8]].concat();
        chunk(b"fcTL", &[&place[..], &[0, seconds, 0, 1, dispose, 0]].concat())
    };
    // Black, red for a minute, and then frames that are hidden and longer.
    let file_of = |declared: u32, bad_dispose: u8, hidden: u8| {
        let first = [timed(0, 1, 0), chunk(b"IDAT", &plain([0; 3], 8, 8))].concat();
        let red = [timed(1, 60, 0), frame_data(2, &plain(RED, 8, 8))].concat();
        let more = (1..=hidden).flat_map(|at| {
            let control = timed(u32::from(at) * 2 + 1, 65, bad_dispose);
            [control, frame_data(u32::from(at) * 2 + 2, &plain([at, 0, 0], 8, 8))].concat()
        });
        let more = more.collect();
        file(&[header(8, 8, 2, 8, 0), animation_control(declared), first, red, more])
    };
    for (what, bytes) in
        [("more frames than acTL says", file_of(2, 0, 100)), ("frames behind a wrong chunk", file_of(102, 7, 100))]
    {
        let image = decoded(&bytes);
        assert_eq!((pixel(&image, 1, 0, 0), numbers(&image).len()), (RED, 8), "{what}");
        assert_eq!(image.damage, "PNG: frames that no browser shows are left out", "{what}");
    }
    let image = decoded(&file_of(2, 0, 6));
    assert_eq!((numbers(&image).len(), image.damage.as_str()), (8, ""), "none is left out");
}

#[test]
fn frames_that_are_missing_or_cut_are_damage() {
    let control = |sequence| frame_control(sequence, WHOLE, 0, 0);
    let first = [animation_control(2), control(0), chunk(b"IDAT", &plain(GREEN, 8, 8))].concat();
    let image = decoded(&file(&[header(8, 8, 2, 8, 0), first]));
    assert_eq!((numbers(&image), image.info.frames), (vec![0], 1));
    assert_eq!(image.damage, "PNG: frames are missing: it declares 2 and has 1");

    let data = plain(RED, 8, TALL as usize);
    let place = [0, 0, 8, TALL];
    let image = decoded(&file(&[
        header(8, TALL, 2, 8, 0),
        animation_control(2),
        frame_control(0, place, 0, 0),
        chunk(b"IDAT", &plain(GREEN, 8, TALL as usize)),
        frame_control(1, place, 0, 0),
        frame_data(2, &data[..data.len() / 2]),
    ]));
    assert_eq!((pixel(&image, 1, 7, 0), pixel(&image, 1, 7, 6)), (RED, GREEN), "what is below stays");
    assert!(image.damage.starts_with("PNG: rows of a picture are missing"), "{}", image.damage);
}

#[test]
fn frames_are_composed_as_they_ask_for() {
    const KEEP: u8 = 0;
    const BACKGROUND: u8 = 1;
    const PREVIOUS: u8 = 2;
    const SOURCE: u8 = 0;
    const OVER: u8 = 1;
    let half = |color: [u8; 3], alpha: u8| {
        deflated(&[&[0][..], &[color[0], color[1], color[2], alpha].repeat(4)].concat().repeat(4))
    };
    let whole =
        |color: [u8; 3]| deflated(&[&[0][..], &[color[0], color[1], color[2], 255].repeat(8)].concat().repeat(8));
    let image = decoded(&file(&[
        header(8, 8, 6, 8, 0),
        animation_control(5),
        frame_control(0, WHOLE, KEEP, SOURCE),
        chunk(b"IDAT", &whole(RED)),
        frame_control(1, [2, 2, 4, 4], PREVIOUS, OVER),
        frame_data(2, &half(BLUE, 128)),
        frame_control(3, [4, 4, 4, 4], BACKGROUND, SOURCE),
        frame_data(4, &half(GREEN, 255)),
        frame_control(5, [0, 0, 4, 4], KEEP, SOURCE),
        frame_data(6, &half(GREEN, 0)),
        // Partly outside: what is inside is drawn.
        frame_control(7, [6, 6, 4, 4], KEEP, OVER),
        frame_data(8, &half(BLUE, 255)),
    ]));
    assert_eq!((numbers(&image), image.damage.as_str()), (vec![0, 1, 2, 3, 4], ""));
    assert_eq!((pixel(&image, 1, 1, 1), pixel(&image, 1, 2, 2)), (RED, [127, 0, 128]));
    assert_eq!((pixel(&image, 2, 2, 2), pixel(&image, 2, 4, 4)), (RED, GREEN));
    assert_eq!((pixel(&image, 3, 0, 0), pixel(&image, 3, 4, 4), pixel(&image, 3, 7, 0)), (WHITE, WHITE, RED));
    assert_eq!((pixel(&image, 4, 6, 6), pixel(&image, 4, 5, 5)), (BLUE, WHITE));
}

#[test]
fn browsers_heed_exif_data_before_the_picture_and_other_viewers_all() {
    let exif = |orientation: u8| {
        let mut exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\0\0\0\0\0\0\0".to_vec();
        exif[19] = orientation;
        exif
    };
    let turned = |bytes: &[u8]| views(&decoded(bytes)).iter().map(|view| view.orientation).collect::<Vec<_>>();
    assert_eq!(turned(&rgb_file(&[chunk(b"eXIf", &exif(6))], RED)), [6]);
    assert_eq!(turned(&rgb_file(&[chunk(b"eXIf", &exif(6)), chunk(b"eXIf", &exif(3))], RED)), [6]);
    assert_eq!(turned(&rgb_file(&[chunk(b"eXIf", &[b"Exif\0\0", &exif(6)[..]].concat())], RED)), [1, 6]);
    let data = chunk(b"IDAT", &plain(RED, 8, 8));
    assert_eq!(turned(&file(&[header(8, 8, 2, 8, 0), data, chunk(b"eXIf", &exif(6))])), [1, 6]);
    let lying = file(&[header(8, 4, 2, 8, 0), chunk(b"eXIf", &exif(6)), chunk(b"IDAT", &plain(RED, 8, 4))]);
    assert_eq!((decoded(&lying).info.width, decoded(&lying).info.height), (4, 8));
}

#[test]
fn the_colour_chunk_that_browsers_prefer_decides() {
    let gamma = chunk(b"gAMA", &100_000_u32.to_be_bytes());
    let grey = |before: &[Vec<u8>]| pixel(&decoded(&rgb_file(before, [128; 3])), 0, 0, 0)[0];
    let linear = 188;
    assert_eq!(grey(std::slice::from_ref(&gamma)), linear);
    assert_eq!(grey(&[gamma.clone(), chunk(b"sRGB", &[0])]), 128);
    assert_eq!(grey(&[gamma.clone(), chunk(b"cICP", &[1, 13, 0, 1])]), 128, "sRGB by cICP");
    assert_eq!(grey(&[gamma.clone(), chunk(b"cICP", &[2, 2, 0, 1])]), linear, "a code that stands for nothing");
    assert_eq!(grey(&[gamma.clone(), chunk(b"cICP", &[1, 13, 0, 0])]), linear, "only the full range is known");
    let profile = [b"x\0\0", &deflated(b"this is no profile")[..]].concat();
    assert_eq!(grey(&[gamma.clone(), chunk(b"iCCP", &profile)]), linear);
    assert_eq!(grey(&[chunk(b"cHRM", &[0, 0, 0x7A, 0x26].repeat(8))]), 128, "cHRM counts beside gAMA only");
    assert_eq!(grey(&[broken(gamma)]), 128);
    let srgb = [b"x\0\0", &deflated(&moxcms::ColorProfile::new_srgb().encode().unwrap())[..]].concat();
    assert_eq!(grey(&[chunk(b"gAMA", &100_000_u32.to_be_bytes()), chunk(b"iCCP", &srgb)]), 128);
    // White, and then blue where red should be, green, and red.
    let swapped = [31_270, 32_900, 15_000, 6_000, 30_000, 60_000, 64_000, 33_000_u32].map(u32::to_be_bytes).concat();
    let red = |before: &[Vec<u8>]| pixel(&decoded(&rgb_file(before, RED)), 0, 0, 0);
    let usual = chunk(b"gAMA", &45_455_u32.to_be_bytes());
    assert!(is_near(&red(&[usual.clone(), chunk(b"cHRM", &swapped)]), BLUE));
    let profile = [b"x\0\0", &deflated(&swapping_profile(moxcms::DataColorSpace::Rgb))[..]].concat();
    assert!(is_near(&red(&[usual, chunk(b"sRGB", &[0]), chunk(b"iCCP", &profile)]), BLUE));
}

#[test]
fn a_profile_that_browsers_heed_and_that_is_too_long_is_refused() {
    let with_profile = |bytes: usize| {
        let mut encoder = ZlibEncoder::new(b"x\0\0".to_vec(), flate2::Compression::fast());
        encoder.write_all(&vec![0; bytes]).unwrap();
        decode_with(&rgb_file(&[chunk(b"iCCP", &encoder.finish().unwrap())], RED), &DecodeConfig::default())
    };
    assert!(with_profile(1 << 20).is_ok());
    assert_eq!(with_profile(17 << 20).unwrap_err().0, "over the decode limits: PNG: its colour profile is too long");
    assert!(with_profile(65 << 20).is_ok(), "browsers ignore it, too");
}

#[test]
fn reasons_name_chunks_in_words() {
    let bytes = file(&[header(8, 8, 2, 8, 0), chunk(b"ABCD", b""), chunk(b"IDAT", &plain(RED, 8, 8))]);
    let error = decode_with(&bytes, &DecodeConfig::default()).unwrap_err();
    assert_eq!(error.0, "damaged PNG: Unrecognized critical chunk: ABCD");
}

#[test]
fn a_curve_does_not_show_the_low_byte_of_grey() {
    let grey = deflated(&[&[0][..], &[0, 250].repeat(8)].concat().repeat(8));
    let file = |before: Vec<u8>| file(&[header(8, 8, 0, 16, 0), before, chunk(b"IDAT", &grey)]);
    assert_eq!(pixel(&decoded(&file(Vec::new())), 0, 0, 0), [1; 3]);
    let steep = chunk(b"gAMA", &500_000_u32.to_be_bytes());
    assert_eq!(pixel(&decoded(&file(steep)), 0, 0, 0), [0; 3]);
}

#[test]
fn a_profile_is_read_once_however_many_frames_there_are() {
    let grey = |level: u8| deflated(&[&[0][..], &[level; 16]].concat().repeat(8));
    let frames = (0..9_u8).flat_map(|at| {
        let sequence = u32::from(at) * 2 + 1;
        [frame_control(sequence, WHOLE, 0, 0), frame_data(sequence + 1, &grey(at))].concat()
    });
    let before = [animation_control(10), chunk(b"gAMA", &100_000_u32.to_be_bytes()), frame_control(0, WHOLE, 0, 0)];
    let bytes =
        file(&[header(8, 8, 0, 16, 0), before.concat(), chunk(b"IDAT", &grey(128)), frames.collect::<Vec<u8>>()]);
    let calls = colour::CALLS.get();
    let image = decoded(&bytes);
    assert_eq!((numbers(&image).len(), pixel(&image, 0, 0, 0), image.damage.as_str()), (8, [188; 3], ""));
    assert_eq!(colour::CALLS.get() - calls, 1);
}

#[test]
fn an_animation_of_too_many_pixels_is_refused() {
    let frames: Vec<u8> = (0..9)
        .flat_map(|i| [frame_control(2 * i, WHOLE, 0, 0), frame_data(2 * i + 1, &plain(RED, 8, 8))].concat())
        .collect();
    let first = chunk(b"IDAT", &plain(GREEN, 8, 8));
    let bytes = file(&[header(8, 8, 2, 8, 0), animation_control(9), first, frames]);
    let limits = DecodeConfig { max_animation_pixels: 8 * 2048, ..DecodeConfig::default() };
    let error = decode_with(&bytes, &limits).unwrap_err();
    assert_eq!(error.0, "over the decode limits: 9 frames are 18432 pixels, the limit is 16384");
}
