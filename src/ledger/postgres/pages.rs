//! Statements that read selected verdicts part by part, so that a part costs the same at the beginning and at the end of a
//! large table, and however few verdicts are selected.
//!
//! A part begins at a [`Position`] and never uses OFFSET over what was read before. A condition that no index answers is
//! tried on at most [`WINDOW`] rows. Conditions on the order are comparisons of rows, and those on other columns cannot
//! be looked up in an index: then one index fits, also in the generic plans of prepared statements, and Postgres never
//! sorts the table or walks through rows that another index would have left out.

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Postgres, QueryBuilder, Row};

use crate::job::Outcome;
use crate::ledger::{Position, VerdictFilter};

/// Rows on which the conditions are tried in one part.
pub(super) const WINDOW: u32 = 10_000;

/// Parts of the selected verdicts.
pub(super) struct Parts<'f> {
    filter: &'f VerdictFilter,
    branches: Vec<Branch>,
    from: Position,
    to: Position,
}

/// Rows that one index has in their order.
#[derive(Clone, Copy)]
enum Branch {
    /// By `verdicts_by_time`.
    Decided,
    /// Of one outcome, by `verdicts_by_outcome`.
    Outcome(Outcome),
    /// Judged once more, by `verdicts_by_judgement`.
    Revised,
}

/// What a statement does with the rows of a part.
struct Statement<'a> {
    /// `SELECT ... FROM verdicts`
    select: &'a str,
    conditions: &'a [&'a str],
    /// After ORDER BY; `None` also leaves out ORDER BY.
    limit: Option<u32>,
    /// The end, such as `FOR UPDATE`.
    tail: &'a str,
}

impl<'f> Parts<'f> {
    /// From a place on, or from the first verdict.
    pub(super) fn new(filter: &'f VerdictFilter, from: Option<Position>) -> Self {
        let branches = if filter.revised_since.is_some() {
            vec![Branch::Revised]
        } else if filter.outcomes.is_empty() || filter.outcomes.contains(&Outcome::Passed) {
            // No index has the verdicts that passed: they are nearly all.
            vec![Branch::Decided]
        } else {
            let mut outcomes = filter.outcomes.clone();
            outcomes.sort_unstable();
            outcomes.dedup();
            outcomes.into_iter().map(Branch::Outcome).collect()
        };
        let (first, to) = filter.range();
        Self { filter, branches, from: from.map_or(first, |from| from.max(first)), to }
    }

    /// Whether an index answers the whole selection. Then a LIMIT alone bounds a part.
    pub(super) fn are_ranges(&self) -> bool {
        self.filter.is_range(matches!(self.branches[..], [Branch::Outcome(_), ..]))
    }

    /// Shortens this part to [`WINDOW`] rows. Returns where the next part begins, or `None` if this is the last one.
    pub(super) async fn shorten(&mut self, c: &mut PgConnection) -> Result<Option<Position>, sqlx::Error> {
        let mut end = None;
        for branch in &self.branches {
            let time = branch.time();
            let select = format!("SELECT {time} AS at, id FROM verdicts");
            let tail = format!("OFFSET {WINDOW}");
            let statement = Statement { select: &select, conditions: &[], limit: Some(1), tail: &tail };
            let mut query = self.query(*branch, Selected::Range, &statement);
            if let Some(row) = query.build().fetch_optional(&mut *c).await? {
                let place = Position { at: row.try_get("at")?, id: row.try_get("id")? };
                end = Some(end.map_or(place, |end: Position| end.min(place)));
            }
        }
        if let Some(end) = end {
            self.to = end;
        }
        Ok(end)
    }

    /// The selected rows of this part, in no order over all branches, and of each branch at most `limit`.
    pub(super) async fn rows(&self, c: &mut PgConnection, select: &str, limit: u32) -> Result<Vec<PgRow>, sqlx::Error> {
        self.fetch(c, &Statement { select, conditions: &[], limit: Some(limit), tail: "" }).await
    }

    /// The places of the first selected rows of this part, locked until the transaction ends. Rows that others have locked
    /// are left out.
    pub(super) async fn lock(&self, c: &mut PgConnection, limit: u32) -> Result<Vec<Position>, sqlx::Error> {
        let statement = Statement {
            select: "SELECT decided_at, id FROM verdicts",
            conditions: &[],
            limit: Some(limit),
            tail: "FOR UPDATE SKIP LOCKED",
        };
        let place = |row: &PgRow| Ok(Position { at: row.try_get("decided_at")?, id: row.try_get("id")? });
        let mut places: Vec<Position> =
            self.fetch(c, &statement).await?.iter().map(place).collect::<Result<_, sqlx::Error>>()?;
        places.sort_unstable();
        places.truncate(limit as usize);
        Ok(places)
    }

    /// Counts the selected rows of this part that meet one more condition.
    pub(super) async fn count(&self, c: &mut PgConnection, condition: &str) -> Result<u64, sqlx::Error> {
        let statement = Statement {
            select: "SELECT count(*) AS found FROM verdicts",
            conditions: &[condition],
            limit: None,
            tail: "",
        };
        let mut found = 0;
        for row in self.fetch(c, &statement).await? {
            found += u64::try_from(row.try_get::<i64, _>("found")?).unwrap_or(0);
        }
        Ok(found)
    }

