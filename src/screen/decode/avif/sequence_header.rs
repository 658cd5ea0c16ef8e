//! What an AV1 sequence header says: the size of frames, their samples and colours. The file around it may say something
//! else, so that memory is counted by this one.

use super::super::isobmff::Nclx;

/// AV1 specification, 5.5.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SequenceHeader {
    /// The largest size of a frame.
    pub(super) width: u32,
    pub(super) height: u32,
    /// 8, 10 or 12.
    pub(super) bit_depth: u8,
    /// Whether there is no chroma.
    pub(super) is_monochrome: bool,
    /// Whether there is one chroma sample for two luma samples across, and down.
    pub(super) subsampled: (bool, bool),
    pub(super) colour: Nclx,
}

/// What the units of some AV1 data are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Av1Summary {
    pub(super) header: SequenceHeader,
    /// The number of frames, hidden ones included.
    pub(super) frames: u32,
}

impl Av1Summary {
    /// `None` where there is no sequence header, or a broken one. Of several, the largest size and depth count.
    pub(super) fn of(data: &[u8]) -> Option<Self> {
        let mut header: Option<SequenceHeader> = None;
        let mut frames = 0;
        for Unit { head, body, .. } in Units(data) {
            match kind(head) {
                1 => {
                    let next = SequenceHeader::of(body)?;
                    header = Some(header.map_or(next, |first| first.largest(next)));
                }
                // A frame header, or a whole frame.
                3 | 6 => frames += 1,
                _ => {}
            }
        }
        Some(Self { header: header?, frames })
    }
}

/// The same AV1 data with zeros behind the entropy-coded data, in all `padding` at most. `None`: a unit is cut, or there is
/// no such data.
pub(super) fn padded(data: &[u8], padding: usize) -> Option<Vec<u8>> {
    // A group of tiles, or a whole frame. Its last tile is as long as the unit.
    let has_tiles = |unit: &Unit<'_>| matches!(kind(unit.head), 4 | 6);
    let each = padding.checked_div(Units(data).filter(has_tiles).count())?;
    let mut longer = Vec::with_capacity(data.len() + padding + 8);
    for unit in Units(data) {
        if unit.is_cut {
            return None;
        }
        let zeros = if has_tiles(&unit) { each } else { 0 };
        longer.push(unit.head[0] | 2);
        longer.extend_from_slice(&unit.head[1..]);
        let mut size = unit.body.len() + zeros;
        while size > 0x7F {
            longer.push(0x80 | size.to_le_bytes()[0]);
            size >>= 7;
        }
        longer.push(size.to_le_bytes()[0]);
        longer.extend_from_slice(unit.body);
        longer.resize(longer.len() + zeros, 0);
    }
    Some(longer)
}

/// What a unit is, by its first byte.
fn kind(head: &[u8]) -> u8 {
    (head[0] >> 3) & 15
}

/// One unit of AV1 data (specification, 5.3).
struct Unit<'a> {
    /// One byte, or two.
    head: &'a [u8],
    body: &'a [u8],
    /// Whether the data ends before the unit does.
    is_cut: bool,
}

/// The units of AV1 data, in order.
struct Units<'a>(&'a [u8]);

impl<'a> Iterator for Units<'a> {
    type Item = Unit<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let first = *self.0.first()?;
        let (head, mut rest) = self.0.split_at_checked(if first & 4 != 0 { 2 } else { 1 })?;
        let size = if first & 2 != 0 {
            let mut size = 0u64;
            // leb128 (4.10.5), 8 bytes at most.
            for shift in (0..56).step_by(7) {
                let (&byte, after) = rest.split_first()?;
                rest = after;
                size |= u64::from(byte & 0x7F) << shift;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            usize::try_from(size).unwrap_or(usize::MAX)
        } else {
            rest.len()
        };
        let (body, after) = rest.split_at(size.min(rest.len()));
        self.0 = after;
        Some(Unit { head, body, is_cut: size > rest.len() })
    }
}

/// Bits, most significant first. `None`: the data ends before.
struct Bits<'a> {
    data: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn bit(&mut self) -> Option<bool> {
        let byte = self.data.get(self.at / 8)?;
        let bit = (byte >> (7 - self.at % 8)) & 1 == 1;
        self.at += 1;
        Some(bit)
    }

    fn number(&mut self, bits: u32) -> Option<u32> {
        (0..bits).try_fold(0u32, |number, _| Some(number << 1 | u32::from(self.bit()?)))
    }

    fn byte(&mut self) -> Option<u16> {
        u16::try_from(self.number(8)?).ok()
    }

    fn skip(&mut self, bits: u32) -> Option<()> {
        (0..bits).try_for_each(|_| self.bit().map(drop))
    }
}

impl SequenceHeader {
    /// Of both the largest of everything.
    pub(super) fn largest(self, other: Self) -> Self {
        Self {
            width: self.width.max(other.width),
            height: self.height.max(other.height),
            bit_depth: self.bit_depth.max(other.bit_depth),
            is_monochrome: self.is_monochrome && other.is_monochrome,
            subsampled: (self.subsampled.0 && other.subsampled.0, self.subsampled.1 && other.subsampled.1),
            colour: self.colour,
        }
    }

    /// Bytes for one pixel of a decoded frame, rounded up.
    pub(super) fn bytes_per_pixel(&self) -> u64 {
        let samples = match (self.is_monochrome, self.subsampled) {
            (true, _) => 2,
            (_, (true, true)) => 3,
            (_, (true, false)) => 4,
            _ => 6,
        };
        let bytes = if self.bit_depth > 8 { 2 } else { 1 };
        u64::div_ceil(samples * bytes, 2)
    }

