//! How much of a cut scan a browser shows: whole rows of blocks, and nothing of a row that is not whole. The rest stays
//! transparent.
//!
//! Chromium decodes with libjpeg and waits for data that never comes. libjpeg gives up a block when it cannot fill its
//! 64-bit buffer, so that the last bytes before the cut show nothing, even where they would be enough. This file follows
//! libjpeg-turbo's steps (`jdhuff.c`, `jdmarker.c`, `jdcoefct.c`) as far as they decide where it stops, and decodes no pixel.

use super::segments::{Segment, marker, starts_frame};

/// A scan behind whose data, or in it, the file ends.
pub(super) struct CutScan<'a> {
    /// Tables and headers before the data, in order.
    pub(super) segments: Vec<Segment<'a>>,
    /// The data, and what follows it.
    pub(super) data: &'a [u8],
}

/// libjpeg fills its buffer until it holds at least so many bits.
const FILLED_BITS: u32 = 57;
/// So many bits are looked up at once.
const LOOKAHEAD_BITS: u32 = 8;

/// The file ended.
struct Ended;

struct Component {
    id: u8,
    across: u32,
    down: u32,
}

/// A Huffman table (T.81, annex C).
struct Table {
    /// The length of the code that these 8 bits begin with, and its value; length 0: it is longer.
    short: Vec<(u32, u8)>,
    /// By length: the largest code, or -1, and what to add to a code for the place of its value.
    largest: [i32; 17],
    offset: [i32; 17],
    values: Vec<u8>,
}

impl Table {
    fn new(counts: &[u8], values: &[u8]) -> Self {
        let mut table = Self { short: vec![(0, 0); 256], largest: [-1; 17], offset: [0; 17], values: values.to_vec() };
        let (mut code, mut place) = (0i32, 0i32);
        for (length, count) in (1u32..).zip(counts.iter().take(16)) {
            let at = length as usize;
            table.offset[at] = place - code;
            for _ in 0..*count {
                let value = usize::try_from(place).ok().and_then(|place| values.get(place)).copied().unwrap_or(0);
                if length <= LOOKAHEAD_BITS {
                    let spare = LOOKAHEAD_BITS - length;
                    let first = usize::try_from(code).unwrap_or(0) << spare;
                    table.short.iter_mut().skip(first).take(1 << spare).for_each(|entry| *entry = (length, value));
                }
                table.largest[at] = code;
                code += 1;
                place += 1;
            }
            code <<= 1;
        }
        table
    }
}

/// Data of a scan, read as libjpeg reads it.
struct BitReader<'a> {
    data: &'a [u8],
    buffer: u64,
    bits: u32,
    /// A marker that was met. No data is read beyond it.
    met: Option<u8>,
    /// Whether more bits were asked for than there are before that marker. Then blocks are left empty.
    is_short: bool,
}

