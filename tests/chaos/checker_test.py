"""Passes evidence of every kind of bug to the checker.

    .tools/venv/bin/python -m unittest discover -s tests/chaos -p '*_test.py'
"""

import unittest
from dataclasses import replace

from checker import Change, Evidence, Partial, check
from monitor import Usage
from schedule import KINDS, plan


def verdict(id, job_id, key, outcome, **other):
    row = {"id": id, "job_id": job_id, "key": key, "outcome": outcome, "reason": None, "attempts": 1, "has_metadata": True}
    return row | {"revision": 1, "policy": "default", "judged_at": 1} | other


def event(id, verdict_id, job_id, outcome, body, **other):
    made = {"id": id, "verdict_id": verdict_id, "job_id": job_id, "outcome": outcome, "body": body}
    return made | {"revision": 1, "judged_at": 1, "announced": outcome} | other


def state(id, outcome, revision, policy="default", judged_at=None):
    return {"id": id, "outcome": outcome, "revision": revision, "policy": policy, "judged_at": judged_at or revision}


def good():
    """A run that keeps every promise."""
    return Evidence(
        tried={
            "a": {"id": "a", "kind": "good", "key": "a.jpg", "outcome": "flagged", "opposite": ["passed"]},
            "key:b.jpg": {"id": "key:b.jpg", "kind": "derived", "key": "b.jpg", "outcome": "passed", "opposite": ["review"]},
            "d": {"id": "d", "kind": "deadly", "key": "d.jpg", "outcome": "failed"},
            "m": {"id": "m", "kind": "malformed", "key": None, "outcome": None},
            "conflict:c.jpg": {"id": "a", "kind": "conflict", "key": "c.jpg", "outcome": None},
        },
        confirmed={"a", "key:b.jpg", "d", "m", "conflict:c.jpg"},
        verdicts=[
            verdict("1", "a", "a.jpg", "flagged"),
            verdict("2", "5f2c", "b.jpg", "passed", has_metadata=False),
            verdict("3", "d", "d.jpg", "failed"),
        ],
        outbox=[("e1", True), ("e2", True), ("e3", True)],
        events=[
            event("e1", "1", "a", "flagged", "x"),
            event("e1", "1", "a", "flagged", "x"),
            event("e2", "2", "5f2c", "passed", "y"),
            event("e3", "3", "d", "failed", "z"),
        ],
        queues={"chaos.jobs.live": 0},
        dead=[(None, None, "no JSON"), ("d", "d.jpg", "died"), ("a", "c.jpg", "id_conflict: it belongs to another")],
        before=Usage(100, 40, 4, 10),
        after=Usage(120, 42, 4, 10),
        injected={"worker-kill", "worker-restart", "ledger-poison-trigger", "store-one-of-two-down"},
        partial=[Partial("ledger-poison-trigger", 40, []), Partial("store-one-of-two-down", 40, [])],
        begun_alone=["3"],
    )


def with_job(kind, expected, **row):
    """A good run with one more job, whose verdict and event are as they should be."""
    evidence = good()
    evidence.tried["n"] = {"id": "n", "kind": kind, "key": "n.jpg", "outcome": expected, "has_metadata": True}
    evidence.confirmed.add("n")
    evidence.verdicts.append(verdict("4", "n", "n.jpg", **{"outcome": expected} | row))
    outcome = evidence.verdicts[-1]["outcome"]
    evidence.events.append(event("e4", "4", "n", outcome, "w"))
    if outcome == "failed":
        evidence.dead.append(("n", "n.jpg", "why"))
    return evidence


def rejudged():
    """A good run in which a verdict was rejudged by the other policy, and back."""
    evidence = good()
    evidence.verdicts[1] |= {"revision": 3, "judged_at": 3}
    evidence.history = [state("2", "passed", 1), state("2", "review", 2, "opposite")]
    evidence.audit = [Change("5f2c", "passed", "review", 1, 2, "rejudged"), Change("5f2c", "review", "passed", 2, 3, "rejudged")]
    evidence.events += [
        event("e6", "2", "5f2c", "review", "s", revision=2, judged_at=2),
        event("e7", "2", "5f2c", "passed", "t", revision=3, judged_at=3, announced="cleared"),
    ]
    return evidence


