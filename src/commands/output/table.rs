//! A table for people, which is readable at 80 columns.
//!
//! Identifiers, digests, times, paths and figures are never broken over lines: a person copies them. Only running text is
//! wrapped. What does not fit beside the rest is printed below its row, and a table that is too wide even so becomes a
//! list of fields.

use std::fmt::{self, Display, Formatter};
use std::io::{self, IsTerminal};

/// Columns of running text, in every table. All other columns hold words that are never broken.
const TEXT_COLUMNS: [&str; 9] =
    ["reason", "announced", "history", "labels", "body", "note", "caution", "last_error", "metadata"];

/// The width of a table that does not go to a terminal.
const DEFAULT_WIDTH: usize = 80;

/// A narrower terminal gets lines that are longer than it is.
const MIN_WIDTH: usize = 40;

/// Spaces between two columns.
const GAP: usize = 2;

/// Spaces before a line below a row.
const INDENT: usize = 4;

/// Rows with the same columns.
pub(super) struct Table {
    columns: &'static [&'static str],
    rows: Vec<Vec<String>>,
    width: usize,
}

impl Table {
    /// A table as wide as the terminal.
    pub(super) fn new(columns: &'static [&'static str]) -> Self {
        let terminal = if io::stdout().is_terminal() { comfy_table::Table::new().width() } else { None };
        Self { columns, rows: Vec::new(), width: terminal.map_or(DEFAULT_WIDTH, usize::from).max(MIN_WIDTH) }
    }

    /// Adds a row, with one cell for each column. Cells have no control characters.
    pub(super) fn add_row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    pub(super) const fn row_count(&self) -> usize {
        self.rows.len()
    }

    fn is_text(&self, column: usize) -> bool {
        TEXT_COLUMNS.contains(&self.columns[column])
    }

    /// The width of a column's widest cell or of its name.
    fn column_width(&self, column: usize) -> usize {
        let cells = self.rows.iter().map(|row| display_width(&row[column]));
        cells.max().unwrap_or(0).max(display_width(self.columns[column]))
    }

    /// Where each column goes, or `None` where the table does not fit.
    fn layout(&self) -> Option<Layout> {
        let columns = 0..self.columns.len();
        let (text, whole): (Vec<usize>, Vec<usize>) = columns.partition(|column| self.is_text(*column));
        let is_used = |column: &usize| self.rows.iter().any(|row| !row[*column].is_empty());
        let mut below: Vec<usize> = text.into_iter().filter(is_used).collect();
        let mut beside: Vec<(usize, usize)> =
            whole.into_iter().map(|column| (column, self.column_width(column))).collect();
        let mut used = beside.iter().map(|(_, width)| width + GAP).sum::<usize>().saturating_sub(GAP);
        if let Some((last, width)) = beside.last_mut()
            && used > self.width
        {
            // A cell of the last column that is too wide is printed below its row.
            let room = self.width.saturating_sub(used - *width);
            if room < display_width(self.columns[*last]) {
                return None;
            }
            (used, *width) = (self.width, room);
        }
        if let [text] = below[..] {
            let width = self.column_width(text);
            if used + GAP + width <= self.width {
                beside.push((text, width));
                below.clear();
            }
        }
        Some(Layout { beside, below })
    }

    fn write_table(&self, layout: &Layout, f: &mut Formatter<'_>) -> fmt::Result {
        let Layout { beside, below } = layout;
        let line = |cells: &dyn Fn(usize) -> String| {
            let mut line = String::new();
            for (column, width) in beside {
                let cell = cells(*column);
                let shown = if display_width(&cell) <= *width { cell.as_str() } else { "" };
                line += shown;
                line += &" ".repeat(width + GAP - display_width(shown));
            }
            line.trim_end().to_owned()
        };
        let total = beside.iter().map(|(_, width)| width + GAP).sum::<usize>().saturating_sub(GAP);
        let mut lines = vec![line(&|column| self.columns[column].to_owned()), "─".repeat(total)];
        for row in &self.rows {
            lines.push(line(&|column| row[column].clone()));
            for (column, width) in beside {
                if display_width(&row[*column]) > *width {
                    lines.push(format!("{}{}", " ".repeat(INDENT), row[*column]));
                }
            }
            for column in below.iter().filter(|column| !row[**column].is_empty()) {
                let name = if below.len() > 1 { format!("{}: ", self.columns[*column]) } else { String::new() };
                let text = format!("{name}{}", row[*column]);
                let wrapped = wrap(&text, self.width - INDENT);
                lines.extend(wrapped.into_iter().map(|text| format!("{}{text}", " ".repeat(INDENT))));
            }
        }
        f.write_str(&lines.join("\n"))
    }

    /// Each row as a list of its fields, with an empty line between rows.
    fn write_list(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let names = self.columns.iter().map(|column| display_width(column)).max().unwrap_or(0) + GAP;
        let mut blocks = Vec::new();
        for row in &self.rows {
            let mut lines = Vec::new();
            for (column, cell) in row.iter().enumerate().filter(|(_, cell)| !cell.is_empty()) {
                let parts = if self.is_text(column) {
                    wrap(cell, self.width.saturating_sub(names).max(INDENT))
                } else {
                    vec![cell.clone()]
                };
                for (i, part) in parts.into_iter().enumerate() {
                    let name = if i == 0 { self.columns[column] } else { "" };
                    lines.push(format!("{name:names$}{part}"));
                }
            }
            blocks.push(lines.join("\n"));
        }
        f.write_str(&blocks.join("\n\n"))
    }
}

