//! A reader that fails at a line that never ends. Inventories and manifests are read line by line, and a file of another
//! kind may be one line of many gigabytes.

use std::io::{self, Read};

/// Longer than any line: a key has at most 1,024 bytes, and metadata of a manifest is small.
const MAX_LINE_BYTES: usize = 1 << 20;

/// Bytes with lines of at most [`MAX_LINE_BYTES`].
pub(super) struct BoundedLines<R> {
    bytes: R,
    /// The length of the current line so far.
    line_bytes: usize,
}

impl<R> BoundedLines<R> {
    pub(super) const fn new(bytes: R) -> Self {
        Self { bytes, line_bytes: 0 }
    }
}

impl<R: Read> Read for BoundedLines<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.bytes.read(buffer)?;
        for line in buffer[..length].split_inclusive(|byte| *byte == b'\n') {
            self.line_bytes += line.len();
            if self.line_bytes > MAX_LINE_BYTES {
                let text = format!("a line is longer than {MAX_LINE_BYTES} bytes, so this is no list of images");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            if line.ends_with(b"\n") {
                self.line_bytes = 0;
            }
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    #[test]
    fn lines_pass_and_a_line_without_an_end_fails_before_it_is_in_memory() {
        let three = [vec![b'x'; MAX_LINE_BYTES - 1], vec![b'\n']].concat().repeat(3);
        let lines = BufReader::new(BoundedLines::new(&*three)).lines();
        assert_eq!(lines.map(|line| line.unwrap().len()).collect::<Vec<_>>(), [MAX_LINE_BYTES - 1; 3]);

        let mut endless = BufReader::new(BoundedLines::new(io::repeat(b'x')));
        let mut read = Vec::new();
        let error = endless.read_until(b'\n', &mut read).unwrap_err();
        assert!(error.to_string().contains("a line is longer than"), "{error}");
        assert!(read.len() <= MAX_LINE_BYTES);
    }
}
