//! Statements that read selected verdicts part by part: see `postgres/pages.rs`.

use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection};

use super::stamp;
use crate::ledger::columns::{parse_uuid, to_json};
use crate::ledger::{Position, VerdictFilter};

/// Rows on which the conditions are tried in one part.
const WINDOW: u32 = 10_000;

/// A part of the selected verdicts.
pub(super) struct Part<'f> {
    filter: &'f VerdictFilter,
    from: Position,
    to: Position,
}

impl<'f> Part<'f> {
    /// From a place on, or from the first verdict.
    pub(super) fn new(filter: &'f VerdictFilter, from: Option<Position>) -> Self {
        let (first, to) = filter.range();
        Self { filter, from: from.map_or(first, |from| from.max(first)), to }
    }

    /// The time by which rows are ordered.
    pub(super) const fn time(&self) -> &'static str {
        // SELECT gives the name judged_at to the time of any judgement.
        if self.filter.revised_since.is_some() { "verdicts.judged_at" } else { "decided_at" }
    }

    /// Shortens this part to [`WINDOW`] rows. Returns where the next part begins, or `None` if this is the last one.
    pub(super) async fn shorten(&mut self, c: &mut SqliteConnection) -> Result<Option<Position>, sqlx::Error> {
        let time = self.time();
        let mut query = QueryBuilder::new(format!("SELECT {time} AS at, id FROM verdicts"));
        self.push_range(&mut query);
        query.push(format_args!(" ORDER BY {time}, id LIMIT 1 OFFSET {WINDOW}"));
        let Some(row) = query.build().fetch_optional(c).await? else { return Ok(None) };
        let id: String = row.try_get("id")?;
        self.to = Position { at: row.try_get("at")?, id: parse_uuid(&id)? };
        Ok(Some(self.to))
    }

    /// A statement over the selected rows of this part.
    pub(super) fn query(&self, select: &str) -> QueryBuilder<Sqlite> {
        let mut query = QueryBuilder::new(select);
        self.push_range(&mut query);
        let filter = self.filter;
        if !filter.outcomes.is_empty() {
            query.push(" AND outcome IN (SELECT value FROM json_each(").push_bind(to_json(&filter.outcomes)).push("))");
        }
        if filter.revised_since.is_some() {
            for (operator, time) in [(">=", filter.since), ("<", filter.until)] {
                if let Some(time) = time {
                    query.push(format_args!(" AND decided_at {operator} ")).push_bind(stamp(time));
                }
            }
        }
        if let Some(detector) = &filter.detector {
            query.push(" AND ").push_bind(detector.clone()).push(" IN (SELECT key FROM json_each(detectors))");
        }
        if !filter.buckets.is_empty() {
            let patterns: Vec<String> = filter.buckets.iter().map(|name| glob_pattern(name)).collect();
            query.push(" AND EXISTS (SELECT 1 FROM json_each(").push_bind(to_json(&patterns));
            query.push(") AS wanted WHERE bucket GLOB wanted.value)");
        }
        if let Some(prefix) = &filter.key_prefix {
            query.push(" AND substr(key, 1, length(").push_bind(prefix.clone()).push(")) = ").push_bind(prefix.clone());
        }
        if !filter.labels.is_empty() {
            query.push(" AND label IN (SELECT value FROM json_each(").push_bind(to_json(&filter.labels)).push("))");
        }
        query
    }

    fn push_range(&self, query: &mut QueryBuilder<Sqlite>) {
        let time = self.time();
        query.push(" WHERE ");
        if self.filter.revised_since.is_some() {
            query.push("judged_at IS NOT NULL AND ");
        }
        for (operator, place) in [(">=", self.from), ("<", self.to)] {
            query.push(format_args!("({time}, id) {operator} (")).push_bind(stamp(place.at));
            query.push(", ").push_bind(place.id.to_string()).push(if operator == "<" { ")" } else { ") AND " });
        }
    }
}

/// A name in which `*` stands for any characters, for GLOB.
fn glob_pattern(name: &str) -> String {
    let mut pattern = String::with_capacity(name.len());
    for character in name.chars() {
        match character {
            '?' | '[' => pattern.extend(['[', character, ']']),
            other => pattern.push(other),
        }
    }
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters_and_nothing_else_does() {
        assert_eq!(glob_pattern("up*"), "up*");
        assert_eq!(glob_pattern("a?b[c]"), "a[?]b[[]c]");
    }
}
