"""Shares of time, and parts that do not end by themselves."""

import sys
import tempfile
import time
import unittest

import budget


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Shares(unittest.TestCase):
    def setUp(self):
        self.clock = Clock()
        self.budget = budget.Budget(100, {"a": 20, "b": 50, "c": 30}, self.clock)

    def test_what_a_part_leaves_is_for_those_after_it(self):
        self.assertEqual(self.budget.limit("a"), 20)
        self.clock.now += 5
        self.assertEqual(self.budget.limit("b"), 65)
        self.clock.now += 10
        self.assertEqual(self.budget.limit("c"), 85)

    def test_a_late_part_takes_no_time_from_later_parts(self):
        self.clock.now += 90
        self.assertEqual(self.budget.limit("b"), 0)
        self.assertEqual(self.budget.limit("c"), 10)
        self.clock.now += 90
        self.assertEqual(self.budget.limit("c"), 0)

    def test_a_short_run_shortens_all_parts_alike_and_a_long_one_serves_the_first_parts(self):
        short = budget.Budget(50, {"a": 20, "b": 50, "c": 30}, self.clock)
        self.assertEqual([short.limit("a"), short.shares["c"]], [10, 15])
        long = budget.Budget(150, {"a": 20, "b": 50, "c": 30}, self.clock)
        self.assertEqual(long.limit("a"), 70)


class Run(unittest.TestCase):
    def run_python(self, code, limit_s):
        with tempfile.TemporaryFile() as log:
            why = budget.run([sys.executable, "-c", code], limit_s, log)
            log.seek(0)
            return why, log.read().decode()

    def test_success_and_failure(self):
        self.assertEqual(self.run_python("print('done')", 60), (None, "done\n"))
        self.assertEqual(self.run_python("raise SystemExit(3)", 60)[0], "ended with 3")

    def test_nothing_is_begun_without_time(self):
        self.assertEqual(self.run_python("print('begun')", 1), ("no time was left", ""))

    def test_a_part_that_hangs_is_ended_with_what_it_started(self):
        # The child of the child would hold the log open for a minute and go on working.
        code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
        began = time.monotonic()
        why, _ = self.run_python(code, budget.GRACE_S + 0.3)
        self.assertIn("its time was over", why)
        self.assertLess(time.monotonic() - began, 30)


if __name__ == "__main__":
    unittest.main()
