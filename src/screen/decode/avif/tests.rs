//! The pictures were drawn for these tests, 16 × 8 pixels, the left half red (200, 30, 20) and the right half blue
//! (20, 30, 200), and encoded with Pillow 13: `Image.save(path, "AVIF", quality=90)`.

use base64::Engine;

use super::super::isobmff::Code;
use super::super::shown::{colours, decode_columns, is_near, swapping_profile};
use super::super::{DecodedImage, Undecodable};
use crate::config::DecodeConfig;
use crate::job::{Background, ImageInfo};

const STILL: &str = "AAAAIGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZk1BMUIAAADrbWV0YQAAAAAAAAAhaGRscgAAAAAAAAAAcGljdAAAAAAAAAAAAAAAAAAAAAAOcG\
     l0bQAAAAAAAQAAAB5pbG9jAAAAAEQAAAEAAQAAAAEAAAETAAAAOAAAAChpaW5mAAAAAAABAAAAGmluZmUCAAAAAAEAAGF2MDFDb2xvcgAAAABq\
     aXBycAAAAEtpcGNvAAAAFGlzcGUAAAAAAAAAEAAAAAgAAAAQcGl4aQAAAAADCAgIAAAADGF2MUOBAAwAAAAAE2NvbHJuY2x4AAEADQAGgAAAAB\
     dpcG1hAAAAAAAAAAEAAQQBAoMEAAAAQG1kYXQSAAoIGAy/tEBDQaEyKhIH9/apAIIIPkAAAP/RPQh1K1vHCctT8acNkr3bmj1swcAsURAYNw1U\
     gA==";

/// The right half is blue and transparent.
const ALPHA: &str = "AAAAIGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZk1BMUEAAAGGbWV0YQAAAAAAAAAhaGRscgAAAAAAAAAAcGljdAAAAAAAAAAAAAAAAAAAAAAOcG\
     l0bQAAAAAAAQAAACxpbG9jAAAAAEQAAAIAAQAAAAEAAAHJAAAAOQACAAAAAQAAAa4AAAAbAAAAQmlpbmYAAAAAAAIAAAAaaW5mZQIAAAAAAQAA\
     YXYwMUNvbG9yAAAAABppbmZlAgAAAAACAABhdjAxQWxwaGEAAAAAGmlyZWYAAAAAAAAADmF1eGwAAgABAAEAAADDaXBycAAAAJ1pcGNvAAAAFG\
     lzcGUAAAAAAAAAEAAAAAgAAAAQcGl4aQAAAAADCAgIAAAADGF2MUOBIAAAAAAAE2NvbHJuY2x4AAEADQAGgAAAAA5waXhpAAAAAAEIAAAADGF2\
     MUOBABwAAAAAOGF1eEMAAAAAdXJuOm1wZWc6bXBlZ0I6Y2ljcDpzeXN0ZW1zOmF1eGlsaWFyeTphbHBoYQAAAAAeaXBtYQAAAAAAAAACAAEEAQ\
     KDBAACBAEFhgcAAABcbWRhdBIACgUYDL+wqDIQEYAAAQC3UFJadSy36vktgBIACgg4DL+0gIaDSDIrEgJDSoBBBB8gAAD/0T0EgpmQEkzMuTEW\
     +L2LZeLKVjiUC5qtVLhlMt1zkA==";

