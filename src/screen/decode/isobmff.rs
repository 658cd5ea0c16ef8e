//! The boxes that AVIF and HEIC files are made of (ISO/IEC 14496-12), and the images in them (ISO/IEC 23008-12, HEIF).
//!
//! Only what shows a picture is read. Everything that is kept is bounded by the length of the file.

use std::collections::HashMap;

use super::colour::{ColourModel, ToSrgb};

/// A four-character code.
pub(super) type Code = [u8; 4];

/// Numbers, most significant byte first. `None`: the data ends before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub(super) fn code(&mut self) -> Option<Code> {
        self.array()
    }

    /// Version and flags of a full box (14496-12, 4.2).
    pub(super) fn full_box(&mut self) -> Option<(u8, u32)> {
        let word = self.u32()?;
        Some((word.to_be_bytes()[0], word & 0xFF_FFFF))
    }

    /// A number of 2 or 4 bytes.
    fn short_or_long(&mut self, is_long: bool) -> Option<u32> {
        if is_long { self.u32() } else { self.u16().map(u32::from) }
    }

    /// A number whose size in bytes the file gives.
    fn sized(&mut self, bytes: u8) -> Option<u64> {
        match bytes {
            0 => Some(0),
            4 => self.u32().map(u64::from),
            8 => self.u64(),
            _ => None,
        }
    }
}

/// The boxes in a part of a file, in order. The last one may be cut.
pub(super) fn boxes(data: &[u8]) -> impl Iterator<Item = (Code, &[u8])> {
    let mut rest = Reader(data);
    std::iter::from_fn(move || {
        let whole = rest.0.len();
        let size = rest.u32()?;
        let code = rest.code()?;
        // 14496-12, 4.2: 0 is up to the end, and 1 is followed by a longer size.
        let size = match size {
            0 => whole,
            1 => usize::try_from(rest.u64()?).unwrap_or(usize::MAX),
            _ => size as usize,
        };
        let head = whole - rest.0.len();
        let body = rest.bytes(size.checked_sub(head)?.min(rest.0.len()))?;
        Some((code, body))
    })
}

/// The first box of this kind.
pub(super) fn find<'a>(data: &'a [u8], kind: &Code) -> Option<&'a [u8]> {
    boxes(data).find(|(code, _)| code == kind).map(|(_, body)| body)
}

/// The first box at the end of a path of kinds.
pub(super) fn find_path<'a>(data: &'a [u8], path: &[&Code]) -> Option<&'a [u8]> {
    path.iter().try_fold(data, |data, kind| find(data, kind))
}

/// The brands of a file that begins with these bytes, the major one first (14496-12, 4.3).
pub(super) fn brands(bytes: &[u8]) -> Vec<Code> {
    let Some((code, body)) = boxes(bytes).next() else { return Vec::new() };
    if &code != b"ftyp" {
        return Vec::new();
    }
    let mut codes = body.chunks_exact(4).filter_map(|code| Code::try_from(code).ok());
    let major = codes.next();
    // Its minor version.
    codes.next();
    major.into_iter().chain(codes).collect()
}

/// An item's property.
#[derive(Debug, Clone, Copy)]
pub(super) struct Property<'a> {
    pub(super) kind: Code,
    pub(super) body: &'a [u8],
    /// A reader that does not support it must not show the item.
    pub(super) is_essential: bool,
}

/// An image, or something that belongs to one.
#[derive(Debug, Default)]
pub(super) struct Item<'a> {
    pub(super) kind: Code,
    pub(super) properties: Vec<Property<'a>>,
    /// Whether its data lies in the box `idat`, and not anywhere in the file.
    is_in_idat: bool,
    /// Offset and length. A length of 0 is up to the end.
    extents: Vec<(u64, u64)>,
}

