"""Observes the run from outside: new verdicts, and the workers' readiness."""

import threading
import time
from dataclasses import dataclass

import psycopg

from world import FAR_BUCKET

POLL_INTERVAL_S = 0.1


@dataclass
class Usage:
    """Resources at one moment: the largest value of any worker, and the number of all connections."""

    resident_mib: int
    descriptors: int
    broker_connections: int
    ledger_connections: int


class Monitor(threading.Thread):
    def __init__(self, world, fleet):
        super().__init__(daemon=True)
        self._world, self._fleet = world, fleet
        self._progress = threading.Condition()
        self.verdicts = 0
        # Verdicts on images of the store that is not the far one.
        self.near_verdicts = 0
        self.not_ready_at = None
        # Why a worker's intake was paused since this was emptied.
        self.pauses = set()
        self._last_at = time.monotonic()

    def run(self):
        threading.Thread(target=self._watch_readiness, daemon=True).start()
        database = None
        while True:
            try:
                database = database or self._world.database()
                query = "SELECT count(*), count(*) FILTER (WHERE bucket <> %s) FROM verdicts"
                verdicts, near = database.execute(query, [FAR_BUCKET]).fetchone()
                with self._progress:
                    self.near_verdicts = near
                    if verdicts > self.verdicts:
                        self.verdicts, self._last_at = verdicts, time.monotonic()
                        self._progress.notify_all()
            except (psycopg.Error, OSError):
                database = None
            time.sleep(POLL_INTERVAL_S)

    def _watch_readiness(self):
        while True:
            if not self._fleet.ready() and self.not_ready_at is None:
                self.not_ready_at = time.monotonic()
            self.pauses |= self._fleet.pauses()
            time.sleep(POLL_INTERVAL_S)

    def progress_after(self, moment, limit_s):
        """Seconds from a moment to the first verdict seen after it; None if none comes within the limit."""
        with self._progress:
            if self._progress.wait_for(lambda: self._last_at > moment, limit_s):
                return self._last_at - moment
        return None

    def usage(self):
        resident, descriptors = zip(*(worker.usage() for worker in self._fleet.workers))
        with self._world.database() as database:
            query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            sessions = database.execute(query).fetchone()[0]
        connections = self._world.control("rabbitmq", "list-connections").split()
        return Usage(max(resident), max(descriptors), len(connections), sessions)