/// Columns by their index, with their widths.
struct Layout {
    beside: Vec<(usize, usize)>,
    /// Columns of text that are printed below each row.
    below: Vec<usize>,
}

impl Display for Table {
    /// Without a line break at the end.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.layout() {
            Some(layout) => self.write_table(&layout, f),
            None => self.write_list(f),
        }
    }
}

/// Breaks a text at spaces. A longer word is a line by itself.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if display_width(line) + 1 + display_width(word) <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// The number of columns that a text takes on a terminal.
fn display_width(text: &str) -> usize {
    if text.is_ascii() {
        return text.len();
    }
    let mut table = comfy_table::Table::new();
    table.add_row([text]);
    table.column_max_content_widths().first().map_or(0, |width| usize::from(*width))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(width: usize, columns: &'static [&'static str], rows: &[&[&str]]) -> String {
        let mut table = Table { width, ..Table::new(columns) };
        for row in rows {
            table.add_row(row.iter().map(|cell| (*cell).to_owned()).collect());
        }
        table.to_string()
    }

    const LONG_PATH: &str = "/home/operator/pictures/2026/november/the wedding of a friend/DSC_0001 (copy).jpg";
    const REASON: &str = "damaged JPEG: the file ends before the image does";

    #[test]
    fn what_does_not_fit_beside_a_row_is_printed_below_it() {
        let columns = &["outcome", "score", "image", "reason"];
        let rows: [&[&str]; 4] = [
            &["passed", "0.0148 by AI", "models/samples/alpha.png", ""],
            &["undecodable", "", "models/samples/bad-cut-short.jpg", REASON],
            &["flagged", "0.9257 by AI", LONG_PATH, "cifake-32 says \"by AI\" 0.9257, flag_at is 0.9"],
            &["passed", "0.1 写真", "写真.jpg", ""],
        ];
        insta::assert_snapshot!(table(80, columns, &rows));
        let wide = table(220, columns, &rows);
        assert_eq!(wide.lines().count(), 2 + rows.len(), "{wide}");
    }

    #[test]
    fn identifiers_digests_and_times_are_never_broken() {
        let columns = &["name", "digest", "judged_at", "job_id", "labels"];
        let (digest, time) = ("f".repeat(64), "2026-11-29T23:19:39.123456789Z");
        let id = "8a1b3a1e-41b5-5d7a-9b6c-0d0c5a5e7f00";
        let labels = "[\"by AI\",\"by human\",\"drawing\",\"photograph of a drawing\",\"photograph of a screen\"]";
        let rows: [&[&str]; 2] = [&["cifake-32", &digest, time, id, labels], &["other", &digest, time, id, ""]];
        for width in [MIN_WIDTH, 80, 120, 200, 400] {
            let text = table(width, columns, &rows);
            for whole in [digest.as_str(), time, id] {
                assert_eq!(text.matches(whole).count(), 2, "{width}:\n{text}");
            }
        }
        insta::assert_snapshot!(table(80, columns, &rows));
    }

    #[test]
    fn no_line_of_words_is_longer_than_the_table() {
        let (columns, text) = (&["outcome", "image", "reason"], "word ".repeat(100));
        for width in [MIN_WIDTH, 80, 120] {
            for line in table(width, columns, &[&["passed", "a.jpg", text.trim_end()]]).lines() {
                assert!(display_width(line) <= width, "{line}");
            }
        }
    }
}