impl<'a> Item<'a> {
    /// The body of its property of this kind.
    pub(super) fn property(&self, kind: &Code) -> Option<&'a [u8]> {
        property(&self.properties, kind)
    }

    /// Its width and height (23008-12, 6.5.3).
    pub(super) fn size(&self) -> Option<(u32, u32)> {
        let mut ispe = Reader(self.property(b"ispe")?);
        ispe.full_box()?;
        Some((ispe.u32()?, ispe.u32()?))
    }
}

/// The body of the first property of this kind.
pub(super) fn property<'a>(properties: &[Property<'a>], kind: &Code) -> Option<&'a [u8]> {
    properties.iter().find(|property| &property.kind == kind).map(|property| property.body)
}

/// The items of a file.
#[derive(Debug)]
pub(super) struct Items<'a> {
    file: &'a [u8],
    idat: &'a [u8],
    /// The item that is shown.
    pub(super) primary: u32,
    items: HashMap<u32, Item<'a>>,
    /// Kind and item that refers → items that are referred to.
    references: HashMap<(Code, u32), Vec<u32>>,
    /// Item → its auxiliary images.
    auxiliary: HashMap<u32, Vec<u32>>,
}

impl<'a> Items<'a> {
    /// Reads the box `meta`. `None` where it is not there or is broken.
    pub(super) fn of(file: &'a [u8]) -> Option<Self> {
        let mut meta = Reader(find(file, b"meta")?);
        meta.full_box()?;
        let meta = meta.0;
        let mut handler = Reader(find(meta, b"hdlr")?);
        handler.full_box()?;
        handler.u32()?;
        if &handler.code()? != b"pict" {
            return None;
        }
        let mut pitm = Reader(find(meta, b"pitm")?);
        let (version, _) = pitm.full_box()?;
        let mut items = Self {
            file,
            idat: find(meta, b"idat").unwrap_or_default(),
            primary: pitm.short_or_long(version > 0)?,
            items: HashMap::new(),
            references: HashMap::new(),
            auxiliary: HashMap::new(),
        };
        items.read_kinds(find(meta, b"iinf")?)?;
        items.read_locations(find(meta, b"iloc")?)?;
        items.read_properties(find(meta, b"iprp")?)?;
        if let Some(iref) = find(meta, b"iref") {
            items.read_references(iref)?;
        }
        Some(items)
    }

    /// 14496-12, 8.11.6.
    fn read_kinds(&mut self, iinf: &'a [u8]) -> Option<()> {
        let mut iinf = Reader(iinf);
        let (version, _) = iinf.full_box()?;
        iinf.short_or_long(version > 0)?;
        for (_, body) in boxes(iinf.0).filter(|(code, _)| code == b"infe") {
            let mut infe = Reader(body);
            let (version, _) = infe.full_box()?;
            let id = infe.short_or_long(version > 2)?;
            infe.u16()?;
            self.items.entry(id).or_default().kind = infe.code()?;
        }
        Some(())
    }

    /// 14496-12, 8.11.3.
    fn read_locations(&mut self, iloc: &'a [u8]) -> Option<()> {
        let mut iloc = Reader(iloc);
        let (version, _) = iloc.full_box()?;
        let (sizes, more) = (iloc.u8()?, iloc.u8()?);
        let (offset, length, base, index) = (sizes >> 4, sizes & 15, more >> 4, more & 15);
        for _ in 0..iloc.short_or_long(version > 1)? {
            let id = iloc.short_or_long(version > 1)?;
            let method = if version > 0 { iloc.u16()? & 15 } else { 0 };
            iloc.u16()?;
            let start = iloc.sized(base)?;
            let count = iloc.u16()?;
            // An extent without any bytes would cost memory that the length of the file does not bound.
            if method > 1 || (count > 1 && offset == 0 && length == 0) {
                return None;
            }
            let mut extents = Vec::new();
            for _ in 0..count {
                if version > 0 {
                    iloc.sized(index)?;
                }
                extents.push((start.checked_add(iloc.sized(offset)?)?, iloc.sized(length)?));
            }
            let item = self.items.entry(id).or_default();
            (item.is_in_idat, item.extents) = (method == 1, extents);
        }
        Some(())
    }

