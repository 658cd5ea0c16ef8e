"""Passes evidence of every kind of bug to the checker.

    .tools/venv/bin/python -m unittest discover -s tests/chaos -p '*_test.py'
"""

import unittest
from dataclasses import replace

from checker import Evidence, check
from monitor import Usage
from schedule import KINDS, plan


def good():
    """A run that keeps every promise."""
    return Evidence(
        tried={
            "a": {"id": "a", "kind": "good", "key": "a.jpg", "outcome": "flagged"},
            "key:b.jpg": {"id": "key:b.jpg", "kind": "derived", "key": "b.jpg", "outcome": "passed"},
            "d": {"id": "d", "kind": "deadly", "key": "d.jpg", "outcome": "failed"},
            "m": {"id": "m", "kind": "malformed", "key": None, "outcome": None},
            "conflict:c.jpg": {"id": "a", "kind": "conflict", "key": "c.jpg", "outcome": None},
        },
        confirmed={"a", "key:b.jpg", "d", "m", "conflict:c.jpg"},
        verdicts=[
            {"id": "1", "job_id": "a", "key": "a.jpg", "outcome": "flagged"},
            {"id": "2", "job_id": "5f2c", "key": "b.jpg", "outcome": "passed"},
            {"id": "3", "job_id": "d", "key": "d.jpg", "outcome": "failed"},
        ],
        audit=[("d", "failed", "passed")],
        outbox=[("e1", True), ("e2", True), ("e3", True)],
        events=[
            {"id": "e1", "verdict_id": "1", "job_id": "a", "outcome": "flagged", "body": "x"},
            {"id": "e1", "verdict_id": "1", "job_id": "a", "outcome": "flagged", "body": "x"},
            {"id": "e2", "verdict_id": "2", "job_id": "5f2c", "outcome": "passed", "body": "y"},
            {"id": "e3", "verdict_id": "3", "job_id": "d", "outcome": "failed", "body": "z"},
        ],
        queues={"chaos.jobs.live": 0},
        dead=[(None, None, "no JSON"), ("d", "d.jpg", "died"), ("a", "c.jpg", "id_conflict: it belongs to another")],
        before=Usage(100, 40, 4, 10),
        after=Usage(120, 42, 4, 10),
    )


class Checker(unittest.TestCase):
    def finds(self, evidence, *expected):
        found = check(evidence)
        self.assertEqual(len(found), len(expected), found)
        for line, words in zip(found, expected):
            self.assertIn(words, line)

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
        evidence.verdicts.append({"id": "4", "job_id": "77", "key": "b.jpg", "outcome": "passed"})
        evidence.events.append({"id": "e4", "verdict_id": "4", "job_id": "77", "outcome": "passed", "body": "w"})
        self.finds(evidence, "doubled: jobs with several outcomes: 1, such as key:b.jpg")
        evidence.false_responses["b.jpg"] = {"missing"}
        self.finds(evidence)

    def test_a_verdict_without_a_job_is_found(self):
        evidence = good()
        evidence.verdicts.append({"id": "4", "job_id": "ghost", "key": "g.jpg", "outcome": "passed"})
        evidence.events.append({"id": "e4", "verdict_id": "4", "job_id": "ghost", "outcome": "passed", "body": "w"})
        self.finds(evidence, "outcomes without a job: 1, such as ghost")

    def test_a_rewritten_verdict_is_found(self):
        evidence = good()
        for change in [("a", "flagged", "passed"), ("d", "failed", "deleted"), ("d", "failed", "failed")]:
            evidence = good()
            evidence.audit.append(change)
            self.finds(evidence, f"rewritten after their commit: 1, such as {change[0]}: {change[1]} to {change[2]}")

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
            ("outcome", "passed", "another outcome than the verdict: 1, such as a"),
            ("id", "e9", "several event ids: 1, such as 1"),
        ]:
            evidence = good()
            evidence.events[1][field] = value
            self.finds(evidence, words)
        evidence = good()
        evidence.events[0]["verdict_id"] = evidence.events[1]["verdict_id"] = "9"
        self.finds(evidence, "verdicts without their event", "events without a verdict")

    def test_a_failed_verdict_that_was_replaced_has_an_event_for_each_outcome(self):
        evidence = good()
        evidence.tried["d"]["outcome"] = evidence.verdicts[2]["outcome"] = "passed"
        evidence.events.append({"id": "e5", "verdict_id": "3", "job_id": "d", "outcome": "passed", "body": "v"})
        self.finds(evidence)
        last = evidence.events.pop()
        self.finds(evidence, "verdicts without their event: 1, such as 3")
        evidence.events.append(last)
        evidence.audit.clear()
        evidence.dead.remove(("d", "d.jpg", "died"))
        self.finds(evidence, "several event ids: 1, such as 3", "another outcome than the verdict: 1, such as d")

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

    def test_a_job_without_an_id_is_no_malformed_message(self):
        evidence = good()
        evidence.dead.append((None, "b.jpg", "the ledger refuses the row"))
        self.finds(evidence, "unexplained dead letters: 1")

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