impl BitReader<'_> {
    fn byte(&mut self) -> Result<u8, Ended> {
        let (first, rest) = self.data.split_first().ok_or(Ended)?;
        self.data = rest;
        Ok(*first)
    }

    fn fill(&mut self, wanted: u32) -> Result<(), Ended> {
        while self.met.is_none() && self.bits < FILLED_BITS {
            let mut byte = self.byte()?;
            if byte == 0xFF {
                while byte == 0xFF {
                    byte = self.byte()?;
                }
                if byte != 0 {
                    self.met = Some(byte);
                    break;
                }
                byte = 0xFF;
            }
            self.buffer = self.buffer << 8 | u64::from(byte);
            self.bits += 8;
        }
        if wanted > self.bits {
            self.is_short = true;
            self.buffer <<= FILLED_BITS - self.bits;
            self.bits = FILLED_BITS;
        }
        Ok(())
    }

    fn take(&mut self, count: u32) -> Result<i32, Ended> {
        if self.bits < count {
            self.fill(count)?;
        }
        self.bits -= count;
        #[expect(clippy::cast_possible_truncation, reason = "at most 16 bits are taken")]
        let taken = (self.buffer >> self.bits) as i32 & ((1 << count) - 1);
        Ok(taken)
    }

    fn symbol(&mut self, table: &Table) -> Result<u8, Ended> {
        if self.bits < LOOKAHEAD_BITS {
            self.fill(0)?;
        }
        let mut length = 1;
        if self.bits >= LOOKAHEAD_BITS {
            let next = (self.buffer >> (self.bits - LOOKAHEAD_BITS)) & 0xFF;
            let (bits, value) = table.short[usize::try_from(next).unwrap_or(0)];
            if bits > 0 {
                self.bits -= bits;
                return Ok(value);
            }
            length = LOOKAHEAD_BITS + 1;
        }
        let mut code = self.take(length)?;
        while length <= 16 && code > table.largest[length as usize] {
            code = code << 1 | self.take(1)?;
            length += 1;
        }
        // libjpeg warns about a code that is in no table, and reads on as if it were 0.
        let place = if length > 16 { None } else { usize::try_from(code + table.offset[length as usize]).ok() };
        Ok(place.and_then(|place| table.values.get(place)).copied().unwrap_or(0))
    }

    fn skip_bits(&mut self, count: u8) -> Result<(), Ended> {
        self.take(u32::from(count.min(16))).map(drop)
    }

    fn next_marker(&mut self) -> Result<u8, Ended> {
        loop {
            while self.byte()? != 0xFF {}
            let mut code = self.byte()?;
            while code == 0xFF {
                code = self.byte()?;
            }
            if code != 0 {
                return Ok(code);
            }
        }
    }

    /// Looks for a restart marker of this number, and goes on without one where libjpeg does (`jpeg_resync_to_restart`).
    fn restart(&mut self, number: u8) -> Result<(), Ended> {
        self.bits = 0;
        let mut code = match self.met {
            Some(code) => code,
            None => self.next_marker()?,
        };
        let away = |code: u8| code.wrapping_sub(marker::RST0).wrapping_sub(number) & 7;
        self.met = loop {
            match code {
                marker::RST0..=marker::RST7 if matches!(away(code), 1 | 2) => break Some(code),
                marker::RST0..=marker::RST7 if !matches!(away(code), 6 | 7) => break None,
                marker::SOF0..marker::RST0 | marker::EOI.. | 0xD8 => break Some(code),
                _ => code = self.next_marker()?,
            }
        };
        if self.met.is_none() {
            self.is_short = false;
        }
        Ok(())
    }
}

/// What a scan is made of.
struct Scan {
    size: (u32, u32),
    /// The largest sampling factors.
    largest: (u32, u32),
    has_context: bool,
    is_progressive: bool,
    /// The tables for DC and AC, by the blocks of an MCU.
    blocks: Vec<(usize, usize)>,
    mcus_across: u32,
    /// Rows of MCUs in a row of the picture's blocks.
    mcu_rows: u32,
    restart_interval: u32,
    tables: [[Option<Table>; 4]; 2],
}