    /// 23008-12, 9.3: the properties, and which item has which.
    fn read_properties(&mut self, iprp: &'a [u8]) -> Option<()> {
        let all: Vec<_> = boxes(find(iprp, b"ipco")?).collect();
        for (_, ipma) in boxes(iprp).filter(|(code, _)| code == b"ipma") {
            let mut ipma = Reader(ipma);
            let (version, flags) = ipma.full_box()?;
            for _ in 0..ipma.u32()? {
                let id = ipma.short_or_long(version > 0)?;
                for _ in 0..ipma.u8()? {
                    let (index, is_essential) = if flags & 1 == 1 {
                        let word = ipma.u16()?;
                        (word & 0x7FFF, word & 0x8000 != 0)
                    } else {
                        let byte = ipma.u8()?;
                        (u16::from(byte & 0x7F), byte & 0x80 != 0)
                    };
                    // Counted from 1; 0 is none.
                    let Some(index) = index.checked_sub(1) else { continue };
                    let &(kind, body) = all.get(usize::from(index))?;
                    self.items.entry(id).or_default().properties.push(Property { kind, body, is_essential });
                }
            }
        }
        Some(())
    }

    /// 14496-12, 8.11.12.
    fn read_references(&mut self, iref: &'a [u8]) -> Option<()> {
        let mut iref = Reader(iref);
        let (version, _) = iref.full_box()?;
        for (kind, body) in boxes(iref.0) {
            let mut reference = Reader(body);
            let from = reference.short_or_long(version > 0)?;
            for _ in 0..reference.u16()? {
                let to = reference.short_or_long(version > 0)?;
                self.references.entry((kind, from)).or_default().push(to);
                if &kind == b"auxl" {
                    self.auxiliary.entry(to).or_default().push(from);
                }
            }
        }
        Some(())
    }

    pub(super) fn item(&self, id: u32) -> Option<&Item<'a>> {
        self.items.get(&id)
    }

    /// The items that an item refers to, in order.
    pub(super) fn referred(&self, from: u32, kind: &Code) -> &[u32] {
        self.references.get(&(*kind, from)).map_or(&[], Vec::as_slice)
    }

    /// The auxiliary images of an item.
    pub(super) fn auxiliary(&self, of: u32) -> &[u32] {
        self.auxiliary.get(&of).map_or(&[], Vec::as_slice)
    }

    /// The parts of an item's data, in order. `None`: the file ends before it.
    pub(super) fn parts(&self, item: &Item<'a>) -> Option<Vec<&'a [u8]>> {
        let source = if item.is_in_idat { self.idat } else { self.file };
        let part = |&(offset, length): &(u64, u64)| {
            let from = source.get(usize::try_from(offset).ok()?..)?;
            if length == 0 { Some(from) } else { from.get(..usize::try_from(length).ok()?) }
        };
        item.extents.iter().map(part).collect()
    }

    /// How many bytes of images are read.
    pub(super) fn max_bytes(&self) -> usize {
        max_bytes(self.file)
    }
}

/// How many bytes of images are read of a file. Images that overlap would make much of a small file. Tiles that are alike
/// may share their data.
pub(super) fn max_bytes(file: &[u8]) -> usize {
    file.len().saturating_mul(2).max(1 << 20)
}

/// What a derived image of kind `grid` is made of (23008-12, 6.6.2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grid {
    pub(super) rows: u32,
    pub(super) columns: u32,
    pub(super) width: u32,
    pub(super) height: u32,
}

impl Grid {
    /// `None`: its data is broken.
    pub(super) fn of(parts: &[&[u8]]) -> Option<Self> {
        // It takes 12 bytes at most.
        let data: Vec<u8> = parts.iter().copied().flatten().take(12).copied().collect();
        let mut data = Reader(&data);
        let (version, flags) = (data.u8()?, data.u8()?);
        let (rows, columns) = (u32::from(data.u8()?) + 1, u32::from(data.u8()?) + 1);
        let is_long = flags & 1 == 1;
        let (width, height) = (data.short_or_long(is_long)?, data.short_or_long(is_long)?);
        (version == 0).then_some(Self { rows, columns, width, height })
    }
}

