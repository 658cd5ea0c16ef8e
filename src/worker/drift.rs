//! Measures from time to time how far the scores of recent verdicts have drifted from the stored baselines.
//!
//! It reads committed verdicts, of all workers, so that a job spends nothing on it. Without a baseline it reads nothing.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::drift::{ScoreHistogram, ScoreHistograms, ScoredLabel};
use crate::job::Digests;
use crate::ledger::{Ledger, LedgerError, VerdictFilter};
use crate::telemetry::metrics;

/// How often verdicts are read.
const INTERVAL: Duration = Duration::from_secs(600);
/// Verdicts per statement, and the statements of one reading. Beyond that, a reading is a sample of its interval.
const PAGE: u32 = 500;
const MAX_PAGES: usize = 20;
/// All counts are halved when a label has this many, so that the present counts more than the past.
const MAX_SCORES: u64 = 20_000;

/// The scores of recent verdicts.
pub(super) struct DriftMonitor {
    ledger: Arc<dyn Ledger>,
    /// The detectors of this worker.
    detectors: Digests,
    recent: ScoreHistograms,
    /// The verdicts before this time have been read.
    read_up_to: OffsetDateTime,
}

impl DriftMonitor {
    pub(super) fn new(ledger: Arc<dyn Ledger>, detectors: Digests, now: OffsetDateTime) -> Self {
        Self { ledger, detectors, recent: ScoreHistograms::default(), read_up_to: now }
    }

    /// Measures while metrics are enabled, until `stop`. After a failure the last values stay.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        while metrics::are_enabled() && stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_some() {
            match self.measure(OffsetDateTime::now_utc()).await {
                Ok(drifts) => {
                    for (scored, drift) in drifts {
                        metrics::set_score_drift(&scored.detector, &scored.label, drift);
                    }
                }
                Err(e) => tracing::debug!(error = %e, "drift of scores not measured"),
            }
        }
    }

    /// Reads the verdicts since the last reading. Returns the drift of each label with a baseline and enough scores.
    async fn measure(&mut self, now: OffsetDateTime) -> Result<Vec<(ScoredLabel, f64)>, LedgerError> {
        let digests: Vec<String> = self.detectors.values().cloned().collect();
        let baselines = self.ledger.find_baselines(&digests).await?;
        let since = std::mem::replace(&mut self.read_up_to, now);
        if baselines.is_empty() {
            return Ok(Vec::new());
        }
        let filter = VerdictFilter { since: Some(since), until: Some(now), ..VerdictFilter::default() };
        let mut from = None;
        for _ in 0..MAX_PAGES {
            let page = self.ledger.page_of_verdicts(&filter, from, PAGE).await?;
            for verdict in page.verdicts.iter().map(|stored| &stored.verdict) {
                if let Some(facts) = &verdict.facts {
                    self.recent.add(&facts.scores, &verdict.detectors);
                }
            }
            from = page.next;
            if from.is_none() {
                break;
            }
        }
        self.recent.0.values_mut().filter(|scores| scores.total() > MAX_SCORES).for_each(ScoreHistogram::halve);
        let drift = |(scored, recent): (&ScoredLabel, &ScoreHistogram)| {
            let (_, baseline) = scored.baseline(&baselines)?;
            Some((scored.clone(), baseline.drift(recent)?))
        };
        Ok(self.recent.0.iter().filter_map(drift).collect())
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;
    use uuid::Uuid;

    use super::*;
    use crate::job::{Facts, ImageRef, Judgement, Lane, Outcome, PolicyRef, Scores, Verdict};
    use crate::ledger::{MissingFile, NewVerdict, Sqlite, Verdicts};

    const START: OffsetDateTime = datetime!(2026-11-01 00:00 UTC);

    fn verdict(minute: i64, score: f32) -> NewVerdict {
        let at = START + time::Duration::minutes(minute);
        let id = Uuid::new_v4();
        let verdict = Verdict {
            id,
            job_id: id.to_string(),
            lane: Lane::Live,
            image: ImageRef::from_uri("s3://uploads/image").unwrap(),
            sha256: None,
            md5: None,
            bytes: None,
            seen: None,
            judgement: Judgement::unscored(Outcome::Passed, ""),
            facts: Some(Facts::of_one_view(Scores::from([("d".into(), [("ai".to_owned(), score)].into())]))),
            detectors: Digests::from([("d".into(), "digest".into())]),
            policy: PolicyRef::new("p", "p"),
            metadata: None,
            reused_from: None,
            attempts: 1,
            object_at: None,
            received_at: at,
            decided_at: at,
        };
        NewVerdict { verdict, event: None }
    }

    #[tokio::test]
    async fn the_scores_of_verdicts_since_the_start_are_compared_with_the_baseline() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Arc::new(Sqlite::open(&folder.path().join("l.db"), MissingFile::Create).await.unwrap());
        crate::ledger::Ledger::migrate(ledger.as_ref()).await.unwrap();
        let detectors = Digests::from([("d".into(), "digest".into())]);
        let mut monitor = DriftMonitor::new(Arc::<Sqlite>::clone(&ledger), detectors, START);
        let insert = async |verdicts: Vec<NewVerdict>| ledger.insert(&verdicts).await.unwrap();
        let minute = |minute: i64| START + time::Duration::minutes(minute);
        // Before the start of the worker; without a baseline nothing is measured.
        insert((0..1200).map(|_| verdict(-5, 0.1)).collect()).await;
        assert_eq!(monitor.measure(minute(0)).await.unwrap(), []);

        let mut baseline = ScoreHistogram::default();
        (0..1000).for_each(|_| baseline.add(0.1));
        let baseline = crate::ledger::ScoreBaseline {
            digest: "digest".into(),
            label: "ai".into(),
            counts: baseline.counts().to_vec(),
            window: (START, START),
        };
        crate::ledger::Baselines::save_baselines(ledger.as_ref(), &[baseline]).await.unwrap();
        insert((0..900).map(|_| verdict(1, 0.1)).collect()).await;
        assert_eq!(monitor.measure(minute(10)).await.unwrap(), [], "too few scores");
        insert((0..100).map(|_| verdict(11, 0.1)).collect()).await;
        let drifts = monitor.measure(minute(20)).await.unwrap();
        assert!(drifts[0].1.abs() < 1e-9, "the scores of both readings: {drifts:?}");
        insert((0..1000).map(|_| verdict(21, 0.9)).collect()).await;
        let drifts = monitor.measure(minute(30)).await.unwrap();
        assert!(drifts[0].1 > 0.25 && drifts[0].0.label == "ai", "{drifts:?}");
    }
}
