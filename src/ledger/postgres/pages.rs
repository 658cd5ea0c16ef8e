//! Statements that read selected verdicts part by part, so that a part costs the same at the beginning and at the end of a
//! large table, and however few verdicts are selected.
//!
//! A part begins at a [`Position`] and never uses OFFSET over what was read before. A condition that no index answers is
//! tried on at most [`WINDOW`] rows. Conditions on the order are comparisons of rows, which only one index answers. Other
//! conditions are outside of a subquery with a LIMIT: beside the order, Postgres would expect few rows of them, and rather
//! read and sort the whole table. So the generic plans of prepared statements are good, too. `tests/bench/statements.py`
//! measures all of them.

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Postgres, QueryBuilder, Row};
use uuid::Uuid;

use crate::job::Outcome;
use crate::ledger::{Position, VerdictFilter};

/// Rows on which the conditions are tried in one part.
const WINDOW: u32 = 10_000;
/// The LIMIT of the subquery, which only shows Postgres that the part is small: it has room for verdicts that are committed
/// after the part was measured.
const SUBQUERY_LIMIT: u32 = 2 * WINDOW;

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

/// A statement over the selected rows of a part.
struct Statement<'a> {
    /// `SELECT ...`, without FROM.
    select: &'a str,
    /// One more condition.
    condition: Option<&'a str>,
    /// With it, the rows are ordered.
    limit: Option<u32>,
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
            let mut query = QueryBuilder::new(format!("SELECT {} AS at, id FROM verdicts", branch.time()));
            branch.push_range(&mut query, self.from, self.to);
            query.push(format_args!(" ORDER BY {} LIMIT 1 OFFSET {WINDOW}", branch.order()));
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
        self.fetch(c, &Statement { select, condition: None, limit: Some(limit) }).await
    }

    /// The places of the first selected rows of this part.
    pub(super) async fn places(&self, c: &mut PgConnection, limit: u32) -> Result<Vec<Position>, sqlx::Error> {
        let rows = self.rows(c, "SELECT decided_at, id", limit).await?;
        let place = |row: &PgRow| Ok(Position { at: row.try_get("decided_at")?, id: row.try_get("id")? });
        let mut places: Vec<Position> = rows.iter().map(place).collect::<Result<_, sqlx::Error>>()?;
        places.sort_unstable();
        places.truncate(limit as usize);
        Ok(places)
    }

    /// A statement over all rows of this part, in the order of `decided_at`, to which conditions may be added.
    pub(super) fn window(&self, select: &str) -> QueryBuilder<Postgres> {
        let mut query = QueryBuilder::new(select);
        query.push(" FROM verdicts");
        Branch::Decided.push_range(&mut query, self.from, self.to);
        query
    }

    /// Locks those of some rows that are still selected, until the transaction ends. Rows that others have locked are left
    /// out.
    pub(super) async fn lock(&self, c: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<Uuid>, sqlx::Error> {
        let mut query = QueryBuilder::new("SELECT id FROM verdicts WHERE id = ANY(");
        query.push_bind(ids.to_vec()).push(")");
        push_filter(&mut query, self.filter, None);
        query.push(" FOR UPDATE SKIP LOCKED");
        query.build_query_scalar().fetch_all(c).await
    }

    /// Counts the selected rows of this part that meet one more condition.
    pub(super) async fn count(&self, c: &mut PgConnection, condition: &str) -> Result<u64, sqlx::Error> {
        let statement = Statement { select: "SELECT count(*) AS found", condition: Some(condition), limit: None };
        let mut found = 0;
        for row in self.fetch(c, &statement).await? {
            found += u64::try_from(row.try_get::<i64, _>("found")?).unwrap_or(0);
        }
        Ok(found)
    }

    async fn fetch(&self, c: &mut PgConnection, statement: &Statement<'_>) -> Result<Vec<PgRow>, sqlx::Error> {
        let mut rows = Vec::new();
        for branch in &self.branches {
            rows.extend(self.query(*branch, statement).build().fetch_all(&mut *c).await?);
        }
        Ok(rows)
    }

    fn query(&self, branch: Branch, statement: &Statement<'_>) -> QueryBuilder<Postgres> {
        let mut query = QueryBuilder::new(statement.select);
        if self.are_ranges() && statement.limit.is_some() {
            query.push(" FROM verdicts");
            branch.push_range(&mut query, self.from, self.to);
        } else {
            query.push(" FROM (SELECT * FROM verdicts");
            branch.push_range(&mut query, self.from, self.to);
            query.push(format_args!(" ORDER BY {} LIMIT {SUBQUERY_LIMIT}) AS verdicts WHERE true", branch.order()));
            push_filter(&mut query, self.filter, Some(branch));
        }
        if let Some(condition) = statement.condition {
            query.push(" AND ").push(condition);
        }
        if let Some(limit) = statement.limit {
            // As a number in the text, because a plan for an unknown LIMIT may read the whole table.
            query.push(format_args!(" ORDER BY {} LIMIT {limit}", branch.order()));
        }
        query
    }
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

/// The conditions that are not on the order of a branch, or without a branch all but those on time.
fn push_filter(query: &mut QueryBuilder<Postgres>, filter: &VerdictFilter, branch: Option<Branch>) {
    if !filter.outcomes.is_empty() && !matches!(branch, Some(Branch::Outcome(_))) {
        let words: Vec<&'static str> = filter.outcomes.iter().map(|outcome| outcome.as_str()).collect();
        query.push(" AND outcome = ANY(").push_bind(words).push(")");
    }
    if matches!(branch, Some(Branch::Revised)) {
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
pub(super) fn like_pattern(name: &str) -> String {
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
