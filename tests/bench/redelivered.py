#!/usr/bin/env python3
"""How long live jobs take while redelivered backfill jobs wait, beside the same without them.

    tests/services/run -- python tests/bench/redelivered.py --pixwarden target/release/pixwarden

A worker starts over a backlog of backfill jobs and gets live jobs at a low rate meanwhile. The backlog is one of

- nothing: the live jobs are alone;
- fresh: the jobs are delivered for the first time;
- redelivered: every job was delivered before and returned, as when a worker drains or loses the broker;
- suspects: in addition the ledger has the record of a dead process for each, so that each is screened alone.

A latency is the time from publishing a live job to its event, by the clock of this process. The 50th and the 99th
percentile are over the live jobs of a round, which ends with the last verdict on the backlog. All services are on one
core and the worker is on another. ORT_DYLIB_PATH is taken from the environment.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import threading
import time
import uuid
from pathlib import Path

import images
import models
import pika
from figures import Figures, turns
from stand import RUN_LIMIT_S, SERVICES_CORE, START_LIMIT_S, WORKER_CORE, Failed, Stand, end

# Small enough for a build without optimisation, in which a worker screens one larger picture a second.
SMALL = "400px"
images.SIZES[SMALL] = (400, 300, 88)
BACKLOGS = ("nothing", "fresh", "redelivered", "suspects")
# The namespace of verdict ids, as in src/job.rs.
NAMESPACE = uuid.UUID("8f4d9e52-6c0b-4a39-9d8e-5b1f70c3a2e6")
# The first live jobs meet a worker that has just started.
IGNORED = 5


class Bench:
    def __init__(self, options, folder):
        self.options = options
        self.stand = Stand(options.pixwarden, folder, (SERVICES_CORE, WORKER_CORE))
        self.folder = folder
        self.detector = models.make(folder / "models")["tiny-384"]
        self.keys = self.stand.store(options.size, images.make(folder, options.size, options.objects))
        self.backfill_queue = f"{self.stand.name}.jobs.backfill"

    def round(self, backlog):
        """The latencies of the live jobs of one round, in milliseconds."""
        stand = self.stand
        stand.database.execute("TRUNCATE verdicts, outbox, suspects")
        stand.purge()
        self.fill(backlog)
        log_path = self.folder / f"{backlog}.log"
        command = [stand.pixwarden, "worker", "--detector", str(self.detector), "--log", "info"]
        variables = {"PIXWARDEN_WORKER_REUSE_SCORES": "false", "PIXWARDEN_METRICS_LISTEN": "off"}
        with log_path.open("w") as log:
            keywords = {"env": stand.environment() | variables, "cwd": self.folder, "stdout": log, "stderr": log}
            worker = subprocess.Popen(command, preexec_fn=stand.pin_worker, **keywords)
            try:
                stand.wait(worker, START_LIMIT_S, lambda: stand.depth(stand.jobs_queue, "consumer_count"))
                latencies = self.measure(worker, backlog)
            except Failed as error:
                raise SystemExit(f"{backlog}: {error}\n{log_path.read_text()[-3000:]}") from None
            finally:
                status = end(worker)
        if status != 0 or stand.database.execute("SELECT count(*) FROM suspects").fetchone()[0]:
            raise SystemExit(f"{backlog}: the worker ended with {status}, or left suspects\n{log_path.read_text()[-3000:]}")
        return latencies

    def fill(self, backlog):
        """Puts the backlog into the backfill lane."""
        if backlog == "nothing":
            return
        channel = self.stand.channel()
        channel.confirm_delivery()
        ids = [f"backfill-{number}" for number in range(self.options.backlog)]
        for number, id in enumerate(ids):
            self.publish(channel, "backfill", id, number)
        if backlog in ("redelivered", "suspects"):
            for _ in ids:
                method, _, _ = channel.basic_get(self.backfill_queue)
            channel.basic_nack(method.delivery_tag, multiple=True, requeue=True)
            method, _, _ = channel.basic_get(self.backfill_queue)
            if not method.redelivered:
                raise SystemExit("the jobs are not marked as redelivered")
        # What this connection holds returns to the lane.
        channel.connection.close()
        if backlog == "suspects":
            rows = [(uuid.uuid5(NAMESPACE, id), uuid.uuid4()) for id in ids]
            with self.stand.database.cursor() as cursor:
                cursor.executemany("INSERT INTO suspects (id, starts, process) VALUES (%s, 0, %s)", rows)

    def measure(self, worker, backlog):
        listener = Listener(self.stand)
        listener.start()
        sent, channel = {}, self.stand.channel(heartbeat=0)
        until = time.monotonic() + RUN_LIMIT_S
        due = time.monotonic()
        while not self.is_over(backlog, len(sent)):
            if worker.poll() is not None or time.monotonic() > until:
                raise Failed(f"the backlog was not screened within {RUN_LIMIT_S} s, or the worker ended")
            id = f"live-{len(sent)}"
            sent[id] = time.monotonic()
            self.publish(channel, "live", id, len(sent))
            due += 1 / self.options.rate
            time.sleep(max(0, due - time.monotonic()))
        self.stand.wait(worker, RUN_LIMIT_S, lambda: sent.keys() <= listener.heard.keys())
        listener.is_over.set()
        listener.join()
        channel.connection.close()
        return [1000 * (listener.heard[id] - at) for id, at in sent.items()][IGNORED:]

    def is_over(self, backlog, sent):
        if backlog == "nothing":
            return sent >= self.options.live + IGNORED
        query = "SELECT count(*) FROM verdicts WHERE lane = 'backfill'"
        return self.stand.database.execute(query).fetchone()[0] >= self.options.backlog

    def publish(self, channel, lane, id, number):
        image = f"s3://{self.stand.name}/{self.keys[number % len(self.keys)]}"
        properties = pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent)
        channel.basic_publish(f"{self.stand.name}.jobs", lane, json.dumps({"id": id, "image": image}), properties)


class Listener(threading.Thread):
    """Notes when the event of each job arrives."""

    def __init__(self, stand):
        super().__init__(daemon=True)
        self.stand, self.heard, self.is_over = stand, {}, threading.Event()

    def run(self):
        channel = self.stand.channel(heartbeat=0)
        for method, _, body in channel.consume(self.stand.heard_queue, auto_ack=True, inactivity_timeout=0.2):
            if method is not None:
                self.heard.setdefault(json.loads(body)["data"]["job_id"], time.monotonic())
            elif self.is_over.is_set():
                break
        channel.connection.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixwarden", type=Path, required=True)
    parser.add_argument("--backlog", type=int, default=200, help="backfill jobs that wait (default 200)")
    parser.add_argument("--rate", type=float, default=4, help="live jobs a second (default 4)")
    parser.add_argument("--live", type=int, default=150, help="live jobs of a round without a backlog (default 150)")
    parser.add_argument("--size", choices=images.SIZES, default="1024px", help="default 1024px")
    parser.add_argument("--objects", type=int, default=12, help="different pictures (default 12)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures, counts = Figures("redelivered"), dict.fromkeys(BACKLOGS, 0)
    row = lambda backlog, percent: f"live p{percent}, backlog: {backlog}"
    with tempfile.TemporaryDirectory(prefix="bench-redelivered-") as folder:
        bench = Bench(options, Path(folder))
        for _, order in turns(BACKLOGS, options.rounds):
            for backlog in order:
                latencies = bench.round(backlog)
                counts[backlog] += len(latencies)
                cuts = statistics.quantiles(latencies, n=100, method="inclusive")
                figures.add(row(backlog, 50), cuts[49], "ms")
                figures.add(row(backlog, 99), cuts[98], "ms")
    for backlog in BACKLOGS[1:]:
        figures.ratio(f"live p99, {backlog} / nothing", row(backlog, 99), row("nothing", 99))
    for backlog in BACKLOGS[2:]:
        figures.ratio(f"live p99, {backlog} / fresh", row(backlog, 99), row("fresh", 99))
    live = ", ".join(f"{backlog} {count}" for backlog, count in counts.items())
    figures.note(f"a backlog is {options.backlog} jobs; live jobs in all rounds: {live}")
    figures.report(options.json)


if __name__ == "__main__":
    main()