impl CutScan<'_> {
    /// The rows of pixels that are shown. `None` where that is not known here: arithmetic coding, default tables, or
    /// headers that make no sense.
    pub(super) fn rows_shown(&self) -> Option<u32> {
        let scan = self.scan()?;
        let block_rows = scan.size.1.div_ceil(8 * scan.largest.1);
        let read = scan.whole_rows(self.data, block_rows);
        // Blocks that are known by their mean only are smoothed, and libjpeg waits for the next two rows for that.
        let ready = if scan.is_progressive { read.saturating_sub(2) } else { read };
        let rows = ready * 8 * scan.largest.1;
        let waits_for_next_row = scan.has_context && ready < block_rows;
        let rows = if waits_for_next_row { rows.saturating_sub(scan.largest.1) } else { rows };
        Some(rows.min(scan.size.1))
    }

    fn scan(&self) -> Option<Scan> {
        let mut tables: [[Option<Table>; 4]; 2] = Default::default();
        let (mut frame, mut header, mut restart_interval) = (None, None, 0);
        for &Segment { marker: code, body } in &self.segments {
            match code {
                marker::DHT => read_tables(body, &mut tables)?,
                marker::DRI => restart_interval = u32::from(u16::from_be_bytes(*body.first_chunk()?)),
                marker::SOS => header = Some(body),
                code if starts_frame(code) => frame = Some((code, body)),
                _ => {}
            }
        }
        let ((code, frame), header) = (frame?, header?);
        if !matches!(code, marker::SOF0 | marker::SOF1 | marker::SOF2) {
            return None;
        }
        let is_progressive = code == marker::SOF2;
        let &[_, y1, y0, x1, x0, _, ref components @ ..] = frame else { return None };
        let size = (u32::from(u16::from_be_bytes([x1, x0])), u32::from(u16::from_be_bytes([y1, y0])));
        let components: Vec<Component> = components
            .chunks_exact(3)
            .map(|c| Component { id: c[0], across: u32::from(c[1] >> 4), down: u32::from(c[1] & 15) })
            .collect();
        if components.iter().any(|c| !(1..=4).contains(&c.across) || !(1..=4).contains(&c.down)) {
            return None;
        }
        let largest = (components.iter().map(|c| c.across).max()?, components.iter().map(|c| c.down).max()?);
        let has_context = components.iter().any(|c| {
            let is_wide = (size.0 * c.across).div_ceil(largest.0) > 2;
            2 * c.down == largest.1 && (c.across == largest.0 || 2 * c.across == largest.0 && is_wide)
        });
        let count = usize::from(*header.first()?);
        let selected = header.get(1..1 + 2 * count)?.chunks_exact(2).map(|selector| {
            let component = components.iter().find(|component| component.id == selector[0])?;
            Some((component, (usize::from(selector[1] >> 4), usize::from(selector[1] & 15))))
        });
        let selected: Vec<_> = selected.collect::<Option<_>>()?;
        if is_progressive && header.get(1 + 2 * count..)?.first()? != &0 {
            return None;
        }
        let (blocks, mcus_across, mcu_rows) = match selected[..] {
            [] => return None,
            // A scan of one component goes block by block (T.81, A.2.2).
            [(component, tables)] => {
                let across = (size.0 * component.across).div_ceil(8 * largest.0);
                (vec![tables], across, component.down)
            }
            _ => {
                let blocks = selected.iter().flat_map(|(c, tables)| vec![*tables; (c.across * c.down) as usize]);
                (blocks.collect(), size.0.div_ceil(8 * largest.0), 1)
            }
        };
        Some(Scan {
            size,
            largest,
            has_context,
            is_progressive,
            blocks,
            mcus_across,
            mcu_rows,
            restart_interval,
            tables,
        })
        .filter(Scan::has_tables)
    }
}

impl Scan {
    fn has_tables(&self) -> bool {
        let has = |class: usize, table: usize| self.tables[class].get(table).is_some_and(Option::is_some);
        self.blocks.iter().all(|(dc, ac)| has(0, *dc) && (self.is_progressive || has(1, *ac)))
    }

    /// The rows of blocks that are whole.
    fn whole_rows(&self, data: &[u8], block_rows: u32) -> u32 {
        let mut reader = BitReader { data, buffer: 0, bits: 0, met: None, is_short: false };
        let (mut left, mut number) = (self.restart_interval, 0);
        for row in 0..block_rows {
            for _ in 0..self.mcu_rows * self.mcus_across {
                if self.restart_interval > 0 && left == 0 {
                    if reader.restart(number).is_err() {
                        return row;
                    }
                    number = (number + 1) & 7;
                    left = self.restart_interval;
                }
                if !reader.is_short && self.read_mcu(&mut reader).is_err() {
                    return row;
                }
                left = left.saturating_sub(1);
            }
        }
        block_rows
    }

    fn read_mcu(&self, reader: &mut BitReader<'_>) -> Result<(), Ended> {
        for (dc, ac) in &self.blocks {
            let (Some(dc), ac) = (&self.tables[0][*dc], &self.tables[1][ac & 3]) else { return Err(Ended) };
            let size = reader.symbol(dc)?;
            reader.skip_bits(size)?;
            let Some(ac) = ac.as_ref().filter(|_| !self.is_progressive) else { continue };
            let mut coefficient = 1;
            while coefficient < 64 {
                let symbol = reader.symbol(ac)?;
                match (symbol >> 4, symbol & 15) {
                    (15, 0) => coefficient += 16,
                    (_, 0) => break,
                    (zeros, size) => {
                        coefficient += zeros + 1;
                        reader.skip_bits(size)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Reads the tables of one segment DHT (T.81, B.2.4.2).
fn read_tables(mut body: &[u8], tables: &mut [[Option<Table>; 4]; 2]) -> Option<()> {
    while let [head, rest @ ..] = body {
        let (counts, rest) = rest.split_at_checked(16)?;
        let length = counts.iter().map(|count| usize::from(*count)).sum();
        let (values, rest) = rest.split_at_checked(length)?;
        *tables.get_mut(usize::from(head >> 4))?.get_mut(usize::from(head & 15))? = Some(Table::new(counts, values));
        body = rest;
    }
    Some(())
}
