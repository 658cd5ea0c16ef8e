#!/usr/bin/env python3
"""What a rejudge of a large ledger takes, and what it takes from the live jobs beside it.

    tests/services/run -- python tests/bench/rejudge.py --pixwarden target/release/pixwarden --rows 10000000

A database is filled with verdicts as growth.sql makes them. A worker screens live jobs at a steady rate, first alone, then
beside a rejudge by other thresholds, which changes about one verdict in eleven; each job's latency is the time from its publication to the arrival of its event.
Printed are the rejudged verdicts per second, the memory of the process, and the latencies with their ratios. With --rate
the rejudge is slowed down as an operator would do.
"""

import argparse
import json
import os
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import growth
import pika
import psycopg
from stand import end

MODELS = Path(__file__).parents[2] / "models"
NAME = "rejudge"


class Bench:
    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.url = growth.create(NAME)
        (folder / "objects" / "uploads").mkdir(parents=True)
        self.image = (MODELS / "samples" / "baseline.jpg").read_bytes()
        self.config = folder / "pixwarden.toml"
        self.write_config(review_at=0.5, flag_at=0.95)
        subprocess.run(self.command("migrate"), env=self.environment(), check=True)
        self.database = psycopg.connect(self.url, autocommit=True)
        growth.fill(self.database, options.rows)
        self.database.execute("CHECKPOINT")

    def write_config(self, review_at, flag_at):
        self.config.write_text(
            f'queue = "{os.environ["TEST_AMQP_URL"]}"\nledger = "{self.url}"\nobjects = "file://{self.folder / "objects"}"\n'
            f'buckets = ["uploads"]\nprefix = "{NAME}"\n[[detectors]]\nname = "synthetic-2.0"\npath = "{MODELS / "cifake-32"}"\n'
            f'[[policy.rules]]\ndetector = "synthetic-2.0"\nlabel = "by AI"\nreview_at = {review_at}\nflag_at = {flag_at}\n'
            '[events]\npublish = ["image.flagged", "image.review", "image.failed", "image.passed"]\n'
            '[metrics]\nlisten = "127.0.0.1:0"\n'
        )

    def command(self, *arguments):
        return [self.options.pixwarden, "--config", str(self.config), "--log", "warn", *arguments]

    def environment(self):
        return {"PATH": os.environ["PATH"], "ORT_DYLIB_PATH": os.environ["ORT_DYLIB_PATH"]}

    def worker(self):
        log = (self.folder / "worker.log").open("w")
        return subprocess.Popen(self.command("worker"), env=self.environment(), stderr=log)


class Live:
    """Publishes jobs at a steady rate, and notes when the event of each arrives."""

    def __init__(self, bench, worker):
        self.bench = bench
        self.published, self.latencies = {}, {}
        self.numbers = iter(range(10**9))
        parameters = pika.URLParameters(os.environ["TEST_AMQP_URL"])
        parameters.heartbeat = 0
        self.sending = pika.BlockingConnection(parameters).channel()
        until = time.monotonic() + 60
        while worker.poll() is None and time.monotonic() < until:
            channel = pika.BlockingConnection(parameters).channel()
            try:
                if channel.queue_declare(f"{NAME}.jobs.live", passive=True).method.consumer_count:
                    break
            except pika.exceptions.ChannelClosedByBroker:
                pass
            time.sleep(0.1)
        threading.Thread(target=self.listen, args=(parameters,), daemon=True).start()

    def listen(self, parameters):
        channel = pika.BlockingConnection(parameters).channel()
        queue = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(queue, f"{NAME}.events", "image.#")

        def heard(_channel, _method, _properties, body):
            job = json.loads(body)["data"]["job_id"]
            if job in self.published:
                self.latencies[job] = time.monotonic() - self.published.pop(job)

        channel.basic_consume(queue, heard, auto_ack=True)
        channel.start_consuming()

    def run(self, until):
        """Returns the sorted latencies of the jobs that were published until `until()`, in seconds."""
        began, sent, first = time.monotonic(), 0, None
        while not until():
            number = next(self.numbers)
            first = number if first is None else first
            path = self.bench.folder / "objects" / "uploads" / f"{number}.jpg"
            # What follows a JPEG's end changes its digest, and no pixel.
            path.write_bytes(self.bench.image + str(number).encode())
            job = f"live-{number}"
            self.published[job] = time.monotonic()
            body = json.dumps({"id": job, "image": f"s3://uploads/{number}.jpg"})
            self.sending.basic_publish(f"{NAME}.jobs", "live", body, pika.BasicProperties(delivery_mode=2))
            sent += 1
            time.sleep(max(0.0, began + sent / self.bench.options.live - time.monotonic()))
        deadline = time.monotonic() + 30
        while self.published and time.monotonic() < deadline:
            time.sleep(0.05)
        lost = len(self.published)
        found = sorted(self.latencies.values())
        self.published, self.latencies = {}, {}
        if lost or not found:
            raise SystemExit(f"{lost} of {sent} jobs were not announced within 30 s")
        return found