/// Three frames of 100, 200 and 300 ms: as above, the halves exchanged, and all red.
const ANIMATION: &str = "AAAALGZ0eXBhdmlzAAAAAGF2aWZhdmlzbXNmMWlzbzhtaWYxbWlhZk1BMUEAAADrbWV0YQAAAAAAAAAhaGRscgAAAAAAAAAAcGljdAAAAAAAAA\
     AAAAAAAAAAAAAOcGl0bQAAAAAAAQAAAB5pbG9jAAAAAEQAAAEAAQAAAAEAAAP5AAAAMwAAAChpaW5mAAAAAAABAAAAGmluZmUCAAAAAAEAAGF2\
     MDFDb2xvcgAAAABqaXBycAAAAEtpcGNvAAAAFGlzcGUAAAAAAAAAEAAAAAgAAAAQcGl4aQAAAAADCAgIAAAADGF2MUOBIAAAAAAAE2NvbHJuY2\
     x4AAEADQAGgAAAABdpcG1hAAAAAAAAAAEAAQQBAoMEAAAC2m1vb3YAAAB4bXZoZAEAAAAAAAAA5zMaFQAAAADnMxoVAAAD6P//////////AAEA\
     AAEAAAAAAAAAAAAAAAABAAAAAAAAAAAAAAAAAAAAAQAAAAAAAAAAAAAAAAAAQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAEAAAJadH\
     JhawAAAGh0a2hkAQAAAQAAAADnMxoVAAAAAOczGhUAAAABAAAAAP//////////AAAAAAAAAAAAAAAAAAAAAAABAAAAAAAAAAAAAAAAAAAAAQAA\
     AAAAAAAAAAAAAAAAQAAAAAAQAAAACAAAAAAALGVkdHMAAAAkZWxzdAEAAAEAAAABAAAAAAAAAlgAAAAAAAAAAAABAAAAAAG+bWRpYQAAACxtZG\
     hkAQAAAAAAAADnMxoVAAAAAOczGhUAAAPoAAAAAAAAAlhVxAAAAAAAIWhkbHIAAAAAAAAAAHBpY3QAAAAAAAAAAAAAAAAAAAABaW1pbmYAAAAU\
     dm1oZAAAAAEAAAAAAAAAAAAAACRkaW5mAAAAHGRyZWYAAAAAAAAAAQAAAAx1cmwgAAAAAQAAASlzdGJsAAAAlXN0c2QAAAAAAAAAAQAAAIVhdj\
     AxAAAAAAAAAAEAAAAAAAAAAAAAAAAAAAAAABAACABIAAAASAAAAAAAAAABCkFPTSBDb2RpbmcAAAAAAAAAAAAAAAAAAAAAAAAAAAAAGP//AAAA\
     DGF2MUOBIAAAAAAAE2NvbHJuY2x4AAEADQAGgAAAABBjY3N0AAAAAHwAAAAAAAAoc3R0cwAAAAAAAAADAAAAAQAAAGQAAAABAAAAyAAAAAEAAA\
     EsAAAAHHN0c2MAAAAAAAAAAQAAAAEAAAADAAAAAQAAACBzdHN6AAAAAAAAAAAAAAADAAAAMwAAACwAAAAXAAAAFHN0Y28AAAAAAAAAAQAAA/kA\
     AAAUc3RzcwAAAAAAAAABAAAAAQAAAH5tZGF0EgAKDCAAAAGX82vmgIaDSDIhEACMAAACAAAAtxTbtbMys24N+sR8yJo8kZREIrPC3ARAEgAyKD\
     ADwIAAAEaMAAACAAAAgAC/4/Dev6n72vFy1VRsQfVPhXRnZLnRz+oSADITMAXBBAAARowAAAIAAACAAOGLZg==";

