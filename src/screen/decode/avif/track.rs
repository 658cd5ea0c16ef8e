//! The tracks of an animated AVIF file (ISO/IEC 14496-12): one for colour, and perhaps one for alpha.

use super::super::isobmff::{Code, Property, Reader, boxes, find, find_path, property};

/// The most frames of a track. Frames may be so small that the limit for pixels does not bound them.
pub(super) const MAX_SAMPLES: u32 = 1 << 16;

/// A track with AV1 samples.
#[derive(Debug)]
pub(super) struct Track<'a> {
    id: u32,
    /// The track that this one belongs to as an auxiliary one.
    auxiliary_of: Option<u32>,
    /// The alpha track by which the colours are multiplied.
    pub(super) is_premultiplied: bool,
    pub(super) width: u32,
    pub(super) height: u32,
    /// What the sample entry has.
    pub(super) properties: Vec<Property<'a>>,
    /// One for each frame. Of too many, one more than [`MAX_SAMPLES`].
    pub(super) samples: Vec<Sample>,
}

/// Where the data of a frame lies, and how long the frame is on screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) offset: u64,
    pub(super) size: u32,
    pub(super) duration_ms: u32,
}

/// The tracks that are shown.
#[derive(Debug)]
pub(super) struct Tracks<'a> {
    pub(super) colour: Track<'a>,
    pub(super) alpha: Option<Track<'a>>,
}

impl<'a> Tracks<'a> {
    /// The first track that is auxiliary to no other one, and its alpha track.
    pub(super) fn of(file: &'a [u8]) -> Option<Self> {
        let moov = find(file, b"moov")?;
        let mut tracks: Vec<_> =
            boxes(moov).filter(|(code, _)| code == b"trak").filter_map(|(_, body)| Track::of(body)).collect();
        let colour = tracks.iter().position(|track| track.auxiliary_of.is_none())?;
        let colour = tracks.swap_remove(colour);
        let is_alpha = |track: &Track<'_>| {
            // A track says which kind of auxiliary image it is, or it is alpha.
            let kind = property(&track.properties, b"auxi").and_then(|body| body.get(4..));
            track.auxiliary_of == Some(colour.id) && kind.is_none_or(super::is_alpha)
        };
        let alpha = tracks.iter().position(is_alpha).map(|index| tracks.swap_remove(index));
        Some(Self { colour, alpha })
    }
}

impl<'a> Track<'a> {
    fn of(trak: &'a [u8]) -> Option<Self> {
        let mut tkhd = Reader(find(trak, b"tkhd")?);
        let (version, _) = tkhd.full_box()?;
        // Times of creation and change.
        tkhd.bytes(if version == 1 { 16 } else { 8 })?;
        let id = tkhd.u32()?;
        // Up to the matrix and behind it; the size is in 65,536ths.
        tkhd.bytes(if version == 1 { 12 } else { 8 } + 52)?;
        let (width, height) = (tkhd.u32()? >> 16, tkhd.u32()? >> 16);
        let tref = find(trak, b"tref").unwrap_or_default();
        let refers = |kind: &Code| find(tref, kind).and_then(|body| Reader(body).u32());
        let mdia = find(trak, b"mdia")?;
        let mut mdhd = Reader(find(mdia, b"mdhd")?);
        let (version, _) = mdhd.full_box()?;
        mdhd.bytes(if version == 1 { 16 } else { 8 })?;
        let timescale = mdhd.u32()?;
        let stbl = find_path(mdia, &[b"minf", b"stbl"])?;
        let mut stsd = Reader(find(stbl, b"stsd")?);
        stsd.bytes(8)?;
        let mut entry = Reader(find(stsd.0, b"av01")?);
        // A visual sample entry (14496-12, 12.1.3).
        entry.bytes(78)?;
        let properties = boxes(entry.0).map(|(kind, body)| Property { kind, body, is_essential: false }).collect();
        Some(Self {
            id,
            auxiliary_of: refers(b"auxl"),
            is_premultiplied: refers(b"prem").is_some(),
            width,
            height,
            properties,
            samples: samples(stbl, timescale)?,
        })
    }
}

