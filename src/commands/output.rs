//! Rows to stdout as a table, JSON lines or CSV.

mod table;

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::console::{Stdout, stdout};
pub(super) use crate::escape::{escape_late_controls as escaped, printable};
use table::Table;

/// How rows are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people; the default on a terminal.
    Table,
    /// One JSON object per line; the default elsewhere.
    Jsonl,
    /// With a header line.
    Csv,
}

impl Format {
    /// The chosen format, or the default for where stdout goes.
    pub(super) fn or_default(choice: Option<Self>) -> Self {
        choice.unwrap_or(if io::stdout().is_terminal() { Self::Table } else { Self::Jsonl })
    }
}

/// Rows that are laid out together. A longer table is printed in pieces, each with its header: that bounds memory and
/// keeps the header visible.
const ROWS_PER_TABLE: usize = 100;

/// Prints rows one by one; only a table waits until its piece is complete.
pub(super) struct Output {
    columns: &'static [&'static str],
    sink: RowSink,
    /// Whether each line is flushed at once, for the program that reads the pipe.
    flush_each: bool,
}

enum RowSink {
    Table(Table),
    Jsonl(io::BufWriter<Stdout>),
    Csv(Box<csv::Writer<Stdout>>),
}

impl Output {
    /// `columns` are the columns of table and CSV; JSON lines hold every field.
    pub(super) fn new(format: Format, columns: &'static [&'static str]) -> io::Result<Self> {
        let sink = match format {
            Format::Table => RowSink::Table(Table::new(columns)),
            Format::Jsonl => RowSink::Jsonl(io::BufWriter::new(stdout())),
            Format::Csv => {
                let mut writer = csv::Writer::from_writer(stdout());
                writer.write_record(columns)?;
                RowSink::Csv(Box::new(writer))
            }
        };
        Ok(Self { columns, sink, flush_each: true })
    }

    /// For millions of rows: lines are flushed together.
    pub(super) fn bulk(format: Format, columns: &'static [&'static str]) -> io::Result<Self> {
        Ok(Self { flush_each: false, ..Self::new(format, columns)? })
    }

    pub(super) fn row(&mut self, row: &Map<String, Value>) -> io::Result<()> {
        let precision = if matches!(self.sink, RowSink::Table(_)) { Precision::FourDecimals } else { Precision::Full };
        let cells = self.columns.iter().map(|column| cell(row.get(*column), precision));
        match &mut self.sink {
            RowSink::Table(table) => {
                table.add_row(cells.collect());
                if table.row_count() == ROWS_PER_TABLE {
                    writeln!(stdout(), "{}", std::mem::replace(table, Table::new(self.columns)))?;
                }
            }
            RowSink::Jsonl(out) => {
                out.write_all(escaped(&serde_json::to_string(row)?).as_bytes())?;
                out.write_all(b"\n")?;
                if self.flush_each {
                    out.flush()?;
                }
            }
            RowSink::Csv(writer) => writer.write_record(cells)?,
        }
        Ok(())
    }

    pub(super) fn finish(self) -> io::Result<()> {
        match self.sink {
            RowSink::Table(table) if table.row_count() == 0 => Ok(()),
            RowSink::Table(table) => writeln!(stdout(), "{table}"),
            RowSink::Jsonl(mut out) => out.flush(),
            RowSink::Csv(mut writer) => writer.flush(),
        }
    }
}

/// A table as text, for a command that prints several.
pub(super) fn table(columns: &'static [&'static str], rows: &[Map<String, Value>]) -> String {
    let mut table = Table::new(columns);
    for row in rows {
        table.add_row(columns.iter().map(|column| cell(row.get(*column), Precision::FourDecimals)).collect());
    }
    table.to_string()
}

/// A row of these fields.
pub(super) fn fields<const N: usize>(fields: [(&str, Value); N]) -> Map<String, Value> {
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The columns of a table, and its rows.
pub(super) type TableRows = (&'static [&'static str], Vec<Map<String, Value>>);

/// Prints tables with an empty line between them. A table without a row is left out.
pub(super) fn print_tables(tables: &[TableRows]) -> io::Result<()> {
    for (index, (columns, rows)) in tables.iter().filter(|(_, rows)| !rows.is_empty()).enumerate() {
        if index > 0 {
            writeln!(stdout())?;
        }
        let mut output = Output::new(Format::Table, columns)?;
        rows.iter().try_for_each(|row| output.row(row))?;
        output.finish()?;
    }
    Ok(())
}

/// A time in whole seconds, for people.
pub(super) fn whole_seconds(at: OffsetDateTime) -> String {
    at.replace_nanosecond(0).unwrap_or(at).format(&Rfc3339).unwrap_or_default()
}

/// A score with its label, for people: the label names what the score is of. It comes second, because an image that
/// passed was not given the label.
pub(super) fn score_of_label(label: Option<&str>, score: Option<f32>) -> Option<String> {
    score.map(|score| format!("{score:.4} {}", label.unwrap_or_default()).trim_end().to_owned())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Precision {
    FourDecimals,
    Full,
}

fn cell(value: Option<&Value>, precision: Precision) -> String {
    let text = match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(n)) if precision == Precision::FourDecimals && n.is_f64() => {
            format!("{:.4}", n.as_f64().unwrap_or_default())
        }
        Some(other) => other.to_string(),
    };
    printable(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_never_stands_before_its_score() {
        assert_eq!(score_of_label(Some("by AI"), Some(0.014_82)).unwrap(), "0.0148 by AI");
        assert_eq!(score_of_label(None, Some(1.0)).unwrap(), "1.0000");
        assert_eq!(score_of_label(Some("by AI"), None), None);
    }
}