/// Two frames of 100 ms, half transparent: as above, and the halves exchanged.
const ALPHA_ANIMATION: &str = "AAAALGZ0eXBhdmlzAAAAAGF2aWZhdmlzbXNmMWlzbzhtaWYxbWlhZk1BMUIAAAGGbWV0YQAAAAAAAAAhaGRscgAAAAAAAAAAcGljdAAAAAAAAAAA\
     AAAAAAAAAAAOcGl0bQAAAAAAAQAAACxpbG9jAAAAAEQAAAIAAQAAAAEAAAcsAAAANQACAAAAAQAABv8AAAAYAAAAQmlpbmYAAAAAAAIAAAAaaW5m\
     ZQIAAAAAAQAAYXYwMUNvbG9yAAAAABppbmZlAgAAAAACAABhdjAxQWxwaGEAAAAAGmlyZWYAAAAAAAAADmF1eGwAAgABAAEAAADDaXBycAAAAJ1p\
     cGNvAAAAFGlzcGUAAAAAAAAAEAAAAAgAAAAQcGl4aQAAAAADCAgIAAAADGF2MUOBAAwAAAAAE2NvbHJuY2x4AAEADQAGgAAAAA5waXhpAAAAAAEI\
     AAAADGF2MUOBABwAAAAAOGF1eEMAAAAAdXJuOm1wZWc6bXBlZ0I6Y2ljcDpzeXN0ZW1zOmF1eGlsaWFyeTphbHBoYQAAAAAeaXBtYQAAAAAAAAAC\
     AAEEAQKDBAACBAEFhgcAAAVFbW9vdgAAAHhtdmhkAQAAAAAAAAAAAAAAAAAAAAAAAAAAAAPo//////////8AAQAAAQAAAAAAAAAAAAAAAAEAAAAA\
     AAAAAAAAAAAAAAABAAAAAAAAAAAAAAAAAABAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAgAAAkZ0cmFrAAAAaHRraGQBAAABAAAAAAAA\
     AAAAAAAAAAAAAAAAAAEAAAAA//////////8AAAAAAAAAAAAAAAAAAAAAAAEAAAAAAAAAAAAAAAAAAAABAAAAAAAAAAAAAAAAAABAAAAAABAAAAAI\
     AAAAAAAsZWR0cwAAACRlbHN0AQAAAQAAAAEAAAAAAAAAyAAAAAAAAAAAAAEAAAAAAaptZGlhAAAALG1kaGQBAAAAAAAAAAAAAAAAAAAAAAAAAAAA\
     A+gAAAAAAAAAyFXEAAAAAAAhaGRscgAAAAAAAAAAcGljdAAAAAAAAAAAAAAAAAAAAAFVbWluZgAAABR2bWhkAAAAAQAAAAAAAAAAAAAAJGRpbmYA\
     AAAcZHJlZgAAAAAAAAABAAAADHVybCAAAAABAAABFXN0YmwAAACVc3RzZAAAAAAAAAABAAAAhWF2MDEAAAAAAAAAAQAAAAAAAAAAAAAAAAAAAAAA\
     EAAIAEgAAABIAAAAAAAAAAEKQU9NIENvZGluZwAAAAAAAAAAAAAAAAAAAAAAAAAAAAAY//8AAAAMYXYxQ4EADAAAAAATY29scm5jbHgAAQANAAaA\
     AAAAEGNjc3QAAAAAfAAAAAAAABhzdHRzAAAAAAAAAAEAAAACAAAAZAAAABxzdHNjAAAAAAAAAAEAAAABAAAAAgAAAAEAAAAcc3RzegAAAAAAAAAA\
     AAAAAgAAADUAAAAsAAAAFHN0Y28AAAAAAAAAAQAABywAAAAUc3RzcwAAAAAAAAABAAAAAQAAAn90cmFrAAAAaHRraGQBAAABAAAAAAAAAAAAAAAA\
     AAAAAAAAAAIAAAAA//////////8AAAAAAAAAAAAAAAAAAAAAAAEAAAAAAAAAAAAAAAAAAAABAAAAAAAAAAAAAAAAAABAAAAAABAAAAAIAAAAAAAU\
     dHJlZgAAAAxhdXhsAAAAAQAAACxlZHRzAAAAJGVsc3QBAAABAAAAAQAAAAAAAADIAAAAAAAAAAAAAQAAAAABz21kaWEAAAAsbWRoZAEAAAAAAAAA\
     AAAAAAAAAAAAAAAAAAAD6AAAAAAAAADIVcQAAAAAACFoZGxyAAAAAAAAAABhdXh2AAAAAAAAAAAAAAAAAAAAAXptaW5mAAAAFHZtaGQAAAABAAAA\
     AAAAAAAAAAAkZGluZgAAABxkcmVmAAAAAAAAAAEAAAAMdXJsIAAAAAEAAAE6c3RibAAAALpzdHNkAAAAAAAAAAEAAACqYXYwMQAAAAAAAAABAAAA\
     AAAAAAAAAAAAAAAAAAAQAAgASAAAAEgAAAAAAAAAAQpBT00gQ29kaW5nAAAAAAAAAAAAAAAAAAAAAAAAAAAAABj//wAAAAxhdjFDgQAcAAAAABBj\
     Y3N0AAAAAHwAAAAAAAA4YXV4aQAAAAB1cm46bXBlZzptcGVnQjpjaWNwOnN5c3RlbXM6YXV4aWxpYXJ5OmFscGhhAAAAABhzdHRzAAAAAAAAAAEA\
     AAACAAAAZAAAABxzdHNjAAAAAAAAAAEAAAABAAAAAgAAAAEAAAAcc3RzegAAAAAAAAAAAAAAAgAAABgAAAAVAAAAFHN0Y28AAAAAAAAAAQAABv8A\
     AAAUc3RzcwAAAAAAAAABAAAAAQAAAJZtZGF0EgAKCQAAAAGX82vmqDIJEACBAAAIACAMEgAyETADwIAAAEaMAAAIAAgA4IFAEgAKDAAAAAGX82vm\
     QENBoTIjEACBAAACAAAAtxFxrVMUZse7aWzhu6Qpq2JhEaUUUJfHhoASADIoMAPAgAAARowAAAIAAACAAL/j8N6/qtiFAciP39Z4yzFsxwZPH7D9\
     gA==";

/// 64 × 64 pixels.
const TILE: &str = "AAAAIGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZk1BMUIAAADrbWV0YQAAAAAAAAAhaGRscgAAAAAAAAAAcGljdAAAAAAAAAAAAAAAAAAAAAAOcG\
     l0bQAAAAAAAQAAAB5pbG9jAAAAAEQAAAEAAQAAAAEAAAETAAAAOAAAAChpaW5mAAAAAAABAAAAGmluZmUCAAAAAAEAAGF2MDFDb2xvcgAAAABq\
     aXBycAAAAEtpcGNvAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAQcGl4aQAAAAADCAgIAAAADGF2MUOBAAwAAAAAE2NvbHJuY2x4AAEADQAGgAAAAB\
     dpcG1hAAAAAAAAAAEAAQQBAoMEAAAAQG1kYXQSAAoJGBV//aICGg0IMikTx4eGZQGGGH4QAAAAwhETqBsCI0FQu+gEX3MOofLhX9oSGkaaK2cY\
     gA==";

