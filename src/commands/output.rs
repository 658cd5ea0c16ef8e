//! Rows to stdout as a table, JSON lines or CSV.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Map, Value};

/// Characters across, where no terminal says how many.
const WIDTH: u16 = 120;

/// How rows are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people; the default on a terminal.
    Table,
    /// One JSON object a line; the default elsewhere.
    Jsonl,
    /// With a header line.
    Csv,
}

impl Format {
    /// The format asked for, or the one that fits where stdout goes.
    pub(super) fn or_default(choice: Option<Self>) -> Self {
        choice.unwrap_or(if io::stdout().is_terminal() { Self::Table } else { Self::Jsonl })
    }
}

/// Rows of a table that are laid out together. A longer table is printed in pieces, each with its header: that keeps
/// memory bounded, and the header in sight.
const PIECE: usize = 100;

/// Prints rows one by one; only a table waits for the last row of a piece.
pub(super) struct Output {
    columns: &'static [&'static str],
    sink: Sink,
    /// Whoever reads a pipe wants each line now; in bulk, they want many.
    prompt: bool,
}

enum Sink {
    Table(Table),
    Jsonl(io::BufWriter<io::Stdout>),
    Csv(csv::Writer<io::Stdout>),
}

impl Output {
    /// `columns` are those of table and CSV; JSON lines hold every field.
    pub(super) fn new(format: Format, columns: &'static [&'static str]) -> io::Result<Self> {
        let sink = match format {
            Format::Table => Sink::Table(grid(columns)),
            Format::Jsonl => Sink::Jsonl(io::BufWriter::new(io::stdout())),
            Format::Csv => {
                let mut writer = csv::Writer::from_writer(io::stdout());
                writer.write_record(columns)?;
                Sink::Csv(writer)
            }
        };
        Ok(Self { columns, sink, prompt: true })
    }

    /// The same for rows by the million, which come faster than anybody reads.
    pub(super) fn bulk(format: Format, columns: &'static [&'static str]) -> io::Result<Self> {
        Ok(Self { prompt: false, ..Self::new(format, columns)? })
    }

    pub(super) fn row(&mut self, row: &Map<String, Value>) -> io::Result<()> {
        let digits = if matches!(self.sink, Sink::Table(_)) { Digits::Few } else { Digits::All };
        let cells = self.columns.iter().map(|column| cell(row.get(*column), digits));
        match &mut self.sink {
            Sink::Table(table) => {
                table.add_row(cells);
                if table.row_count() == PIECE {
                    writeln!(io::stdout(), "{}", std::mem::replace(table, grid(self.columns)))?;
                }
            }
            Sink::Jsonl(out) => {
                out.write_all(escaped(&serde_json::to_string(row)?).as_bytes())?;
                out.write_all(b"\n")?;
                if self.prompt {
                    out.flush()?;
                }
            }
            Sink::Csv(writer) => writer.write_record(cells)?,
        }
        Ok(())
    }

    pub(super) fn finish(self) -> io::Result<()> {
        match self.sink {
            Sink::Table(table) if table.row_count() == 0 => Ok(()),
            Sink::Table(table) => writeln!(io::stdout(), "{table}"),
            Sink::Jsonl(mut out) => out.flush(),
            Sink::Csv(mut writer) => writer.flush(),
        }
    }
}

/// A table as text, for a command that prints several.
pub(super) fn table(columns: &'static [&'static str], rows: &[Map<String, Value>]) -> String {
    let mut table = grid(columns);
    table.add_rows(rows.iter().map(|row| columns.iter().map(|column| cell(row.get(*column), Digits::Few))));
    table.to_string()
}

/// A table that has only its header yet.
fn grid(columns: &'static [&'static str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    if !io::stdout().is_terminal() {
        table.set_width(WIDTH);
    }
    table.set_header(columns);
    table
}

/// How much of a fraction is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Digits {
    Few,
    All,
}

/// A value as a person reads it.
fn cell(value: Option<&Value>, digits: Digits) -> String {
    let text = match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(n)) if digits == Digits::Few && n.is_f64() => {
            format!("{:.4}", n.as_f64().unwrap_or_default())
        }
        Some(other) => other.to_string(),
    };
    printable(&text)
}

/// JSON whose control characters are all escaped: of those from U+007F to U+009F, which a terminal may obey as well, JSON
/// itself demands that not.
pub(super) fn escaped(json: &str) -> Cow<'_, str> {
    if !json.contains(is_late_control) {
        return Cow::Borrowed(json);
    }
    let escape = |c: char| if is_late_control(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    Cow::Owned(json.chars().map(escape).collect())
}

fn is_late_control(c: char) -> bool {
    ('\u{7f}'..='\u{9f}').contains(&c)
}

/// Text that may come from anybody, with its control characters escaped: a terminal would obey them.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_a_terminal_obeys_is_printed_raw() {
        let row = serde_json::json!({"key": "a\u{1b}[2J\u{9b}2J\u{7f} \u{e9}\n"});
        let line = escaped(&row.to_string()).into_owned();
        assert!(!line.chars().any(char::is_control), "{line:?}");
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), row, "and it is the same JSON");
        assert!(!printable("a\u{9b}2J\n").chars().any(char::is_control));
    }
}