    async fn fetch(&self, c: &mut PgConnection, statement: &Statement<'_>) -> Result<Vec<PgRow>, sqlx::Error> {
        let mut rows = Vec::new();
        for branch in &self.branches {
            rows.extend(self.query(*branch, Selected::Filter, statement).build().fetch_all(&mut *c).await?);
        }
        Ok(rows)
    }

    fn query(&self, branch: Branch, selected: Selected, statement: &Statement<'_>) -> QueryBuilder<Postgres> {
        let mut query = QueryBuilder::new(statement.select);
        branch.push_range(&mut query, self.from, self.to);
        if selected == Selected::Filter {
            push_filter(&mut query, self.filter, branch);
        }
        for condition in statement.conditions {
            query.push(" AND ").push(condition);
        }
        if let Some(limit) = statement.limit {
            // As a number in the text, because a plan for an unknown LIMIT may read the whole table.
            query.push(format_args!(" ORDER BY {} LIMIT {limit}", branch.order()));
        }
        query.push(format_args!(" {}", statement.tail));
        query
    }
}

/// Which conditions a statement has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Selected {
    /// Only those on the order.
    Range,
    /// All of the filter.
    Filter,
}

impl Branch {
    /// The time by which rows are ordered.
    const fn time(self) -> &'static str {
        match self {
            Self::Decided | Self::Outcome(_) => "decided_at",
            // SELECT may give this name to the time of any judgement.
            Self::Revised => "verdicts.judged_at",
        }
    }

    /// The columns of the index.
    const fn order(self) -> &'static str {
        match self {
            Self::Decided => "decided_at, verdicts.id",
            Self::Outcome(_) => "outcome, decided_at, verdicts.id",
            Self::Revised => "verdicts.judged_at, verdicts.id",
        }
    }

    fn push_range(self, query: &mut QueryBuilder<Postgres>, from: Position, to: Position) {
        let row = match self {
            Self::Decided => {
                query.push(" WHERE ");
                String::new()
            }
            // The conditions of the partial indexes.
            Self::Outcome(outcome) => {
                query.push(" WHERE outcome <> 'passed' AND ");
                format!("'{}', ", outcome.as_str())
            }
            Self::Revised => {
                query.push(" WHERE judged_at IS NOT NULL AND ");
                String::new()
            }
        };
        for (operator, place) in [(">=", from), ("<", to)] {
            query.push(format_args!("({}) {operator} ({row}", self.order())).push_bind(place.at);
            query.push(", ").push_bind(place.id).push(if operator == "<" { ")" } else { ") AND " });
        }
    }
}

/// The conditions that no index answers. They are written so that none is tried for them.
fn push_filter(query: &mut QueryBuilder<Postgres>, filter: &VerdictFilter, branch: Branch) {
    if !filter.outcomes.is_empty() && !matches!(branch, Branch::Outcome(_)) {
        let words: Vec<&'static str> = filter.outcomes.iter().map(|outcome| outcome.as_str()).collect();
        query.push(" AND outcome = ANY(").push_bind(words).push(")");
    }
    if matches!(branch, Branch::Revised) {
        for (operator, time) in [(">=", filter.since), ("<", filter.until)] {
            if let Some(time) = time {
                query.push(format_args!(" AND decided_at {operator} ")).push_bind(time);
            }
        }
    }
    if let Some(detector) = &filter.detector {
        query.push(" AND detectors ? ").push_bind(detector.clone());
    }
    if !filter.buckets.is_empty() {
        let patterns: Vec<String> = filter.buckets.iter().map(|name| like_pattern(name)).collect();
        query.push(" AND bucket LIKE ANY(").push_bind(patterns).push(")");
    }
    if let Some(prefix) = &filter.key_prefix {
        query.push(" AND starts_with(key, ").push_bind(prefix.clone()).push(")");
    }
    if !filter.labels.is_empty() {
        query.push(" AND label = ANY(").push_bind(filter.labels.clone()).push(")");
    }
}

/// A name in which `*` stands for any characters, for LIKE.
fn like_pattern(name: &str) -> String {
    let mut pattern = String::with_capacity(name.len());
    for character in name.chars() {
        match character {
            '*' => pattern.push('%'),
            '%' | '_' | '\\' => pattern.extend(['\\', character]),
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
        assert_eq!(like_pattern("up*"), "up%");
        assert_eq!(like_pattern("a_b%c\\d"), "a\\_b\\%c\\\\d");
    }

    #[test]
    fn one_index_answers_outcomes_and_nothing_but_passed_is_read_by_time() {
        let filter = |outcomes: &[Outcome]| VerdictFilter { outcomes: outcomes.to_vec(), ..VerdictFilter::default() };
        let ranges = |filter: &VerdictFilter| {
            let parts = Parts::new(filter, None);
            (parts.branches.len(), parts.are_ranges())
        };
        assert_eq!(ranges(&filter(&[])), (1, true));
        assert_eq!(ranges(&filter(&[Outcome::Flagged, Outcome::Review, Outcome::Flagged])), (2, true));
        assert_eq!(ranges(&filter(&[Outcome::Flagged, Outcome::Passed])), (1, false));
        let bucket = VerdictFilter { buckets: vec!["b".into()], ..filter(&[Outcome::Flagged]) };
        assert_eq!(ranges(&bucket), (1, false));
    }
}