class Checker(unittest.TestCase):
    def finds(self, evidence, *expected):
        found = check(evidence)
        self.assertEqual(len(found), len(expected), found)
        for line, words in zip(found, expected):
            self.assertIn(words, line)

    def test_a_torn_import_and_a_worker_with_an_old_bank_are_found(self):
        evidence = good()
        evidence.bank = {"imports": {"00000001": 500, "00000003": 500}, "version": 2, "asked": [(2, 40)]}
        self.finds(evidence)
        evidence.bank = {"imports": {"00000001": 500, "00000003": 499}, "version": 2, "asked": [(1, 1), (2, 40)]}
        self.finds(evidence, "imports of which only a part is in the bank: 1, such as 00000003: 499 of 500", "1 asked 1, not 2")
        evidence.bank = {"imports": {"00000001": 500}, "version": 2, "asked": []}
        self.finds(evidence, "1 in version 2")

    def test_a_good_run_is_good(self):
        self.finds(good())

    def test_an_unconfirmed_job_may_have_an_outcome_or_none(self):
        evidence = good()
        evidence.confirmed.remove("a")
        self.finds(evidence)
        evidence.tried["new"] = {"id": "new", "kind": "good", "key": "n.jpg", "outcome": "passed"}
        self.finds(evidence)

    def test_a_lost_job_is_found(self):
        evidence = good()
        evidence.tried["b"] = {"id": "b", "kind": "good", "key": "x.jpg", "outcome": "passed"}
        evidence.confirmed.add("b")
        self.finds(evidence, "lost: confirmed jobs without an outcome: 1, such as b")

    def test_two_verdicts_of_one_job_are_found(self):
        evidence = good()
        evidence.verdicts.append(verdict("4", "77", "b.jpg", "passed"))
        evidence.events.append(event("e4", "4", "77", "passed", "w"))
        self.finds(evidence, "doubled: jobs with several outcomes: 1, such as key:b.jpg")
        evidence.false_responses["b.jpg"] = {"missing"}
        self.finds(evidence)

    def test_a_verdict_without_a_job_is_found(self):
        evidence = good()
        evidence.verdicts.append(verdict("4", "ghost", "g.jpg", "passed"))
        evidence.events.append(event("e4", "4", "ghost", "passed", "w"))
        self.finds(evidence, "outcomes without a job: 1, such as ghost")

    def test_a_rewritten_verdict_is_found(self):
        evidence = good()
        for change in [("a", "flagged", "passed"), ("d", "failed", "deleted"), ("d", "failed", "failed"), ("d", "failed", "passed", 1, 3)]:
            evidence = good()
            evidence.audit.append(Change(*change))
            rewritten = f"rewritten after their commit: 1, such as {change[0]}: {change[1]} to {change[2]}"
            self.finds(evidence, rewritten, "verdicts whose history is wrong: 1")
        evidence = good()
        evidence.audit.append(Change("a", "flagged", "passed", 1, 1, "rejudged"))
        self.finds(evidence, "rewritten after their commit: 1, such as a: flagged to passed")
        evidence.audit = [Change("a", "flagged", "flagged", 1, 1, None, is_same=True)]
        self.finds(evidence)

    def test_a_wrong_outcome_is_found_and_a_false_response_of_the_store_excuses_only_missing(self):
        evidence = good()
        evidence.tried["a"]["outcome"] = "undecodable"
        self.finds(evidence, "unexpected outcomes: 1, such as a: flagged instead of undecodable")
        evidence.false_responses["a.jpg"] = {"missing"}
        self.finds(evidence, "unexpected outcomes")
        evidence.verdicts[0]["outcome"] = "missing"
        for event in evidence.events[:2]:
            event["outcome"] = "missing"
        self.finds(evidence)

    def test_a_missing_event_is_found(self):
        evidence = good()
        del evidence.events[2]
        self.finds(evidence, "verdicts without their event: 1, such as 2")

    def test_an_event_that_differs_is_found(self):
        for field, value, words in [
            ("body", "other", "differ in their body: 1, such as e1"),
            ("outcome", "passed", "a revision that the ledger never had: 1, such as 1: revision 1, passed"),
            ("id", "e9", "several event ids: 1, such as 1"),
        ]:
            evidence = good()
            evidence.events[1][field] = value
            self.finds(evidence, words)
        evidence = good()
        evidence.events[0]["verdict_id"] = evidence.events[1]["verdict_id"] = "9"
        self.finds(evidence, "verdicts without their event", "events without a verdict")

    def test_a_failed_verdict_that_was_replaced_has_a_revision_with_its_event(self):
        evidence = good()
        evidence.tried["d"] |= {"kind": "poison", "outcome": "passed"}
        evidence.verdicts[2] |= {"outcome": "passed", "revision": 2, "judged_at": 2}
        evidence.history.append(state("3", "failed", 1))
        evidence.audit.append(Change("d", "failed", "passed"))
        evidence.events.append(event("e5", "3", "d", "passed", "v", revision=2, judged_at=2, announced="cleared"))
        self.finds(evidence)
        last = evidence.events.pop()
        self.finds(evidence, "verdicts without their event: 1, such as 3")
        evidence.events.append(last | {"announced": "passed"})
        self.finds(evidence, "images that passed again without image.cleared: 1, such as 3")
        evidence.events[-1] = last
        evidence.audit.clear()
        evidence.dead.remove(("d", "d.jpg", "died"))
        self.finds(evidence, "verdicts whose history is wrong: 1, such as 3")

    def test_verdicts_that_were_rejudged_back_and_forth_are_good(self):
        self.finds(rejudged())
        # What was announced of an earlier revision may be missing: its event was replaced.
        evidence = rejudged()
        evidence.events = [e for e in evidence.events if (e["verdict_id"], e["revision"]) not in {("2", 1), ("2", 2)}]
        self.finds(evidence)

    def test_a_wrong_history_is_found(self):
        wrong = "verdicts whose history is wrong: 1, such as 2: "
        evidence = rejudged()
        del evidence.history[1]
        evidence.events = [e for e in evidence.events if (e["verdict_id"], e["revision"]) != ("2", 2)]
        self.finds(evidence, wrong + "revisions [1, 3]")
        evidence = rejudged()
        evidence.verdicts[1]["revision"] = 4
        evidence.events[-1]["revision"] = 4
        self.finds(evidence, wrong + "revisions [1, 2, 4]")
        evidence = rejudged()
        evidence.history[1]["judged_at"] = 9
        self.finds(evidence, wrong + "judged_at went back")
        evidence = rejudged()
        evidence.audit[1] = evidence.audit[1]._replace(before="flagged")
        self.finds(evidence, wrong + "the history has")
        evidence = rejudged()
        evidence.history.append(state("8", "passed", 1))
        self.finds(evidence, "verdicts whose history is wrong: 1, such as 8: a history without its verdict")

    def test_an_earlier_revision_with_a_wrong_outcome_is_found(self):
        evidence = rejudged()
        evidence.history[1]["outcome"] = evidence.events[-2]["outcome"] = "flagged"
        evidence.audit = [Change(*evidence.audit[0][:2], "flagged", *evidence.audit[0][3:]), evidence.audit[1]._replace(before="flagged")]
        self.finds(evidence, "unexpected outcomes: 1, such as key:b.jpg: flagged instead of passed by the policy opposite")
        evidence = good()
        evidence.verdicts[2]["policy"] = "opposite"
        self.finds(evidence, "unexpected outcomes: 1, such as d: failed instead of failed by the policy opposite", "left out: 1, such as 3")

    def test_a_verdict_that_the_last_rejudge_left_out_is_found(self):
        evidence = good()
        evidence.verdicts[1] |= {"outcome": "review", "revision": 2, "judged_at": 2, "policy": "opposite"}
        evidence.history = [state("2", "passed", 1)]
        evidence.audit = [Change("5f2c", "passed", "review", 1, 2, "rejudged")]
        evidence.events.append(event("e6", "2", "5f2c", "review", "s", revision=2, judged_at=2))
        self.finds(evidence, "verdicts that the last rejudge left out: 1, such as 2")

    def test_an_event_of_a_revision_that_the_ledger_never_had_is_found(self):
        evidence = rejudged()
        evidence.events.append(event("e9", "1", "a", "passed", "u", revision=2, judged_at=0))
        self.finds(evidence, "events of a revision that the ledger never had: 1, such as 1: revision 2, passed")

    def test_a_consumer_that_keeps_another_outcome_is_found(self):
        evidence = rejudged()
        evidence.events[-2]["judged_at"] = 7
        self.finds(evidence, "verdicts of which a consumer keeps another outcome: 1, such as 2: review instead of passed")
        # Among equals the highest revision counts.
        evidence.events[-2]["judged_at"] = 3
        self.finds(evidence)

    def test_a_missing_cleared_event_is_found(self):
        evidence = rejudged()
        evidence.events[-1]["announced"] = "passed"
        self.finds(evidence, "images that passed again without image.cleared: 1, such as 2")
        # Nothing else was announced.
        evidence.events = [e for e in evidence.events if (e["verdict_id"], e["revision"]) not in {("2", 1), ("2", 2)}]
        self.finds(evidence)
        evidence.events.pop()
        self.finds(evidence, "verdicts without their event: 1, such as 2")

    def test_messages_left_in_queues_are_found(self):
        evidence = good()
        evidence.queues["chaos.delay.live.5s"] = 2
        evidence.outbox[0] = ("e1", False)
        self.finds(evidence, "unpublished events in the outbox: 1, such as e1", "left in queues: 1, such as 2 in chaos.delay.live.5s")

    def test_dead_letters_are_accounted_for(self):
        evidence = good()
        evidence.dead = [("a", "a.jpg", "why not")]
        self.finds(
            evidence, "unexplained dead letters", "the id of another job", "failed jobs that were not", "malformed messages that were not"
        )

    def test_the_dead_letter_of_a_job_without_an_id_is_explained_only_by_another_state_of_the_object(self):
        reason = "failed: access denied; the verdict 2 (missing) has the same job id and is on another state of the object"
        evidence = good()
        evidence.dead.append((None, "b.jpg", reason))
        self.finds(evidence, "unexplained dead letters: 1")
        evidence.false_responses["b.jpg"] = {"wrong-etag"}
        self.finds(evidence)
        evidence.dead[-1] = (None, "b.jpg", "the ledger refuses the row")
        self.finds(evidence, "unexplained dead letters: 1")
        evidence.dead[-1] = (None, "c.jpg", reason)
        evidence.false_responses["c.jpg"] = {"wrong-etag"}
        self.finds(evidence, "unexplained dead letters: 1")

    def test_a_job_that_failed_because_of_an_outage_is_found(self):
        evidence = with_job("good", "passed", outcome="failed", reason="store down")
        self.finds(evidence, "failed because of an outage: 1, such as n: store down")
        evidence = with_job("good", "passed")
        evidence.audit.append(Change("n", "failed", "passed"))
        evidence.history.append(state("4", "failed", 1))
        evidence.verdicts[-1] |= {"revision": 2, "judged_at": 2}
        evidence.events[-1] |= {"revision": 2, "judged_at": 2, "announced": "cleared"}
        evidence.events.append(event("e5", "4", "n", "failed", "v"))
        self.finds(evidence, "failed because of an outage: 1, such as n: failed at first, then passed")

    def test_a_refused_job_fails_alone_and_without_metadata(self):
        self.finds(with_job("poison", "passed"))
        failed = {"outcome": "failed", "reason": "refused", "has_metadata": False}
        evidence = with_job("poison", "passed", **failed)
        self.finds(evidence)
        evidence.injected.remove("ledger-poison-trigger")
        self.finds(evidence, "failed because of an outage: 1, such as n: refused", "without the metadata of their job: 1")
        self.finds(with_job("good", "passed", **failed), "failed because of an outage: 1", "without the metadata of their job: 1")
        self.finds(with_job("good", "passed", has_metadata=False), "without the metadata of their job: 1, such as n: passed")

    def test_a_fault_that_concerns_some_jobs_neither_stops_nor_pauses_the_others(self):
        evidence = good()
        evidence.partial = [Partial("store-one-of-two-down", 0, ["paused: storage: refused"])]
        self.finds(
            evidence,
            "no verdict on other jobs for as long as a fault lasted: 1, such as store-one-of-two-down",
            "intake paused by a fault that concerned some jobs only: 1, such as store-one-of-two-down: paused: storage",
        )

    def test_an_attempt_that_was_counted_while_a_store_was_down_is_found(self):
        self.finds(with_job("far", "passed"))
        self.finds(with_job("good", "passed", attempts=2))
        self.finds(with_job("far", "passed", attempts=2), "attempts counted against jobs whose store was down: 1, such as n: 2 attempts")
        self.finds(with_job("far", "passed", outcome="missing"), "unexpected outcomes: 1, such as n: missing instead of passed")

    def test_too_many_sessions_of_the_ledger_are_found(self):
        self.finds(replace(good(), sessions=["40 after 9 s, more than 32"]), "more sessions of the ledger than workers may have: 1, such as 40")

    def test_a_record_of_the_quarantine_that_was_left_behind_is_found(self):
        answered = good().verdicts[0]["id"]
        what = "records of the quarantine that were left behind"
        self.finds(replace(good(), suspects=[answered], deaths=1))
        self.finds(replace(good(), suspects=[answered], ledger_faults=1))
        self.finds(replace(good(), suspects=[answered, "no verdict"], deaths=1), f"{what}: 1, such as no verdict")
        self.finds(replace(good(), suspects=[answered]), f"{what}: 1, such as {answered}")
        changing = with_job("derived", "passed")
        changing.false_responses["n.jpg"] = {"wrong-etag"}
        self.finds(replace(changing, suspects=["no verdict"]))
        self.finds(replace(changing, suspects=["no verdict", "nor this"]), f"{what}: 2, such as no verdict, nor this")
        all_answered = [row["id"] for row in good().verdicts]
        self.finds(replace(good(), suspects=all_answered, deaths=1), f"{what}: 3, such as 1, 2, 3")
        self.finds(replace(good(), suspects=all_answered, deaths=2))

    def test_an_image_that_kills_workers_again_and_again_is_found(self):
        self.finds(replace(good(), deaths_by_image=10))
        self.finds(replace(good(), deaths_by_image=11), "workers died of 1 images 11 times")

    def test_a_job_that_an_orderly_restart_made_a_suspect_is_found(self):
        evidence = replace(good(), injected={"worker-restart", "store-503"})
        self.finds(evidence, "screened alone although no worker died: 1, such as 3")
        evidence.begun_alone.clear()
        self.finds(evidence)

    def test_growth_and_unexpected_ends_are_found(self):
        evidence = replace(good(), after=Usage(900, 400, 9, 90), unexpected=["worker 0 ended with 1"])
        self.finds(evidence, "resident mib", "descriptors", "broker connections", "ledger connections", "without being killed")


class Schedule(unittest.TestCase):
    def test_a_seed_determines_the_schedule(self):
        self.assertEqual(plan(7, 300), plan(7, 300))
        self.assertNotEqual(plan(7, 300), plan(8, 300))

    def test_every_kind_comes_before_any_comes_again(self):
        kinds = [fault.kind for fault in plan(1, 3600)]
        self.assertEqual(sorted(kinds[: len(KINDS)]), sorted(KINDS))

    def test_all_faults_end_in_time(self):
        self.assertTrue(all(fault.at + fault.lasts <= 120 for fault in plan(3, 120)))


if __name__ == "__main__":
    unittest.main()