class Memory:
    """The peak memory of a process, read for as long as it runs."""

    def __init__(self, process):
        self.process, self.peak_mb = process, 0.0

    def has_ended(self):
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            self.peak_mb = int(status.split("VmHWM:")[1].split()[0]) / 1024
        except (OSError, IndexError):
            pass
        return self.process.poll() is not None


def quantile(values, q):
    return values[min(len(values) - 1, int(q * len(values)))]


def line(name, latencies):
    p50, p95, p99 = (quantile(latencies, q) * 1000 for q in (0.5, 0.95, 0.99))
    return f"{name:24} {len(latencies):6} jobs  p50 {p50:7.1f} ms  p95 {p95:7.1f} ms  p99 {p99:7.1f} ms"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pixwarden", type=lambda path: str(Path(path).resolve()), required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--live", type=float, default=20, help="live jobs per second")
    parser.add_argument("--alone", type=float, default=60, help="seconds of live jobs without a rejudge")
    parser.add_argument("--rate", help="as rejudge's option")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        worker = bench.worker()
        try:
            live = Live(bench, worker)
            warm = time.monotonic() + 5
            live.run(lambda: time.monotonic() > warm)
            stop = time.monotonic() + options.alone
            alone = live.run(lambda: time.monotonic() > stop)
            print(line("live jobs alone", alone), flush=True)
            # The worker read its configuration at its start, and goes on with the earlier policy.
            bench.write_config(review_at=0.97, flag_at=0.985)
            arguments = ["--until", "2026-11-01", *(["--rate", options.rate] if options.rate else [])]
            began = time.monotonic()
            dry = bench.command("rejudge", "--dry-run", *arguments[:2])
            subprocess.run(dry, env=bench.environment(), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            print(f"dry run: {options.rows / (time.monotonic() - began):,.0f} verdicts per second", flush=True)
            began = time.monotonic()
            rejudge = subprocess.Popen(
                bench.command("rejudge", *arguments), env=bench.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            memory = Memory(rejudge)
            beside = live.run(memory.has_ended)
            seconds = time.monotonic() - began
            said = rejudge.communicate()
            if rejudge.returncode:
                raise SystemExit(said[1].decode())
            print(line("live jobs beside it", beside))
            changed = bench.database.execute("SELECT count(*) FROM verdicts WHERE revision > 1").fetchone()[0]
            print(f"{options.rows:,} verdicts rejudged in {seconds:.0f} s: {options.rows / seconds:,.0f} per second, {changed:,} revised")
            print(said[1].decode().splitlines()[-1])
            print(f"memory of the rejudge: {memory.peak_mb:.0f} MB at most")
            ratios = [quantile(beside, q) / quantile(alone, q) for q in (0.5, 0.95, 0.99)]
            print("beside / alone: p50 {:.2f}, p95 {:.2f}, p99 {:.2f}".format(*ratios))
        finally:
            end(worker)


if __name__ == "__main__":
    main()