fn file(base64: &str) -> Vec<u8> {
    base64::engine::general_purpose::STANDARD.decode(base64).unwrap()
}

fn decode(bytes: &[u8]) -> Result<DecodedImage, Undecodable> {
    decode_columns(bytes, 8, &DecodeConfig::default())
}

fn info(width: u32, height: u32, frames: u32) -> ImageInfo {
    ImageInfo { format: "avif", width, height, frames }
}

/// Other programs compute with whole numbers, so that they round otherwise.
fn assert_near(pixel: &[u8], shown: [u8; 3]) {
    assert!(pixel.iter().zip(shown).all(|(found, shown)| found.abs_diff(shown) < 2), "{pixel:?} for {shown:?}");
}

#[test]
fn a_still_image_is_shown() {
    let image = decode(&file(STILL)).unwrap();
    assert_eq!((image.info, image.damage.as_str()), (info(16, 8, 1), ""));
    assert_eq!((colours(&image, 0).as_str(), image.views.len()), ("RRRRBBBB", 1));
    let pixels = &image.views[0].pixels[0].data;
    // As Chromium and Pillow show it, and not as it was drawn: its quality is 90.
    assert_near(&pixels[..3], [197, 32, 22]);
    assert_near(&pixels[21..], [22, 30, 193]);
}

#[test]
fn a_still_image_that_is_cut_shows_nothing() {
    let whole = file(STILL);
    for length in 0..whole.len() {
        assert!(decode(&whole[..length]).is_err(), "cut to {length} bytes");
    }
    // What follows the image is no matter.
    assert!(decode(&[&whole[..], b"junk behind it"].concat()).is_ok());
}

#[test]
fn alpha_is_shown_over_both_backgrounds() {
    let image = decode(&file(ALPHA)).unwrap();
    assert_eq!((colours(&image, 0).as_str(), image.views[0].view.background), ("RRRRWWWW", Background::White));
    assert_eq!((colours(&image, 1).as_str(), image.views[1].view.background), ("RRRRKKKK", Background::Black));
}

#[test]
fn all_frames_of_an_animation_are_shown_and_those_before_the_end_of_a_cut_one() {
    let whole = file(ANIMATION);
    let image = decode(&whole).unwrap();
    assert_eq!((image.info, image.damage.as_str()), (info(16, 8, 3), ""));
    let found: Vec<_> = (0..3).map(|view| (image.views[view].view.frame, colours(&image, view))).collect();
    assert_eq!(found, [(0, "RRRRBBBB".into()), (1, "BBBBRRRR".into()), (2, "RRRRRRRR".into())]);
    let cut = decode(&whole[..whole.len() - 1]).unwrap();
    assert_eq!((cut.info.frames, cut.views.len()), (3, 2));
    assert_eq!(cut.damage, "AVIF: frame 2: damaged AVIF: the file ends before its last frame");
    let few = DecodeConfig { max_frames: 1, ..DecodeConfig::default() };
    assert_eq!(decode_columns(&whole, 8, &few).unwrap().views.len(), 1);
    let small = DecodeConfig { max_animation_pixels: 16 * 8 * 3 - 1, ..DecodeConfig::default() };
    assert!(decode_columns(&whole, 8, &small).unwrap_err().0.starts_with("over the decode limits"));
}

#[test]
fn the_still_image_of_an_animated_file_is_shown_beside_the_frames() {
    let mut whole = file(ANIMATION);
    // Only the still image is mirrored: the property `pixi` becomes one for that.
    let pixi = whole.windows(4).position(|code| code == b"pixi").unwrap();
    whole[pixi..pixi + 5].copy_from_slice(b"imir\x01");
    for (brand, frames) in [(b"avis", 3), (b"avif", 1)] {
        whole[8..12].copy_from_slice(brand);
        let image = decode(&whole).unwrap();
        assert_eq!((image.info, image.damage.as_str()), (info(16, 8, frames), ""));
        let found: Vec<_> = (0..4).map(|view| (image.views[view].view.frame, colours(&image, view))).collect();
        let frames = [(0, "RRRRBBBB".into()), (1, "BBBBRRRR".into()), (2, "RRRRRRRR".into())];
        assert_eq!((&found[..3], &found[3], image.views.len()), (&frames[..], &(3, "BBBBRRRR".into()), 4));
    }
}

