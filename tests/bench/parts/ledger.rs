//! Group commits of made verdicts, one after another, into a ledger that is there.
//!
//! A verdict is what a worker records of an image that one detector scored; one in sixteen owes an event.

use std::time::{Duration, Instant};

use pixwarden::config::{Config, LedgerConfig};
use pixwarden::job::event::{EventContext, event};
use pixwarden::job::{
    Digests, Facts, Finding, FindingOutcome, FindingSource, ImageInfo, ImageRef, Judgement, Lane, Outcome, Pdq,
    PolicyRef, Scores, Verdict, View, ViewHash, verdict_id,
};
use pixwarden::ledger::{self, NewVerdict};
use serde_json::json;
use time::OffsetDateTime;
use uuid::Uuid;

/// What to write, and where.
#[derive(clap::Args)]
pub struct Options {
    /// URL of a ledger whose schema is up to date.
    #[arg(long)]
    ledger: String,
    /// Verdicts in all.
    #[arg(long, default_value_t = 50_000)]
    rows: usize,
    /// Verdicts a transaction.
    #[arg(long, default_value_t = 1_000)]
    group: usize,
}

/// Prints the seconds that the commits took.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let url = LedgerConfig { url: options.ledger.into(), ..LedgerConfig::default() };
    let config = Config { ledger: url, ..Config::default() };
    let ledger = ledger::open(&config).await?;
    let mut took = Duration::ZERO;
    for group in 0..options.rows.div_ceil(options.group) {
        let entries: Vec<NewVerdict> = (0..options.group).map(|i| entry(group * options.group + i)).collect();
        let began = Instant::now();
        ledger.insert(&entries).await?;
        took += began.elapsed();
    }
    ledger.close().await;
    println!("{}", json!({"rows": options.rows, "seconds": took.as_secs_f64()}));
    Ok(())
}

/// What the default rule finds in a flagged image.
fn finding(score: f32) -> Finding {
    Finding {
        detector: Some("synthetic-2.0".into()),
        label: Some("by AI".into()),
        score: Some(score),
        threshold: Some(0.9),
        ..Finding::new(FindingSource::Detector, FindingOutcome::Flagged)
    }
}

fn entry(n: usize) -> NewVerdict {
    let job_id = Uuid::new_v4().to_string();
    let flagged = n.is_multiple_of(16);
    let p = if flagged { 0.925_7 } else { 0.014_8 };
    let reason = "synthetic-2.0 says \"by AI\" 0.9257, flag_at is 0.9".to_owned();
    let mut sha256 = [0; 32];
    sha256[..16].copy_from_slice(Uuid::new_v4().as_bytes());
    let md5 = *Uuid::new_v4().as_bytes();
    let now = OffsetDateTime::now_utc();
    let facts = Facts::of_one_view(Scores::from([(
        "synthetic-2.0".into(),
        [("by AI".to_owned(), p), ("by human".to_owned(), 1.0 - p)].into(),
    )]));
    let pdq = Pdq(sha256);
    let hash = ViewHash { view: View::of_frame(0), pdq, quality: 100 };
    let verdict = Verdict {
        id: verdict_id(&job_id),
        lane: Lane::Live,
        image: ImageRef {
            bucket: "uploads".into(),
            key: format!("users/{}/2026/{job_id}.jpg", &job_id[..12]),
            version_id: None,
            etag: Some(Uuid::new_v4().simple().to_string()),
        },
        job_id,
        object_at: Some(now),
        sha256: Some(sha256),
        md5: Some(md5),
        bytes: Some(40_000 + n as u64),
        seen: Some(ImageInfo { format: "jpeg", width: 1920, height: 1080, frames: 1 }),
        judgement: Judgement {
            outcome: if flagged { Outcome::Flagged } else { Outcome::Passed },
            reason: Some(reason).filter(|_| flagged),
            label: Some("by AI".into()),
            score: Some(p),
            findings: if flagged { vec![finding(p)] } else { Vec::new() },
        },
        facts: Some(Facts { hashes: Some(vec![hash]), ..facts }),
        detectors: Digests::from([("synthetic-2.0".into(), "0123456789abcdef".repeat(4))]),
        policy: PolicyRef::new("default", "fedcba9876543210".repeat(4)),
        metadata: Some(json!({"user": n})),
        reused_from: None,
        attempts: 1,
        received_at: now,
        decided_at: now,
    };
    let passed_on = EventContext::default();
    let event = flagged.then(|| event(&verdict, passed_on, "pixwarden"));
    NewVerdict { verdict, event }
}
