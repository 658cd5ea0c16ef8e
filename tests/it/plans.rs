//! Statements that read a large ledger page by page cost the same for every page, with the plans that prepared statements
//! end with. `tests/bench/statements.py` measures more of them, at two million rows.

use std::collections::BTreeMap;

use serde_json::Value;
use sqlx::AssertSqlSafe;

use crate::support::Lab;

/// Rows of the ledger. Of a statement that reads windows of 10,000 rows there are three executions.
const ROWS: u32 = 25_000;

/// One in eight verdicts is flagged and one in eight to review. None is on an image in the bucket `other`.
const FILL: &str = "
    INSERT INTO verdicts (id, job_id, lane, bucket, key, bytes, outcome, reason, label, score, scores, detectors, policy, attempts, received_at, decided_at)
    SELECT md5(n::text)::uuid, n::text, 'live', 'uploads', 'users/' || md5(n::text) || '.jpg', 40000,
           CASE n % 8 WHEN 0 THEN 'flagged' WHEN 1 THEN 'review' ELSE 'passed' END, repeat('r', 60), 'by AI', 0.5,
           '{\"d\": {\"by AI\": 0.5, \"by human\": 0.5}}', jsonb_build_object('d', repeat('0', 64)),
           jsonb_build_object('name', 'default', 'sha256', repeat('f', 64)), 1,
           timestamptz '2026-01-01' + n * interval '1 second', timestamptz '2026-01-01' + n * interval '1 second'
    FROM generate_series(1, $1) AS n";

/// Each session explains its statements to its client, with generic plans. A table of this size may be read whole and sorted,
/// which no large one should be: so those plans are taken only where no index has the order.
const SETTINGS: [(&str, &str); 9] = [
    ("session_preload_libraries", "auto_explain"),
    ("auto_explain.log_min_duration", "0"),
    ("auto_explain.log_analyze", "on"),
    ("auto_explain.log_buffers", "on"),
    ("auto_explain.log_format", "json"),
    ("auto_explain.log_level", "notice"),
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
];

/// One execution of a statement.
struct Execution {
    plan: Value,
    /// Pages that were read, from memory or from a file.
    pages: u64,
}

impl Execution {
    /// Calls `visit` for each step of the plan.
    fn each_step(&self, visit: &mut impl FnMut(&Value)) {
        fn walk(step: &Value, visit: &mut impl FnMut(&Value)) {
            visit(step);
            step["Plans"].as_array().into_iter().flatten().for_each(|inner| walk(inner, visit));
        }
        walk(&self.plan, visit);
    }

    /// Whether a part of the table is found by an index and needs no sorting.
    fn is_ordered(&self) -> bool {
        let mut ordered = true;
        self.each_step(&mut |step| {
            let kind = step["Node Type"].as_str().unwrap();
            ordered &= !kind.contains("Sort") && kind != "Seq Scan" && !kind.starts_with("Bitmap");
        });
        ordered
    }
}

/// Runs a command, and returns the executions of each of its statements that read a table in an order.
async fn executions(lab: &Lab, arguments: &[&str], table: &str) -> BTreeMap<String, Vec<Execution>> {
    let log = ["--log", "warn,sqlx::postgres::notice=info", "--log-format", "json"];
    let ended = lab.run(&[arguments, &log].concat()).await.expect_ok();
    let mut found: BTreeMap<String, Vec<Execution>> = BTreeMap::new();
    for line in ended.stderr.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let text = line["message"].as_str().unwrap_or_default();
        let Some((_, json)) = text.split_once("plan:") else { continue };
        let explained: Value = serde_json::from_str(json).unwrap();
        let (query, plan) = (explained["Query Text"].as_str().unwrap(), explained["Plan"].clone());
        if query.contains(&format!("FROM {table}")) && query.contains("ORDER BY") {
            let pages = ["Shared Hit Blocks", "Shared Read Blocks"].map(|kind| plan[kind].as_u64().unwrap());
            found.entry(query.to_owned()).or_default().push(Execution { plan, pages: pages.iter().sum() });
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_of_export_and_prune_is_read_by_an_index_without_sorting() {
    let lab = Lab::new().await;
    sqlx::query(FILL).bind(i64::from(ROWS)).execute(&lab.db).await.unwrap();
    // Without statistics and a map of visible rows the planner works with guesses.
    sqlx::query("VACUUM (ANALYZE) verdicts").execute(&lab.db).await.unwrap();
    for (setting, value) in SETTINGS {
        let statement = format!("ALTER DATABASE \"{}\" SET {setting} = '{value}'", lab.prefix);
        sqlx::query(AssertSqlSafe(statement)).execute(&lab.db).await.unwrap();
    }
    let until = ["--until", "2026-01-08"];
    for (command, times, deletes) in [
        (&["export"][..], 20, false),
        (&["export", "--outcome", "flagged"], 3, false),
        (&["export", "--outcome", "flagged", "--outcome", "review"], 3, false),
        (&["export", "--bucket", "other*"], 3, false),
        (&["export", "--outcome", "flagged", "--outcome", "passed"], 3, false),
        (&["prune", "--bucket", "other", "--yes"], 3, false),
        (&["prune", "--outcome", "missing", "--dry-run"], 1, false),
        // These delete verdicts.
        (&["prune", "--outcome", "flagged", "--yes"], 1, true),
        (&["prune", "--yes"], 3, true),
    ] {
        let statements = executions(&lab, &[command, &until].concat(), "verdicts").await;
        assert!(!statements.is_empty(), "{command:?} read no verdicts");
        for (query, executions) in &statements {
            for (number, execution) in executions.iter().enumerate() {
                assert!(execution.is_ordered(), "{command:?}, page {number}: {query}\n{:#}", execution.plan);
            }
            let (first, most) = (executions[0].pages, executions.iter().map(|each| each.pages).max().unwrap());
            // Behind deleted rows an index alone does not show what is left, so that the table is read beside it.
            assert!(deletes || most <= 2 * first + 50, "{command:?}: {most} pages after {first}: {query}");
        }
        let most = statements.values().map(Vec::len).max().unwrap();
        assert!(most >= times, "{command:?}: {most} pages instead of {times}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_of_a_bank_is_read_by_its_primary_key_also_before_there_are_statistics() {
    let lab = Lab::new().await;
    // As if no vacuum had come by yet: the planner guesses.
    sqlx::query("ALTER TABLE bank_entries SET (autovacuum_enabled = false)").execute(&lab.db).await.unwrap();
    sqlx::query("INSERT INTO banks (name, kind, restricted, enabled, version) VALUES ('b', 'deny', false, true, 1)")
        .execute(&lab.db)
        .await
        .unwrap();
    let fill = "INSERT INTO bank_entries (bank, added, kind, hash)
                SELECT banks.id, 1, 3, decode(md5(n::text), 'hex') FROM banks, generate_series(1, 110000) AS n";
    sqlx::query(fill).execute(&lab.db).await.unwrap();
    for (setting, value) in SETTINGS.into_iter().filter(|(setting, _)| !setting.starts_with("enable_")) {
        let statement = format!("ALTER DATABASE \"{}\" SET {setting} = '{value}'", lab.prefix);
        sqlx::query(AssertSqlSafe(statement)).execute(&lab.db).await.unwrap();
    }
    let statements = executions(&lab, &["bank", "export", "b"], "bank_entries").await;
    let pages: Vec<&Execution> = statements.values().flatten().collect();
    assert_eq!(pages.len(), 3);
    for page in pages {
        assert!(page.is_ordered(), "{:#}", page.plan);
    }
}