#[test]
fn a_still_image_or_an_animation_that_browsers_do_not_show_is_damage_where_it_is_broken() {
    let whole = file(ANIMATION);
    let without = |brand: &[u8], code: &[u8]| {
        let mut changed = whole.clone();
        changed[8..12].copy_from_slice(brand);
        let at = changed.windows(4).position(|found| found == code).unwrap();
        changed[at] = b'?';
        decode(&changed)
    };
    assert_eq!(without(b"avis", b"ispe").unwrap().damage, "AVIF: its still image: damaged AVIF: an image has no size");
    assert_eq!(without(b"avif", b"ispe").unwrap_err().0, "damaged AVIF: an image has no size");
    assert_eq!(without(b"avif", b"moov").unwrap().damage, "");
}

/// An item of a file that a test makes.
struct TestItem {
    kind: Code,
    data: Vec<u8>,
    /// Whole boxes. Those of a capital first letter are essential, and get a small one.
    properties: Vec<Vec<u8>>,
}

fn boxed(kind: &Code, body: &[u8]) -> Vec<u8> {
    [&u32::try_from(body.len() + 8).unwrap().to_be_bytes()[..], kind, body].concat()
}

fn ispe(width: u32, height: u32) -> Vec<u8> {
    boxed(b"ispe", &[[0; 4], width.to_be_bytes(), height.to_be_bytes()].concat())
}

/// An image of 64 × 64 pixels, with these properties beside its size.
fn tile(properties: &[Vec<u8>]) -> TestItem {
    // Where the box `iloc` says that its data is.
    let data = file(TILE)[0x113..].to_vec();
    TestItem { kind: *b"av01", data, properties: [&[ispe(64, 64)], properties].concat() }
}

/// A grid of `rows` × 2 tiles of 64 × 64 pixels.
fn grid(rows: u8, width: u16, height: u16) -> TestItem {
    let [w, h] = [width, height].map(u16::to_be_bytes);
    let data = vec![0, 0, rows - 1, 1, w[0], w[1], h[0], h[1]];
    TestItem { kind: *b"grid", data, properties: vec![ispe(width.into(), height.into())] }
}

