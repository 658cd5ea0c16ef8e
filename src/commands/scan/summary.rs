//! What a scan counted, and whether `--fail-on` is reached.

use std::collections::BTreeMap;
use std::time::Instant;

use clap::ValueEnum;

use super::super::console::counted;
use super::super::files::SkipCause;
use super::file::FileReport;
use crate::job::Outcome;

/// The weakest outcome with which `scan` exits with 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum FailOn {
    /// An image is in review or flagged, or something could not be screened.
    Review,
    /// An image is flagged, or something could not be screened.
    Flagged,
    /// Something could not be screened.
    Unscreened,
}

/// When a scan does not exit with 0.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gate {
    pub fail_on: FailOn,
    /// What could not be screened passes.
    pub allow_unscreened: bool,
}

/// Counts of what was scanned.
pub(super) struct ScanSummary {
    began: Instant,
    images: u64,
    /// Files in folders that are no images.
    other_files: u64,
    unchanged: u64,
    unreadable: u64,
    skipped: u64,
    /// Paths below which no image was found.
    empty_paths: u64,
    /// What could not be screened, of all of these.
    unscreened: u64,
    outcomes: BTreeMap<Outcome, u64>,
    /// Whether something at or below the current path was screened or counts as unscreened.
    is_path_used: bool,
}

impl Default for ScanSummary {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            images: 0,
            other_files: 0,
            unchanged: 0,
            unreadable: 0,
            skipped: 0,
            empty_paths: 0,
            unscreened: 0,
            outcomes: BTreeMap::new(),
            is_path_used: false,
        }
    }
}

impl ScanSummary {
    pub(super) fn add(&mut self, report: &FileReport) {
        let outcome = report.verdict.judgement.outcome;
        self.add_file(outcome, report.is_image || report.is_named);
        self.unchanged += u64::from(report.unchanged);
    }

    /// A file that is no image counts as one where its path was given.
    fn add_file(&mut self, outcome: Outcome, counts: bool) {
        if !counts {
            self.other_files += 1;
            return;
        }
        self.is_path_used = true;
        self.images += 1;
        *self.outcomes.entry(outcome).or_default() += 1;
        self.unscreened += u64::from(match outcome {
            Outcome::Passed | Outcome::Review | Outcome::Flagged => false,
            Outcome::Undecodable | Outcome::Missing | Outcome::Rejected | Outcome::Failed => true,
        });
    }

    /// What is behind a link was not screened. A pipe or a device stores no image.
    pub(super) fn add_skipped(&mut self, cause: SkipCause) {
        self.skipped += 1;
        self.unscreened += u64::from(match cause {
            SkipCause::FolderLink => true,
            SkipCause::FolderLinkWithin | SkipCause::SpecialFile => false,
        });
    }

    pub(super) fn add_unreadable(&mut self) {
        self.is_path_used = true;
        self.unreadable += 1;
        self.unscreened += 1;
    }

    /// Everything below a path was counted. Returns whether no image was there.
    pub(super) fn end_of_path(&mut self) -> bool {
        let is_empty = !std::mem::take(&mut self.is_path_used);
        self.empty_paths += u64::from(is_empty);
        self.unscreened += u64::from(is_empty);
        is_empty
    }

    pub(super) fn text(&self) -> String {
        let mut words = counted(self.images, "image", "images");
        let outcomes: Vec<_> = self.outcomes.iter().map(|(outcome, n)| format!("{n} {outcome}")).collect();
        if !outcomes.is_empty() {
            words += &format!(": {}", outcomes.join(", "));
        }
        if self.unchanged > 0 {
            words += &format!("; {} unchanged since an earlier scan", self.unchanged);
        }
        if self.other_files > 0 {
            words += &format!("; {}", counted(self.other_files, "file is not an image", "files are not images"));
        }
        if self.unreadable > 0 {
            words += &format!("; {} could not be read", counted(self.unreadable, "path", "paths"));
        }
        if self.skipped > 0 {
            words += &format!("; {} skipped", self.skipped);
        }
        let seconds = self.began.elapsed().as_secs_f64();
        if self.images == 0 {
            return format!("{words}; {seconds:.1} s");
        }
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = (self.images + self.other_files) as f64 / seconds.max(0.001);
        format!("{words}; {seconds:.1} s, {rate:.0} per second")
    }