/// The samples of a track, in order (14496-12, 8.6.1.2, 8.7.3 to 8.7.5).
fn samples(stbl: &[u8], timescale: u32) -> Option<Vec<Sample>> {
    let table = |kind: &Code| {
        let mut table = Reader(find(stbl, kind)?);
        table.full_box()?;
        Some(table)
    };
    let mut sizes = table(b"stsz")?;
    let (common_size, count) = (sizes.u32()?, sizes.u32()?.min(MAX_SAMPLES + 1));
    let (mut offsets, are_long) =
        table(b"stco").map(|table| (table, false)).or_else(|| Some((table(b"co64")?, true)))?;
    offsets.u32()?;
    let mut runs = table(b"stsc")?;
    runs.u32()?;
    let mut durations = table(b"stts")?;
    durations.u32()?;

    let mut samples = Vec::new();
    // Of the present chunk: its number, how many samples are left in it, and where the next one begins.
    let (mut chunk, mut left, mut at) = (0u32, 0u32, 0u64);
    let (mut per_chunk, mut next_run) = (0u32, run(&mut runs));
    let (mut of_duration, mut duration_ms) = (0u32, 0u32);
    for _ in 0..count {
        while left == 0 {
            chunk += 1;
            let Some(offset) = (if are_long { offsets.u64() } else { offsets.u32().map(u64::from) }) else {
                return Some(samples);
            };
            if let Some((first, samples)) = next_run
                && first <= chunk
            {
                (per_chunk, next_run) = (samples, run(&mut runs));
            }
            (left, at) = (per_chunk, offset);
        }
        while of_duration == 0 {
            let Some((count, ticks)) = durations.u32().zip(durations.u32()) else {
                of_duration = u32::MAX;
                break;
            };
            let ms = u64::from(ticks) * 1000 / u64::from(timescale.max(1));
            (of_duration, duration_ms) = (count, u32::try_from(ms).unwrap_or(u32::MAX));
        }
        let Some(size) = (if common_size > 0 { Some(common_size) } else { sizes.u32() }) else { break };
        samples.push(Sample { offset: at, size, duration_ms });
        at = at.saturating_add(size.into());
        left -= 1;
        of_duration -= 1;
    }
    Some(samples)
}

/// The next run of chunks: the number of its first one, and the samples in each of them.
fn run(runs: &mut Reader<'_>) -> Option<(u32, u32)> {
    let (first, samples) = (runs.u32()?, runs.u32()?);
    runs.u32()?;
    Some((first, samples))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(kind: &Code, numbers: &[u32]) -> Vec<u8> {
        let body: Vec<u8> = [0].iter().chain(numbers).flat_map(|number| number.to_be_bytes()).collect();
        let size = u32::try_from(body.len() + 8).unwrap().to_be_bytes();
        [&size[..], kind, &body].concat()
    }

    #[test]
    fn samples_follow_each_other_in_their_chunks() {
        let stbl = [
            table(b"stsz", &[0, 5, 10, 20, 30, 40, 50]),
            table(b"stco", &[3, 1000, 2000, 3000]),
            table(b"stsc", &[2, 1, 2, 1, 3, 1, 1]),
            table(b"stts", &[2, 1, 100, 9, 50]),
        ]
        .concat();
        let found: Vec<_> = samples(&stbl, 1000)
            .unwrap()
            .iter()
            .map(|sample| (sample.offset, sample.size, sample.duration_ms))
            .collect();
        assert_eq!(found, [(1000, 10, 100), (1010, 20, 50), (2000, 30, 50), (2030, 40, 50), (3000, 50, 50)]);
    }

    #[test]
    fn a_table_of_too_many_samples_is_read_until_they_are_too_many() {
        let stbl = [
            table(b"stsz", &[1, u32::MAX]),
            table(b"stco", &[1, 0]),
            table(b"stsc", &[1, 1, u32::MAX, 1]),
            table(b"stts", &[1, u32::MAX, 100]),
        ]
        .concat();
        assert_eq!(samples(&stbl, 0).unwrap().len(), MAX_SAMPLES as usize + 1);
    }
}