/// What the properties `colr` and `clli` say of an image's colours (14496-12, 12.1.5 and 12.1.6).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ColourProperties<'a> {
    icc: Option<&'a [u8]>,
    pub(super) nclx: Option<Nclx>,
    /// The brightest light of the content in cd/m².
    max_light: Option<u16>,
}

/// Code points of ITU-T H.273.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Nclx {
    pub(super) primaries: u16,
    pub(super) transfer: u16,
    pub(super) matrix: u16,
    pub(super) is_full_range: bool,
}

impl<'a> ColourProperties<'a> {
    /// The first profile and the first code points count.
    pub(super) fn of(properties: &[Property<'a>]) -> Self {
        let mut found = Self::default();
        for property in properties {
            let mut body = Reader(property.body);
            match &property.kind {
                b"colr" => match body.code().as_ref() {
                    Some(b"prof" | b"rICC") => found.icc = found.icc.or(Some(body.0)),
                    Some(b"nclx") => found.nclx = found.nclx.or_else(|| Nclx::of(body)),
                    _ => {}
                },
                b"clli" => found.max_light = body.u16().filter(|light| *light > 0),
                _ => {}
            }
        }
        found
    }

    /// Whether they say nothing.
    #[cfg(feature = "heic")]
    pub(super) fn is_empty(&self) -> bool {
        self.icc.is_none() && self.nclx.is_none()
    }

    /// The conversion of the profile. Where there is none, that of the code points, and then that of the coded frames'.
    pub(super) fn conversion(&self, coded: Option<Nclx>) -> Option<ToSrgb> {
        if let Some(profile) = self.icc {
            let model = if profile.get(16..20) == Some(b"GRAY") { ColourModel::Grey } else { ColourModel::Rgb };
            return ToSrgb::of_icc(profile, model);
        }
        let Nclx { primaries, transfer, .. } = self.nclx.or(coded)?;
        // 2 is unspecified. Browsers show films' camera curves in a picture as if they were sRGB's.
        let primaries = if primaries == 2 { 1 } else { primaries };
        let transfer = if matches!(transfer, 1 | 2 | 6 | 14 | 15) { 13 } else { transfer };
        ToSrgb::of_cicp_up_to(u8::try_from(primaries).ok()?, u8::try_from(transfer).ok()?, self.max_light)
    }
}

impl Nclx {
    fn of(mut colr: Reader<'_>) -> Option<Self> {
        let (primaries, transfer, matrix) = (colr.u16()?, colr.u16()?, colr.u16()?);
        Some(Self { primaries, transfer, matrix, is_full_range: colr.u8()? & 0x80 != 0 })
    }
}

/// EXIF's code for how an image is turned: anti-clockwise first, then mirrored (23008-12, 6.5.10 and 6.5.12).
pub(super) fn orientation(properties: &[Property<'_>]) -> u8 {
    let byte = |kind| property(properties, kind).and_then(|body| body.first().copied());
    // Clockwise by a quarter, a half, three quarters.
    let turned = [1, 6, 3, 8];
    // The same, then left and right exchanged.
    let mirrored = [2, 5, 4, 7];
    let clockwise = (4 - usize::from(byte(b"irot").unwrap_or_default() & 3)) % 4;
    match byte(b"imir").map(|axis| axis & 1) {
        None => turned[clockwise],
        // Top and bottom exchanged is left and right exchanged, and half a turn.
        Some(0) => mirrored[(clockwise + 2) % 4],
        Some(_) => mirrored[clockwise],
    }
}

/// The part of an image that is shown, if that is a part of whole pixels within it: x, y, width, height
/// (14496-12, 12.1.4).
pub(super) fn clean_aperture(properties: &[Property<'_>], size: (u32, u32)) -> Option<(u32, u32, u32, u32)> {
    let mut clap = Reader(property(properties, b"clap")?);
    let mut fraction = || Some((i128::from(clap.u32()?.cast_signed()), i128::from(clap.u32()?)));
    let (width, height, right, down) = (fraction()?, fraction()?, fraction()?, fraction()?);
    let whole = |(above, below): (i128, i128)| (below > 0 && above % below == 0).then(|| above / below);
    let side = |length: (i128, i128), shift: (i128, i128), of: u32| {
        let length = whole(length)?;
        // Where it begins: (of - length) / 2 + shift.
        let twice = (i128::from(of) - length) * shift.1 + 2 * shift.0;
        let start = whole((twice, 2 * shift.1))?;
        let is_within = length > 0 && start >= 0 && start + length <= i128::from(of);
        is_within.then_some((u32::try_from(start).ok()?, u32::try_from(length).ok()?))
    };
    let (x, width) = side(width, right, size.0)?;
    let (y, height) = side(height, down, size.1)?;
    Some((x, y, width, height))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn property(kind: &Code, body: &'static [u8]) -> Property<'static> {
        Property { kind: *kind, body, is_essential: true }
    }

    #[test]
    fn boxes_have_three_kinds_of_sizes_and_the_last_may_be_cut() {
        let data = b"\0\0\0\x0aoneOab\0\0\0\x01twoT\0\0\0\0\0\0\0\x11c\0\0\0\x63cutCd";
        let found: Vec<_> = boxes(data).collect();
        assert_eq!(found, [(*b"oneO", &b"ab"[..]), (*b"twoT", b"c"), (*b"cutC", b"d")]);
        assert_eq!(boxes(b"\0\0\0\0restab").next(), Some((*b"rest", &b"ab"[..])));
        assert_eq!(boxes(b"\0\0\0\x07tiny").next(), None);
    }

    #[test]
    fn all_brands_are_read_and_the_minor_version_is_none() {
        assert_eq!(brands(b"\0\0\0\x18ftypmif1avifmiafavif junk"), [*b"mif1", *b"miaf", *b"avif"]);
        assert_eq!(brands(b"\0\0\0\x18moovmif1avifmiafavif"), [[0; 4]; 0]);
    }

    #[test]
    fn turns_are_anti_clockwise_and_come_before_mirrors() {
        let code = |properties: &[Property<'_>]| orientation(properties);
        assert_eq!(code(&[]), 1);
        assert_eq!([0, 1, 2, 3].map(|turn| code(&[property(b"irot", &[[0], [1], [2], [3]][turn])])), [1, 8, 3, 6]);
        assert_eq!(code(&[property(b"imir", &[0])]), 4);
        assert_eq!(code(&[property(b"imir", &[1])]), 2);
        // Turned left, then left and right exchanged.
        assert_eq!(code(&[property(b"irot", &[1]), property(b"imir", &[1])]), 7);
        assert_eq!(code(&[property(b"irot", &[1]), property(b"imir", &[0])]), 5);
    }

    #[test]
    fn a_clean_aperture_is_a_part_of_whole_pixels() {
        let clap = |numbers: [i32; 8]| -> Option<(u32, u32, u32, u32)> {
            let body: Vec<u8> = numbers.iter().flat_map(|number| number.to_be_bytes()).collect();
            clean_aperture(&[Property { kind: *b"clap", body: &body, is_essential: true }], (100, 50))
        };
        assert_eq!(clap([80, 1, 50, 1, 0, 1, 0, 1]), Some((10, 0, 80, 50)));
        assert_eq!(clap([81, 1, 49, 1, -19, 2, 1, 2]), Some((0, 1, 81, 49)));
        assert_eq!(clap([81, 1, 50, 1, 0, 1, 0, 1]), None, "half a pixel");
        assert_eq!(clap([80, 1, 50, 1, 11, 1, 0, 1]), None, "beyond the edge");
        assert_eq!(clap([80, 1, 50, 0, 0, 1, 0, 1]), None);
        assert_eq!(clap([i32::MIN, 1, i32::MIN, 1, i32::MIN, -1, i32::MIN, -1]), None);
    }
}
