//! The compressed indices of a GIF frame (CompuServe GIF89a, appendix F).

const MAX_CODES: usize = 4096;
const MAX_CODE_BITS: u32 = 12;

/// Where indices go. It returns false when it has all that it needs.
pub(super) trait IndexSink {
    fn put(&mut self, indices: &[u8]) -> bool;
}

/// Decodes the indices that lie in the sub-blocks at the beginning of `data`, up to the first thing that is wrong. What
/// the sink got until then is valid. The table is reused from frame to frame.
pub(super) fn decode_indices(data: &[u8], literal_bits: u8, table: &mut CodeTable, sink: &mut impl IndexSink) {
    if literal_bits > 8 {
        return;
    }
    let mut bits = BitReader { blocks: SubBlocks { data }, block: &[], held: 0, held_bits: 0 };
    table.start(u32::from(literal_bits));
    while let Some(code) = bits.read(table.code_bits) {
        if code == table.clear_code() {
            table.clear();
        } else if code == table.clear_code() + 1 {
            return;
        } else {
            let Some(indices) = table.expand(code) else { return };
            if !sink.put(indices) {
                return;
            }
        }
    }
}

/// The sub-blocks (§15), each a length and as many bytes, up to a length of zero or to the end of the file.
struct SubBlocks<'a> {
    data: &'a [u8],
}

impl<'a> Iterator for SubBlocks<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.data.split_first()?;
        // A block that the file's end cuts is shorter.
        let (block, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        self.data = rest;
        (!block.is_empty()).then_some(block)
    }
}

/// Codes, the lowest bit first.
struct BitReader<'a> {
    blocks: SubBlocks<'a>,
    block: &'a [u8],
    held: u32,
    held_bits: u32,
}

impl BitReader<'_> {
    fn read(&mut self, count: u32) -> Option<usize> {
        while self.held_bits < count {
            while self.block.is_empty() {
                self.block = self.blocks.next()?;
            }
            let (byte, rest) = self.block.split_first()?;
            self.block = rest;
            self.held |= u32::from(*byte) << self.held_bits;
            self.held_bits += 8;
        }
        let code = self.held & ((1 << count) - 1);
        self.held >>= count;
        self.held_bits -= count;
        Some(code as usize)
    }
}

/// What each code stands for: the indices of another code, and one more.
pub(super) struct CodeTable {
    literal_bits: u32,
    code_bits: u32,
    /// The number of codes so far, the clear code and the end code among them.
    len: usize,
    previous: Option<u16>,
    prefix: [u16; MAX_CODES],
    suffix: [u8; MAX_CODES],
    /// The indices of the code that was expanded last, at its end.
    expanded: [u8; MAX_CODES + 1],
}

impl CodeTable {
    pub(super) fn new() -> Self {
        Self {
            literal_bits: 0,
            code_bits: 0,
            len: 0,
            previous: None,
            prefix: [0; MAX_CODES],
            suffix: [0; MAX_CODES],
            expanded: [0; MAX_CODES + 1],
        }
    }

    /// Begins a frame. Codes of the frame before are not read again: they lie behind the length.
    fn start(&mut self, literal_bits: u32) {
        self.literal_bits = literal_bits;
        self.clear();
    }

    fn clear_code(&self) -> usize {
        1 << self.literal_bits
    }

    fn clear(&mut self) {
        self.code_bits = self.literal_bits + 1;
        self.len = self.clear_code() + 2;
        self.previous = None;
    }

    /// The indices of a code, or `None` for a code that stands for nothing yet.
    fn expand(&mut self, code: usize) -> Option<&[u8]> {
        let mut at = self.expanded.len();
        let mut walk = code;
        if code >= self.len {
            // The code that is about to be added is the previous one, and its own first index.
            walk = self.previous.filter(|_| code == self.len).map(usize::from)?;
            at -= 1;
        }
        while walk >= self.clear_code() {
            at -= 1;
            self.expanded[at] = self.suffix[walk];
            walk = usize::from(self.prefix[walk]);
        }
        at -= 1;
        let first = literal(walk);
        self.expanded[at] = first;
        if code >= self.len {
            self.expanded[MAX_CODES] = first;
        }
        if self.len < MAX_CODES {
            if let Some(previous) = self.previous {
                self.prefix[self.len] = previous;
                self.suffix[self.len] = first;
                self.len += 1;
            }
            if self.code_bits < MAX_CODE_BITS && self.len >> self.code_bits & 1 == 1 {
                self.code_bits += 1;
            }
        }
        self.previous = u16::try_from(code).ok();
        Some(&self.expanded[at..])
    }
}

/// A code below the clear code is an index, which has at most eight bits.
fn literal(code: usize) -> u8 {
    u8::try_from(code).unwrap_or_default()
}