    /// Why the scan exits with 3; `None` where it does not.
    pub(super) fn closed_gate(&self, gate: Gate) -> Option<String> {
        let of = |outcome| self.outcomes.get(&outcome).copied().unwrap_or_default();
        let reached: &[Outcome] = match gate.fail_on {
            FailOn::Review => &[Outcome::Review, Outcome::Flagged],
            FailOn::Flagged => &[Outcome::Flagged],
            FailOn::Unscreened => &[],
        };
        let mut why: Vec<_> = reached
            .iter()
            .filter(|outcome| of(**outcome) > 0)
            .map(|outcome| format!("{} {outcome}", of(*outcome)))
            .collect();
        let mut hint = "";
        if self.unscreened > 0 && !gate.allow_unscreened {
            why.push(format!("{} could not be screened", counted(self.unscreened, "path", "paths")));
            if gate.fail_on != FailOn::Unscreened {
                hint = "\n  hint: with --allow-unscreened, what could not be screened passes";
            }
        }
        let word = gate.fail_on.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        (!why.is_empty()).then(|| format!("--fail-on {word} is reached: {}{hint}", why.join(", ")))
    }

    /// Whether something failed at run time.
    pub(super) fn has_failures(&self) -> bool {
        self.unreadable > 0 || self.outcomes.contains_key(&Outcome::Failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of the three gates a scan keeps closed, and which with `--allow-unscreened`.
    fn closed(scan: impl Fn(&mut ScanSummary)) -> [bool; 5] {
        let mut summary = ScanSummary::default();
        scan(&mut summary);
        let is_closed = |fail_on, allow_unscreened| summary.closed_gate(Gate { fail_on, allow_unscreened }).is_some();
        [
            is_closed(FailOn::Review, false),
            is_closed(FailOn::Flagged, false),
            is_closed(FailOn::Unscreened, false),
            is_closed(FailOn::Review, true),
            is_closed(FailOn::Flagged, true),
        ]
    }

    fn image(outcome: Outcome) -> [bool; 5] {
        closed(|summary| summary.add_file(outcome, true))
    }

    #[test]
    fn every_outcome_closes_its_gates() {
        assert_eq!(image(Outcome::Passed), [false; 5]);
        assert_eq!(image(Outcome::Review), [true, false, false, true, false]);
        assert_eq!(image(Outcome::Flagged), [true, true, false, true, true]);
        for unscreened in [Outcome::Undecodable, Outcome::Missing, Outcome::Rejected, Outcome::Failed] {
            assert_eq!(image(unscreened), [true, true, true, false, false], "{unscreened}");
        }
    }

    #[test]
    fn whatever_was_not_screened_closes_every_gate() {
        const UNSCREENED: [bool; 5] = [true, true, true, false, false];
        assert_eq!(closed(ScanSummary::add_unreadable), UNSCREENED);
        assert_eq!(closed(|summary| summary.add_skipped(SkipCause::FolderLink)), UNSCREENED);
        assert_eq!(closed(|summary| assert!(summary.end_of_path())), UNSCREENED, "an empty folder");
        let only_texts = |summary: &mut ScanSummary| {
            summary.add_file(Outcome::Undecodable, false);
            assert!(summary.end_of_path());
        };
        assert_eq!(closed(only_texts), UNSCREENED, "a folder without an image");

        let beside_an_image = |summary: &mut ScanSummary| {
            summary.add_file(Outcome::Passed, true);
            summary.add_file(Outcome::Undecodable, false);
            summary.add_skipped(SkipCause::SpecialFile);
            summary.add_skipped(SkipCause::FolderLinkWithin);
            assert!(!summary.end_of_path());
        };
        assert_eq!(closed(beside_an_image), [false; 5]);
        let second_path_is_empty = |summary: &mut ScanSummary| {
            beside_an_image(summary);
            assert!(summary.end_of_path());
        };
        assert_eq!(closed(second_path_is_empty), UNSCREENED);
    }

    #[test]
    fn files_that_are_no_images_are_counted_apart() {
        let mut summary = ScanSummary::default();
        for _ in 0..2 {
            summary.add_file(Outcome::Passed, true);
        }
        summary.add_file(Outcome::Undecodable, true);
        summary.add_file(Outcome::Undecodable, false);
        summary.add_skipped(SkipCause::FolderLink);
        let text = summary.text();
        assert!(text.starts_with("3 images: 2 passed, 1 undecodable; 1 file is not an image; 1 skipped; "), "{text}");
        let gate = Gate { fail_on: FailOn::Flagged, allow_unscreened: false };
        let words = summary.closed_gate(gate).unwrap();
        assert!(words.starts_with("--fail-on flagged is reached: 2 paths could not be screened\n  hint: "), "{words}");
    }
}
