//! A copy of a JPEG without what changes no pixel: bytes between segments, metadata, values of headers that no decoder
//! heeds, what lies behind the image, and with an end marker where that is missing.
//!
//! libjpeg gives one warning for all of this and for damage, and only the first one can be read. Decoding the copy tells
//! them apart: a warning that is left is damage.

use super::cut::CutScan;
use super::segments::{NoSegment, Segment, SegmentReader, marker, starts_frame};

/// How a copy is made.
#[derive(Clone, Copy)]
pub(super) struct RepairOptions {
    /// Scans behind this number are left out.
    pub(super) max_scans: u32,
    /// How many zeros the data of a scan may end with.
    pub(super) zeros_kept: usize,
}

/// A copy that holds nothing but the picture.
pub(super) struct Repaired<'a> {
    pub(super) bytes: Vec<u8>,
    /// Why the picture may not be whole, although the copy's decoder does not warn.
    pub(super) missing: Option<&'static str>,
    /// The scan that was being shown where the file ends.
    pub(super) cut: Option<CutScan<'a>>,
    /// Whether the data of some scan ends with zeros, which may be padding.
    pub(super) is_padded: bool,
}

/// How precisely a component's coefficients are known so far: the lowest bit that was sent, or `None`.
struct Known(Vec<[Option<u8>; 64]>);

struct Repairer<'a> {
    options: RepairOptions,
    copy: Vec<u8>,
    /// Where Adobe's segments have their colour transform in the copy.
    transforms: Vec<usize>,
    frame: Option<Segment<'a>>,
    ids: Vec<u8>,
    has_restarts: bool,
    known: Known,
    scans: u32,
    /// The first scan with which all components have a value, and so something can be shown.
    first_shown: Option<u32>,
    is_padded: bool,
    /// Tables and headers so far, which the data of the last scan needs.
    heads: Vec<Segment<'a>>,
    /// The data of the last scan and all that follows it.
    last_data: &'a [u8],
}

/// How a walk over the segments ended.
enum Ending {
    /// At the image's own end marker, or behind the only scan.
    Whole,
    Cut,
    Broken,
    TooManyScans,
}

/// Copies the picture, or returns `None` where no scan begins.
pub(super) fn repair(bytes: &[u8], options: RepairOptions) -> Option<Repaired<'_>> {
    let mut repairer = Repairer {
        options,
        copy: vec![0xFF, 0xD8],
        transforms: Vec::new(),
        frame: None,
        ids: Vec::new(),
        has_restarts: false,
        known: Known(Vec::new()),
        scans: 0,
        first_shown: None,
        is_padded: false,
        heads: Vec::new(),
        last_data: &[],
    };
    let ending = repairer.walk(bytes);
    if repairer.scans == 0 {
        return None;
    }
    repairer.set_transforms();
    repairer.copy.extend([0xFF, marker::EOI]);
    let missing = match ending {
        Ending::Whole => None,
        Ending::Cut if repairer.is_complete() => None,
        Ending::Cut => Some("the file ends before the image does"),
        Ending::Broken => Some("the segments behind a scan are broken"),
        Ending::TooManyScans => Some("it has too many scans"),
    };
    let is_first_shown = repairer.first_shown == Some(repairer.scans);
    let cut = (matches!(ending, Ending::Cut) && is_first_shown)
        .then_some(CutScan { segments: repairer.heads, data: repairer.last_data });
    Some(Repaired { bytes: repairer.copy, missing, cut, is_padded: repairer.is_padded })
}

impl<'a> Repairer<'a> {
    fn walk(&mut self, bytes: &'a [u8]) -> Ending {
        let mut reader = SegmentReader::new(bytes);
        loop {
            let segment = match reader.next() {
                Ok(segment) => segment,
                Err(NoSegment::Cut) => return Ending::Cut,
                Err(NoSegment::Broken) => return Ending::Broken,
            };
            match segment.marker {
                marker::EOI => return Ending::Whole,
                marker::SOS => {
                    if self.scans == self.options.max_scans {
                        return Ending::TooManyScans;
                    }
                    if !self.start_scan(segment) {
                        return Ending::Broken;
                    }
                    self.last_data = reader.rest();
                    let (data, has_marker) = reader.scan_data(self.has_restarts);
                    self.copy_data(data);
                    if !has_marker {
                        return Ending::Cut;
                    }
                    if self.is_only_scan(segment) {
                        return Ending::Whole;
                    }
                }
                marker::DQT | marker::DHT | marker::DAC | marker::DRI => self.keep(segment),
                marker::APP0 => self.keep_jfif(segment.body),
                marker::APP14 => self.keep_adobe(segment.body),
                marker::APP1..=marker::APP15 | marker::COM | marker::DNL | marker::TEM => {}
                marker::RST0..=marker::RST7 => {}
                code if starts_frame(code) && self.frame.is_none() => self.start_frame(segment),
                // libjpeg gives up on any other marker, and on a second frame.
                _ => return Ending::Broken,
            }
        }
    }

