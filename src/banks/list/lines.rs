//! The lines of a list, in bounded memory.

use std::io::{self, BufRead, Read};

use super::{ListError, MAX_LINE_BYTES};

/// Some editors begin a file with it.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Reads one line after the other.
pub(super) struct Lines<R> {
    input: R,
    /// The current line, without its end.
    line: Vec<u8>,
    /// Its number, counted from 1.
    number: u64,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, line: Vec::new(), number: 0 }
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The current line.
    pub(super) fn text(&self) -> Result<&str, ListError> {
        str::from_utf8(&self.line).map_err(|_| ListError::NotUtf8 { line: self.number })
    }

    /// Goes to the next line. `false` at the end of the list.
    pub(super) fn advance(&mut self) -> Result<bool, ListError> {
        self.line.clear();
        self.number += 1;
        // Room for a line end of two bytes.
        let limit = (MAX_LINE_BYTES + 2) as u64;
        let read = (&mut self.input).take(limit).read_until(b'\n', &mut self.line);
        let read = read.map_err(|source| ListError::Read { line: self.number, source })?;
        let end = [&b"\r\n"[..], b"\n"].into_iter().find(|end| self.line.ends_with(end)).unwrap_or_default();
        self.line.truncate(self.line.len() - end.len());
        if self.number == 1 && self.line.starts_with(BYTE_ORDER_MARK) {
            self.line.drain(..BYTE_ORDER_MARK.len());
        }
        if self.line.len() > MAX_LINE_BYTES {
            return Err(ListError::TooLong { line: self.number });
        }
        Ok(read > 0)
    }

    /// Goes to the next line that is neither blank nor a comment.
    pub(super) fn advance_to_content(&mut self) -> Result<bool, ListError> {
        while self.advance()? {
            let line = self.line.trim_ascii_start();
            if !line.is_empty() && !line.starts_with(b"#") {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Gives a parser of CSV the lines of one row, and no line more: only the parser sees where a row ends. So the number of
/// each row's first line is known, and a row of any length is refused in time.
pub(super) struct Rows<R> {
    lines: Lines<R>,
    /// The rest of the current line, with a line end. It begins with the line from which the form was recognised.
    rest: io::Cursor<Vec<u8>>,
    /// The line on which the current row begins.
    first_line: u64,
    row_bytes: usize,
    /// Why the last read failed.
    error: Option<ListError>,
}

impl<R: BufRead> Rows<R> {
    /// The current line is the first one of the first row.
    pub(super) fn new(lines: Lines<R>) -> Self {
        let mut rows = Self { rest: io::Cursor::default(), first_line: 0, row_bytes: 0, error: None, lines };
        rows.take_line();
        rows
    }

    /// Begins a row.
    pub(super) fn begin(&mut self) {
        self.row_bytes = 0;
    }

    /// The line on which the current row begins.
    pub(super) fn first_line(&self) -> u64 {
        self.first_line
    }

    pub(super) fn take_error(&mut self) -> Option<ListError> {
        self.error.take()
    }

    fn take_line(&mut self) {
        if self.row_bytes == 0 {
            self.first_line = self.lines.number;
        }
        let mut line = std::mem::take(&mut self.lines.line);
        line.push(b'\n');
        self.row_bytes += line.len();
        self.rest = io::Cursor::new(line);
    }

    fn next_line(&mut self) -> Result<bool, ListError> {
        // A line within a quoted cell may be blank.
        let has_line = if self.row_bytes == 0 { self.lines.advance_to_content()? } else { self.lines.advance()? };
        if has_line {
            self.take_line();
            // The end of the line that was added is not counted.
            if self.row_bytes > MAX_LINE_BYTES + 1 {
                return Err(ListError::TooLong { line: self.first_line });
            }
        }
        Ok(has_line)
    }
}

impl<R: BufRead> Read for Rows<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.rest.read(buffer)?;
        if read > 0 || buffer.is_empty() {
            return Ok(read);
        }
        match self.next_line() {
            Ok(true) => self.rest.read(buffer),
            Ok(false) => Ok(0),
            Err(error) => {
                self.error = Some(error);
                Err(io::ErrorKind::InvalidData.into())
            }
        }
    }
}
