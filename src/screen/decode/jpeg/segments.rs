//! The segments of a JPEG (ITU-T T.81, annex B), found as libjpeg finds them: bytes between two segments are skipped.

/// The markers that have a meaning here (T.81, table B.1).
pub(super) mod marker {
    pub(in super::super) const SOF0: u8 = 0xC0;
    pub(in super::super) const SOF1: u8 = 0xC1;
    pub(in super::super) const SOF2: u8 = 0xC2;
    pub(in super::super) const SOF9: u8 = 0xC9;
    pub(in super::super) const SOF10: u8 = 0xCA;
    pub(in super::super) const DHT: u8 = 0xC4;
    pub(in super::super) const DAC: u8 = 0xCC;
    pub(in super::super) const RST0: u8 = 0xD0;
    pub(in super::super) const RST7: u8 = 0xD7;
    pub(in super::super) const EOI: u8 = 0xD9;
    pub(in super::super) const SOS: u8 = 0xDA;
    pub(in super::super) const DQT: u8 = 0xDB;
    pub(in super::super) const DNL: u8 = 0xDC;
    pub(in super::super) const DRI: u8 = 0xDD;
    pub(in super::super) const APP0: u8 = 0xE0;
    pub(in super::super) const APP1: u8 = 0xE1;
    pub(in super::super) const APP2: u8 = 0xE2;
    pub(in super::super) const APP14: u8 = 0xEE;
    pub(in super::super) const APP15: u8 = 0xEF;
    pub(in super::super) const COM: u8 = 0xFE;
    pub(in super::super) const TEM: u8 = 0x01;
}

/// Whether the marker starts a frame. DHT, JPG and DAC lie in the same range and start none.
pub(super) fn starts_frame(code: u8) -> bool {
    matches!(code, 0xC0..=0xCF if !matches!(code, marker::DHT | 0xC8 | marker::DAC))
}

/// One marker with what it carries.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment<'a> {
    pub(super) marker: u8,
    /// Without the two bytes of the length. Empty where the marker carries nothing.
    pub(super) body: &'a [u8],
}

/// Why there is no further segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoSegment {
    /// The file ends.
    Cut,
    /// Its length is impossible.
    Broken,
}

/// Reads segments one after the other.
pub(super) struct SegmentReader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> SegmentReader<'a> {
    /// Begins behind the marker SOI, which was the condition for the file to count as a JPEG.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 2 }
    }

    /// The next segment. Bytes before its marker are skipped.
    pub(super) fn next(&mut self) -> Result<Segment<'a>, NoSegment> {
        let marker = self.next_marker().ok_or(NoSegment::Cut)?;
        if matches!(marker, marker::TEM | marker::RST0..=marker::EOI) {
            return Ok(Segment { marker, body: &[] });
        }
        let rest = &self.bytes[self.at..];
        let Some(&[high, low]) = rest.get(..2) else { return Err(NoSegment::Cut) };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let is_metadata = matches!(marker, marker::APP0..=marker::APP15 | marker::COM | marker::DNL);
        if length < 2 && !is_metadata {
            return Err(NoSegment::Broken);
        }
        // libjpeg takes a length that is too small for metadata without any.
        let length = length.max(2);
        let body = rest.get(2..length).ok_or(NoSegment::Cut)?;
        self.at += length;
        Ok(Segment { marker, body })
    }

    /// Everything that was not read yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }

    /// What follows up to the next marker that is no restart marker, and whether there is such a marker. Behind the header
    /// of a scan this is the scan's data. With restart markers a decoder also looks for the next one behind a marker that
    /// no JPEG has.
    pub(super) fn scan_data(&mut self, has_restarts: bool) -> (&'a [u8], bool) {
        let rest = &self.bytes[self.at..];
        let mut end = 0;
        let found = loop {
            let Some(fill) = rest[end..].iter().position(|byte| *byte == 0xFF) else { break None };
            let code = end + fill + rest[end + fill..].iter().take_while(|byte| **byte == 0xFF).count();
            match rest.get(code) {
                None => break None,
                Some(0 | marker::RST0..=marker::RST7) => end = code + 1,
                Some(..marker::SOF0) if has_restarts => end = code + 1,
                Some(_) => break Some(end + fill),
            }
        };
        let data = &rest[..found.unwrap_or(rest.len())];
        self.at += data.len();
        (data, found.is_some())
    }

    /// The code of the next marker: 0xFF, any number of times, and then neither that nor 0.
    fn next_marker(&mut self) -> Option<u8> {
        loop {
            self.at += self.bytes[self.at..].iter().position(|byte| *byte == 0xFF)?;
            self.at += self.bytes[self.at..].iter().position(|byte| *byte != 0xFF)?;
            let code = self.bytes[self.at];
            self.at += 1;
            if code != 0 {
                return Some(code);
            }
        }
    }
}