    fn keep(&mut self, segment: Segment<'a>) {
        if segment.marker == marker::DRI {
            self.has_restarts = segment.body != [0, 0];
        }
        self.heads.push(segment);
        self.copy_segment(segment.marker, segment.body);
    }

    fn copy_segment(&mut self, code: u8, body: &[u8]) {
        // A body that was read has at most 65,533 bytes.
        let length = u16::try_from(body.len() + 2).unwrap_or(u16::MAX);
        self.copy.extend([0xFF, code]);
        self.copy.extend(length.to_be_bytes());
        self.copy.extend_from_slice(body);
    }

    /// JFIF tells that three components are YCbCr. Its major version, which has to be 1, changes nothing.
    fn keep_jfif(&mut self, body: &[u8]) {
        if body.len() >= 14 && body.starts_with(b"JFIF\0") {
            let mut body = body.to_vec();
            body[5] = 1;
            self.copy_segment(marker::APP0, &body);
        }
    }

    fn keep_adobe(&mut self, body: &[u8]) {
        if body.len() >= 12 && body.starts_with(b"Adobe") {
            self.copy_segment(marker::APP14, body);
            self.transforms.push(self.copy.len() - body.len() + 11);
        }
    }

    /// Gives Adobe's colour transform the value that libjpeg takes it for: 0, or 1 with three components and 2 with four.
    fn set_transforms(&mut self) {
        let usual = if self.ids.len() == 4 { 2 } else { 1 };
        for at in &self.transforms {
            let transform = &mut self.copy[*at];
            *transform = if *transform == 0 { 0 } else { usual };
        }
    }

    fn start_frame(&mut self, segment: Segment<'a>) {
        self.ids = segment.body.get(6..).unwrap_or_default().chunks_exact(3).map(|component| component[0]).collect();
        self.known = Known(vec![[None; 64]; self.ids.len()]);
        self.frame = Some(segment);
        self.keep(segment);
    }

    fn is_progressive(&self) -> bool {
        matches!(self.frame, Some(Segment { marker: marker::SOF2 | marker::SOF10, .. }))
    }

    fn is_sequential(&self) -> bool {
        matches!(self.frame, Some(Segment { marker: marker::SOF0 | marker::SOF1 | marker::SOF9, .. }))
    }

    /// Copies the header of a scan. The last three bytes mean something in a progressive image only; some cameras write
    /// other values into sequential ones.
    fn start_scan(&mut self, segment: Segment<'a>) -> bool {
        let Some((count, rest)) = segment.body.split_first() else { return false };
        let count = usize::from(*count);
        if self.frame.is_none() || rest.len() != 2 * count + 3 {
            return false;
        }
        let mut body = segment.body.to_vec();
        if self.is_sequential() {
            body[2 * count + 1..].copy_from_slice(&[0, 63, 0]);
        }
        let (first, last, low) = (body[2 * count + 1], body[2 * count + 2], body[2 * count + 3] & 0x0F);
        for component in rest[..2 * count].chunks_exact(2) {
            let known = self.ids.iter().position(|id| *id == component[0]).and_then(|at| self.known.0.get_mut(at));
            let Some(known) = known else { continue };
            known.iter_mut().take(usize::from(last) + 1).skip(usize::from(first)).for_each(|bit| *bit = Some(low));
        }
        self.scans += 1;
        let is_shown = !self.is_progressive() || self.known.0.iter().all(|known| known[0].is_some());
        if self.first_shown.is_none() && is_shown {
            self.first_shown = Some(self.scans);
        }
        self.heads.push(segment);
        self.copy_segment(marker::SOS, &body);
        true
    }

    fn copy_data(&mut self, data: &[u8]) {
        // A last 0xFF is half of a marker.
        let whole = data.strip_suffix(&[0xFF]).unwrap_or(data);
        let zeros = whole.iter().rev().take_while(|byte| **byte == 0).count();
        // A zero behind 0xFF belongs to it.
        let zeros =
            if whole.len() > zeros && whole[whole.len() - zeros - 1] == 0xFF { zeros - zeros.min(1) } else { zeros };
        self.is_padded |= zeros > 0;
        self.copy.extend_from_slice(&whole[..whole.len() - zeros.saturating_sub(self.options.zeros_kept)]);
    }

    /// Whether a scan holds all there is: what follows it cannot change a pixel.
    fn is_only_scan(&self, segment: Segment<'a>) -> bool {
        !self.is_progressive()
            && self.scans == 1
            && segment.body.first().copied().map(usize::from) == Some(self.ids.len())
    }

    /// Whether all bits of all coefficients were sent.
    fn is_complete(&self) -> bool {
        self.known.0.iter().flatten().all(|bit| *bit == Some(0))
    }
}