    /// Specification, 5.5.1. The names in the comments are the specification's.
    fn of(data: &[u8]) -> Option<Self> {
        let mut bits = Bits { data, at: 0 };
        let profile = bits.number(3)?;
        // still_picture
        bits.skip(1)?;
        let is_reduced = bits.bit()?;
        if is_reduced {
            // seq_level_idx
            bits.skip(5)?;
        } else {
            Self::skip_operating_points(&mut bits)?;
        }
        let (width_bits, height_bits) = (bits.number(4)? + 1, bits.number(4)? + 1);
        let (width, height) = (bits.number(width_bits)? + 1, bits.number(height_bits)? + 1);
        // frame_id_numbers_present_flag
        if !is_reduced && bits.bit()? {
            bits.skip(4 + 3)?;
        }
        // use_128x128_superblock, enable_filter_intra, enable_intra_edge_filter
        bits.skip(3)?;
        if !is_reduced {
            Self::skip_inter_tools(&mut bits)?;
        }
        // enable_superres, enable_cdef, enable_restoration
        bits.skip(3)?;
        Self::read_colour(&mut bits, profile, (width, height))
    }

    fn skip_operating_points(bits: &mut Bits<'_>) -> Option<()> {
        let mut delay_bits = None;
        // timing_info_present_flag
        if bits.bit()? {
            bits.skip(32 + 32)?;
            // equal_picture_interval, then a number in uvlc (4.10.3)
            if bits.bit()? {
                let mut zeros = 0;
                while !bits.bit()? {
                    zeros += 1;
                }
                bits.skip(zeros)?;
            }
            // decoder_model_info_present_flag
            if bits.bit()? {
                delay_bits = Some(bits.number(5)? + 1);
                bits.skip(32 + 5 + 5)?;
            }
        }
        let has_display_delay = bits.bit()?;
        for _ in 0..=bits.number(5)? {
            bits.skip(12)?;
            // seq_level_idx, seq_tier
            if bits.number(5)? > 7 {
                bits.skip(1)?;
            }
            if let Some(delay) = delay_bits
                && bits.bit()?
            {
                bits.skip(2 * delay + 1)?;
            }
            if has_display_delay && bits.bit()? {
                bits.skip(4)?;
            }
        }
        Some(())
    }

    fn skip_inter_tools(bits: &mut Bits<'_>) -> Option<()> {
        // enable_interintra_compound, enable_masked_compound, enable_warped_motion, enable_dual_filter
        bits.skip(4)?;
        let has_order_hint = bits.bit()?;
        if has_order_hint {
            // enable_jnt_comp, enable_ref_frame_mvs
            bits.skip(2)?;
        }
        // seq_choose_screen_content_tools, seq_force_screen_content_tools
        let has_screen_content = bits.bit()? || bits.bit()?;
        // seq_choose_integer_mv, seq_force_integer_mv
        if has_screen_content && !bits.bit()? {
            bits.skip(1)?;
        }
        if has_order_hint {
            bits.skip(3)?;
        }
        Some(())
    }

    /// Specification, 5.5.2.
    fn read_colour(bits: &mut Bits<'_>, profile: u32, (width, height): (u32, u32)) -> Option<Self> {
        let is_deep = bits.bit()?;
        let bit_depth = match is_deep {
            false => 8,
            true if profile == 2 && bits.bit()? => 12,
            true => 10,
        };
        let is_monochrome = profile != 1 && bits.bit()?;
        // 2 is unspecified.
        let (primaries, transfer, matrix) =
            if bits.bit()? { (bits.byte()?, bits.byte()?, bits.byte()?) } else { (2, 2, 2) };
        // Red, green and blue themselves always have the full range.
        let is_rgb = !is_monochrome && (primaries, transfer, matrix) == (1, 13, 0);
        let is_full_range = is_rgb || bits.bit()?;
        let subsampled = match profile {
            _ if is_monochrome => (true, true),
            _ if is_rgb => (false, false),
            0 => (true, true),
            1 => (false, false),
            _ if bit_depth == 12 => {
                let across = bits.bit()?;
                (across, across && bits.bit()?)
            }
            _ => (true, false),
        };
        let colour = Nclx { primaries, transfer, matrix, is_full_range };
        Some(Self { width, height, bit_depth, is_monochrome, subsampled, colour })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_put_behind_each_group_of_tiles_and_the_sizes_say_so() {
        let zeros = [0; 100];
        // A delimiter, a frame header, a group with an extended head, and one up to the end.
        let data = [0x12, 0, 0x1A, 1, 7, 0x26, 9, 2, 5, 6, 0x20, 8];
        let longer = [&[0x12, 0, 0x1A, 1, 7, 0x26, 9, 102, 5, 6][..], &zeros, &[0x22, 101, 8], &zeros].concat();
        assert_eq!(padded(&data, 200).unwrap(), longer);
        let longer = [&[0x32, 0xC9, 1, 8][..], &zeros, &zeros].concat();
        assert_eq!(padded(&[0x32, 1, 8], 200).unwrap(), longer);
        assert_eq!(padded(&[0x32, 2, 8], 200), None, "the unit is cut");
        assert_eq!(padded(&[0x12, 0], 200), None, "there are no tiles");
    }
}
