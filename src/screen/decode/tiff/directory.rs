//! TIFF's directories (TIFF 6.0, section 2) and those of BigTIFF, whose numbers are twice as wide.

use std::collections::HashSet;

/// The most entries of a directory, as libtiff has it, and of all directories together. Directories may overlap, so that
/// a small file could have thousands of long ones.
const MAX_ENTRIES: usize = 4096;
const MAX_ALL_ENTRIES: usize = 1 << 20;

/// The start of a file.
#[derive(Clone, Copy)]
pub(super) struct File<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) is_little: bool,
    is_big: bool,
}

/// One directory: a page, as long as it is on the main chain.
pub(super) struct Directory<'a> {
    file: File<'a>,
    /// Where its entries are, without their number.
    entries: &'a [u8],
}

/// The values of a tag, which are whole numbers of no sign.
#[derive(Clone, Copy)]
pub(super) struct Values<'a> {
    pub(super) bytes: &'a [u8],
    width: usize,
    is_little: bool,
}

impl<'a> File<'a> {
    /// `None` where the bytes begin no TIFF.
    pub(super) fn new(bytes: &'a [u8]) -> Option<Self> {
        let (is_little, is_big) = match bytes.get(..4)? {
            b"II*\0" => (true, false),
            b"MM\0*" => (false, false),
            b"II+\0" => (true, true),
            b"MM\0+" => (false, true),
            _ => return None,
        };
        Some(Self { bytes, is_little, is_big })
    }

    /// The directories of the main chain, up to `max`, and whether the chain has a sound end.
    pub(super) fn directories(&self, max: usize) -> (Vec<Directory<'a>>, bool) {
        let mut directories = Vec::new();
        let mut seen = HashSet::new();
        let mut entries = 0;
        let Some(mut at) = (if self.is_big { self.number(8, 8) } else { self.number(4, 4) }) else {
            return (directories, false);
        };
        while at != 0 {
            let Some((directory, next)) = self.directory(at) else { return (directories, false) };
            entries += directory.entries.len() / self.entry_bytes();
            if directories.len() == max || entries > MAX_ALL_ENTRIES || !seen.insert(at) {
                return (directories, false);
            }
            directories.push(directory);
            // Without an offset behind it, a directory is the last one.
            at = next.unwrap_or_default();
        }
        (directories, true)
    }

    /// The directory at an offset, of which as many entries count as there are, and the offset of the next one.
    fn directory(&self, at: usize) -> Option<(Directory<'a>, Option<usize>)> {
        let (count_width, offset_width) = if self.is_big { (8, 8) } else { (2, 4) };
        let count = self.number(at, count_width).filter(|count| *count <= MAX_ENTRIES)?;
        let start = at.checked_add(count_width)?;
        let end = start.saturating_add(count.saturating_mul(self.entry_bytes())).min(self.bytes.len());
        let entries = self.bytes.get(start..end).filter(|entries| entries.len() >= self.entry_bytes())?;
        Some((Directory { file: *self, entries }, self.number(end, offset_width)))
    }

    fn entry_bytes(&self) -> usize {
        if self.is_big { 20 } else { 12 }
    }

    fn number(&self, at: usize, width: usize) -> Option<usize> {
        let bytes = self.bytes.get(at..at.checked_add(width)?)?;
        usize::try_from(number(bytes, self.is_little)).ok()
    }
}

impl<'a> Directory<'a> {
    /// A tag's values. Where there are two tags of a number, the first one counts.
    pub(super) fn values(&self, tag: u16) -> Option<Values<'a>> {
        let File { bytes, is_little, is_big } = self.file;
        let size = self.file.entry_bytes();
        let entry = self.entries.chunks_exact(size).find(|entry| number(&entry[..2], is_little) == u64::from(tag))?;
        // BYTE, ASCII and UNDEFINED; SHORT; LONG and IFD; LONG8 and IFD8.
        let width = match number(&entry[2..4], is_little) {
            1 | 2 | 7 => 1,
            3 => 2,
            4 | 13 => 4,
            16 | 18 => 8,
            _ => return None,
        };
        let (count, value) = if is_big { (&entry[4..12], &entry[12..]) } else { (&entry[4..8], &entry[8..]) };
        let length = usize::try_from(number(count, is_little)).ok()?.checked_mul(width)?;
        let bytes = if length <= value.len() {
            &value[..length]
        } else {
            let at = usize::try_from(number(value, is_little)).ok()?;
            // A tag whose values are behind the end of the file is none.
            bytes.get(at..at.checked_add(length)?)?
        };
        (!bytes.is_empty()).then_some(Values { bytes, width, is_little })
    }

    /// A tag's first value.
    pub(super) fn value(&self, tag: u16) -> Option<u64> {
        self.values(tag)?.get(0)
    }
}

impl Values<'_> {
    pub(super) fn get(&self, index: usize) -> Option<u64> {
        let at = index.checked_mul(self.width)?;
        Some(number(self.bytes.get(at..at + self.width)?, self.is_little))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.bytes.chunks_exact(self.width).map(|bytes| number(bytes, self.is_little))
    }
}

/// Up to eight bytes as a number.
fn number(bytes: &[u8], is_little: bool) -> u64 {
    let add = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
    if is_little { bytes.iter().rev().fold(0, add) } else { bytes.iter().fold(0, add) }
}