/// A kind of reference, the item that refers, and the items that it refers to, counted from 0.
type Reference = (&'static Code, usize, Vec<usize>);

/// A file with these items, of which the first is shown and is made of the others.
fn heif(items: &[TestItem]) -> Vec<u8> {
    let tiles: Option<Reference> = (items.len() > 1).then(|| (b"dimg", 0, (1..items.len()).collect()));
    heif_with(items, tiles.as_slice())
}

/// A file with these items, of which the first is shown. Their data lies at its end.
fn heif_with(items: &[TestItem], references: &[Reference]) -> Vec<u8> {
    let id = |index: usize| u16::try_from(index + 1).unwrap().to_be_bytes();
    let count = id(items.len() - 1);
    let make = |data_at: usize| {
        let (mut iinf, mut iloc) = ([&[0; 4][..], &count].concat(), [&[0, 0, 0, 0, 0x44, 0][..], &count].concat());
        let (mut ipco, mut ipma) = (Vec::new(), [&[0; 6][..], &count].concat());
        let (mut at, mut properties) = (data_at, 0u8);
        for (index, item) in items.iter().enumerate() {
            iinf.extend(boxed(b"infe", &[&[2, 0, 0, 0][..], &id(index), &[0, 0], &item.kind, &[0]].concat()));
            let [offset, length] = [at, item.data.len()].map(|number| u32::try_from(number).unwrap().to_be_bytes());
            iloc.extend([&id(index)[..], &[0, 0, 0, 1], &offset, &length].concat());
            at += item.data.len();
            ipma.extend([&id(index)[..], &[u8::try_from(item.properties.len()).unwrap()]].concat());
            for property in &item.properties {
                let mut property = property.clone();
                properties += 1;
                ipma.push(properties | if property[4].is_ascii_uppercase() { 0x80 } else { 0 });
                property[4].make_ascii_lowercase();
                ipco.extend(property);
            }
        }
        let mut iref = vec![0; 4];
        for (kind, from, to) in references {
            let all: Vec<u8> = to.iter().copied().flat_map(id).collect();
            iref.extend(boxed(kind, &[&id(*from)[..], &id(to.len() - 1), &all].concat()));
        }
        let handler = boxed(b"hdlr", &[&[0; 8][..], b"pict", &[0; 13]].concat());
        let iprp = boxed(b"iprp", &[boxed(b"ipco", &ipco), boxed(b"ipma", &ipma)].concat());
        let boxes = [
            handler,
            boxed(b"pitm", &[0, 0, 0, 0, 0, 1]),
            boxed(b"iinf", &iinf),
            boxed(b"iloc", &iloc),
            iprp,
            boxed(b"iref", &iref),
        ];
        let meta = boxed(b"meta", &[&[0; 4][..], &boxes.concat()].concat());
        [boxed(b"ftyp", b"avif\0\0\0\0mif1"), meta].concat()
    };
    let data: Vec<u8> = items.iter().flat_map(|item| item.data.clone()).collect();
    let head = make(make(0).len());
    [head, data].concat()
}

#[test]
fn the_tiles_of_a_grid_lie_side_by_side_and_the_last_are_cropped() {
    let whole = heif(&[grid(2, 112, 96), tile(&[]), tile(&[]), tile(&[]), tile(&[])]);
    let image = decode_columns(&whole, 7, &DecodeConfig::default()).unwrap();
    assert_eq!((image.info, image.damage.as_str()), (info(112, 96, 1), ""));
    assert_eq!(colours(&image, 0), "RRBBRRB");
    // Without its last tile the second row is transparent, and the middle line is in the first one.
    let image = decode(&whole[..whole.len() - 1]).unwrap();
    assert_eq!(image.damage, "AVIF: the file ends before its last tile");
    assert_eq!(image.views.len(), 1, "the middle line is opaque");
}

#[test]
fn rows_of_tiles_that_are_missing_are_transparent() {
    let tiles = || (0..6).map(|_| tile(&[]));
    let items: Vec<_> = std::iter::once(grid(3, 112, 190)).chain(tiles()).collect();
    let whole = heif(&items);
    // The middle line is in the second row, of which the first tile is there and the second is not.
    let image =
        decode_columns(&whole[..whole.len() - 2 * items[1].data.len() - 1], 7, &DecodeConfig::default()).unwrap();
    assert_eq!(image.damage, "AVIF: the file ends before its last tile");
    assert_eq!([0, 1].map(|view| colours(&image, view)), ["WWWWWWW", "KKKKKKK"]);
}

fn alpha_tile() -> TestItem {
    tile(&[boxed(b"auxC", b"\0\0\0\0urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0")])
}

#[test]
fn colours_that_were_multiplied_by_alpha_are_divided_by_it() {
    let over_black = |references: &[Reference]| {
        let image = decode(&heif_with(&[tile(&[]), alpha_tile()], references)).unwrap();
        assert_eq!((image.views[1].view.background, image.damage.as_str()), (Background::Black, ""));
        image.views[1].pixels[0].data[..3].to_vec()
    };
    // The luma of this red is 80, which is its alpha here.
    let plain = over_black(&[(b"auxl", 1, vec![0])]);
    assert!(is_near(&plain, [62, 10, 7]), "{plain:?}");
    let multiplied = over_black(&[(b"auxl", 1, vec![0]), (b"prem", 0, vec![1])]);
    assert!(is_near(&multiplied, [80, 32, 22]), "{multiplied:?}");
}

#[test]
fn an_animation_may_have_an_alpha_track_by_which_its_colours_are_multiplied() {
    let mut whole = file(ALPHA_ANIMATION);
    let over_black = |bytes: &[u8]| {
        let image = decode(bytes).unwrap();
        assert_eq!((image.info, image.damage.as_str()), (info(16, 8, 2), ""));
        let mut black = image.views.iter().filter(|view| view.view.background == Background::Black);
        let first = black.next().unwrap().pixels[0].data[..3].to_vec();
        (first, black.count())
    };
    let (plain, others) = over_black(&whole);
    assert_eq!(others, 1);
    assert!(is_near(&plain, [99, 16, 11]), "{plain:?}");
    // The edit list of the colour track, which is not needed, makes room for a reference to its alpha track.
    let edits = whole.windows(4).position(|code| code == b"edts").unwrap();
    let reference = boxed(b"tref", &[boxed(b"prem", &2u32.to_be_bytes()), boxed(b"free", &[0; 16])].concat());
    whole[edits - 4..][..44].copy_from_slice(&reference);
    let (multiplied, others) = over_black(&whole);
    assert!(is_near(&multiplied, [128, 32, 22]), "{multiplied:?}");
    assert_eq!(others, 2, "the still image, too, which now looks different");
}

#[test]
fn the_tiles_of_a_grid_may_have_alpha_each() {
    let items = [grid(1, 112, 64), tile(&[]), tile(&[]), alpha_tile(), alpha_tile()];
    let tiles = (b"dimg", 0, vec![1, 2]);
    let opaque = decode(&heif_with(&items, std::slice::from_ref(&tiles))).unwrap();
    assert_eq!(opaque.views.len(), 1);
    let image = decode(&heif_with(&items, &[tiles, (b"auxl", 3, vec![1]), (b"auxl", 4, vec![2])])).unwrap();
    assert_eq!((image.views.len(), image.damage.as_str()), (2, ""));
}

#[test]
fn colours_are_those_of_the_profile_or_of_the_code_points() {
    let shown = |properties: &[Vec<u8>]| decode(&heif(&[tile(properties)])).unwrap();
    let plain = shown(&[]);
    let profile = swapping_profile(moxcms::DataColorSpace::Rgb);
    let swapped = boxed(b"colr", &[b"prof", &profile[..]].concat());
    // H.273: the primaries of sRGB, this transfer, the matrix of BT.601, the full range.
    let code_points = |transfer: u8| boxed(b"colr", &[&b"nclx\0\x01\0"[..], &[transfer, 0, 6, 0x80]].concat());
    assert_eq!(colours(&shown(&[code_points(8), swapped]), 0), "BBBBRRRR");
    // Linear light looks brighter once it is encoded.
    let pixel = &plain.views[0].pixels[0].data[..3];
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a level is a byte")]
    let encoded = |level: u8| ((1.055 * (f64::from(level) / 255.0).powf(1.0 / 2.4) - 0.055) * 255.0).round() as u8;
    let linear = shown(&[code_points(8)]);
    assert_near(&linear.views[0].pixels[0].data[..3], [encoded(pixel[0]), encoded(pixel[1]), encoded(pixel[2])]);
    // Browsers show the curve of films' cameras as if it was sRGB's.
    assert!(shown(&[code_points(1)]).views[0].pixels == plain.views[0].pixels);
}

#[test]
fn data_that_ends_before_its_pixels_shows_what_zeros_behind_it_would() {
    let mut tile = tile(&[]);
    // The unit of its frame begins with its kind and its size.
    let frame = 13;
    assert_eq!(tile.data[frame..frame + 2], [0x32, 41]);
    tile.data[frame + 1] = 36;
    tile.data.truncate(frame + 2 + 36);
    let image = decode_columns(&heif(&[tile]), 64, &DecodeConfig::default()).unwrap();
    assert_eq!((image.info, image.damage.as_str()), (info(64, 64, 1), "AVIF: its AV1 data is damaged"));
    // As Chromium shows the 33rd line.
    for (x, shown) in [(0, [203, 33, 25]), (20, [191, 24, 13]), (50, [173, 0, 188])] {
        assert_near(&image.views[0].pixels[0].data[3 * x..][..3], shown);
    }
}

#[test]
fn a_frame_whose_data_ends_before_its_pixels_is_damage() {
    let mut whole = file(ANIMATION);
    // The unit of the second frame begins with its kind and its size.
    let frame = 0x3F9 + 0x33 + 2;
    assert_eq!(whole[frame..frame + 2], [0x32, 40]);
    whole[frame + 1] = 32;
    // Padding (AV1 specification, 6.2.2) takes the place of its end.
    whole[frame + 2 + 32..][..8].copy_from_slice(&[0x7A, 6, 0, 0, 0, 0, 0, 0]);
    let image = decode(&whole).unwrap();
    assert_eq!((image.info.frames, image.damage.as_str()), (3, "AVIF: frame 1: its AV1 data is damaged"));
    assert_eq!(colours(&image, 0), "RRRRBBBB");
}

#[test]
fn a_grid_whose_tiles_do_not_cover_it_is_damaged() {
    for (grid, tiles) in [(grid(1, 112, 64), 1), (grid(1, 129, 64), 2), (grid(1, 64, 64), 2), (grid(1, 112, 65), 2)] {
        let items: Vec<_> = std::iter::once(grid).chain((0..tiles).map(|_| tile(&[]))).collect();
        let error = decode(&heif(&items)).unwrap_err();
        assert_eq!(error.0, "damaged AVIF: the tiles of its grid do not cover it");
    }
}

#[test]
fn images_that_overlap_are_refused_and_those_that_share_their_data_are_not() {
    // The first part of an `iloc` entry is the number of the item, and the last its offset and length.
    let share = |whole: &mut Vec<u8>, length: u32| {
        let iloc = whole.windows(4).position(|code| code == b"iloc").unwrap();
        let entry = |index: usize| iloc + 12 + index * 14 + 6;
        let first: [u8; 4] = whole[entry(1)..][..4].try_into().unwrap();
        for index in 1..5 {
            whole[entry(index)..][..8].copy_from_slice(&[first, length.to_be_bytes()].concat());
        }
    };
    let mut whole = heif(&[grid(2, 112, 96), tile(&[]), tile(&[]), tile(&[]), tile(&[])]);
    let length = u32::try_from(tile(&[]).data.len()).unwrap();
    share(&mut whole, length);
    assert_eq!(decode(&whole).unwrap().damage, "");
    whole.resize(whole.len() + (1 << 20), 0);
    share(&mut whole, 900_000);
    assert_eq!(decode(&whole).unwrap_err().0, "damaged AVIF: the images in it overlap");
}

#[test]
fn frames_that_overlap_are_refused() {
    let mut whole = file(ANIMATION);
    whole.resize(whole.len() + (1 << 20), 0);
    // The common size of all samples.
    let stsz = whole.windows(4).position(|code| code == b"stsz").unwrap();
    whole[stsz + 8..][..4].copy_from_slice(&800_000u32.to_be_bytes());
    // Each sample is a chunk of its own, and all begin at the same place.
    let stsc = whole.windows(4).position(|code| code == b"stsc").unwrap();
    whole[stsc + 16..][..4].copy_from_slice(&1u32.to_be_bytes());
    let stco = whole.windows(4).position(|code| code == b"stco").unwrap();
    let at: [u8; 4] = whole[stco + 12..][..4].try_into().unwrap();
    let offsets = [&[0; 4][..], &3u32.to_be_bytes(), &at, &at, &at].concat();
    // `stss`, which is not needed, makes room.
    whole.splice(stco - 4..stco + 36, [&40u32.to_be_bytes()[..], b"stco", &offsets, &[0; 12]].concat());
    assert_eq!(decode(&whole).unwrap_err().0, "damaged AVIF: the frames in it overlap");
}

#[test]
fn too_many_frames_are_over_the_limits() {
    let mut whole = file(ANIMATION);
    let stsz = whole.windows(4).position(|code| code == b"stsz").unwrap();
    whole[stsz + 8..][..8].copy_from_slice(&[1u32, 65_537].map(u32::to_be_bytes).concat());
    let stsc = whole.windows(4).position(|code| code == b"stsc").unwrap();
    whole[stsc + 16..][..4].copy_from_slice(&65_537u32.to_be_bytes());
    assert_eq!(decode(&whole).unwrap_err().0, "over the decode limits: it has more than 65536 frames");
}

#[test]
fn turns_mirrors_and_crops_are_heeded() {
    let mirrored = decode(&heif(&[tile(&[boxed(b"imir", &[1])])])).unwrap();
    assert_eq!(colours(&mirrored, 0), "BBBBRRRR");
    let clap = [48, 1, 32, 1, 8, 1, 0, 1].map(u32::to_be_bytes).concat();
    let cropped = decode(&heif(&[tile(&[boxed(b"clap", &clap)])])).unwrap();
    assert_eq!((cropped.info, colours(&cropped, 0).as_str()), (info(48, 32, 1), "RRRBBBBB"));
    // A quarter turn, after the crop: the middle line is a column of the right half.
    let turned = decode(&heif(&[tile(&[boxed(b"clap", &clap), boxed(b"irot", &[1])])])).unwrap();
    assert_eq!((turned.info, colours(&turned, 0).as_str()), (info(32, 48, 1), "BBBBBBBB"));
}

#[test]
fn an_essential_property_that_is_unknown_is_not_ignored() {
    let error = decode(&heif(&[tile(&[boxed(b"What", &[])])])).unwrap_err();
    assert_eq!(error.0, "unsupported kind of AVIF: an image has the essential property what");
    assert!(decode(&heif(&[tile(&[boxed(b"what", &[])])])).is_ok());
}

#[test]
fn a_frame_of_another_size_than_the_file_says_is_resized_and_counted_by_its_own() {
    let with_size = |width, height| {
        let mut tile = tile(&[]);
        tile.properties = vec![ispe(width, height)];
        heif(&[tile])
    };
    let image = decode(&with_size(8, 8)).unwrap();
    assert_eq!((image.info, colours(&image, 0).as_str()), (info(8, 8, 1), "RRRRBBBB"));
    assert_eq!(colours(&decode(&with_size(128, 32)).unwrap(), 0), "RRRRBBBB");
    let small = DecodeConfig { max_width: 63, ..DecodeConfig::default() };
    for size in [(8, 8), (64, 64)] {
        let error = decode_columns(&with_size(size.0, size.1), 8, &small).unwrap_err();
        assert!(error.0.starts_with("over the decode limits"), "{error}");
    }
    for (width, height) in [(u32::MAX, u32::MAX), (2_000_000, 8), (0, 8)] {
        assert!(decode(&with_size(width, height)).is_err());
    }
}

#[test]
fn no_changed_byte_makes_the_decoder_panic() {
    for whole in [file(STILL), file(ALPHA), file(ANIMATION)] {
        // The headers; what AV1 data does to its decoder is fuzzed.
        for at in 0..whole.len() - 60 {
            for byte in [0xFF, whole[at] ^ 0x10] {
                let mut changed = whole.clone();
                changed[at] = byte;
                drop(decode(&changed));
            }
        }
    }
}
