#!/usr/bin/env python3
"""`pixwarden backfill` over an archive of many small objects, with a worker that screens uploads meanwhile.

    cargo build --locked --release
    python3 -m venv /tmp/bench && /tmp/bench/bin/pip install -r tests/bench/requirements.txt
    tests/services/run -- /tmp/bench/bin/python tests/bench/backfill.py

Every figure is printed when it is known, and what has to hold is checked: one verdict an image although the backfill is
killed twice, nothing published by a second run, what has come meanwhile found, everything again for another detector,
and two runs at once as good as one. Uploads arrive ten times a second before and during the backfill; their latency is
from publishing the job to having its reply, by the clock of this process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import tempfile
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import boto3
import numpy as np
import pika
import psycopg
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
DETECTOR = ROOT / "models/cifake-32"
UPLOADS_A_SECOND = 10


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="bench-backfill-") as folder:
        run(options, Archive(Path(folder), options))
    print("every check passed")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixwarden", type=Path, default=ROOT / "target/release/pixwarden", help="the binary")
    parser.add_argument("--objects", type=int, default=100_000, help="objects in the archive (default 100,000)")
    parser.add_argument("--seconds", type=int, default=60, help="uploads without a backfill (default 60)")
    return parser.parse_args()


def run(options: argparse.Namespace, archive: Archive) -> None:
    count = options.objects
    with figure("objects made and stored"):
        archive.store(range(count))
    with archive.worker():
        latency("without a backfill", archive.uploads(lambda: time.sleep(options.seconds)))

        archive.forget_uploads()
        began = time.monotonic()
        latency("during the backfill", archive.uploads(lambda: killed_twice(archive, count)))
        took = time.monotonic() - began
        print(f"archive: {count} verdicts in {took:.0f} s, {count / took:.0f} a second, uploads beside them")
        archive.check_one_verdict_each(count)

        seconds, second = archive.backfill()
        check(second["published"] == 0 and second["screened"] == count, second)
        print(f"second run: nothing published, {count / seconds:.0f} objects compared a second")

        archive.store(range(count, count + 100))
        _, later = archive.backfill()
        check(later["published"] == 100, later)
        archive.wait_for(count + 100)
        archive.check_one_verdict_each(count + 100)
        print("100 objects added: 100 published")

    archive.add_detector()
    seconds, counts = archive.backfill("--depth", str(10 * count))
    check(counts["published"] == count + 100 and archive.waiting() == count + 100, counts)
    print(f"another detector: {count + 100} published, {(count + 100) / seconds:.0f} a second")

    archive.empty_lane()
    runs = [archive.start_backfill("--depth", str(10 * count)) for _ in range(2)]
    published = [archive.end(process)["published"] for process in runs]
    check(sum(published) == count + 100 and archive.waiting() == count + 100, published)
    print(f"two runs at once: {' and '.join(map(str, published))} published, {count + 100} jobs in the lane")


def killed_twice(archive: Archive, count: int) -> None:
    """Backfills, killed at about a fifth and a half of the way, and waits for the last verdict."""
    for share in (0.2, 0.5):
        process = archive.start_backfill()
        wanted = int(count * (share + random.uniform(-0.05, 0.05)))
        while archive.verdicts() < wanted:
            check(process.poll() is None, "the backfill ended before it was killed")
            time.sleep(0.05)
        peak = peak_megabytes(process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        print(f"killed at {wanted} verdicts; the lister had {peak:.0f} MB at its peak")
    process = archive.start_backfill()
    peak = 0.0
    while process.poll() is None:
        with contextlib.suppress(OSError, StopIteration):
            peak = peak_megabytes(process)
        time.sleep(0.05)
    last = archive.end(process)
    print(f"the third run met {last['met']}, published {last['published']} and had {peak:.0f} MB at its peak")
    archive.wait_for(count)


class Archive:
    """Objects, a ledger, a broker and a configuration of their own among the private services."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.name = f"bench-{uuid.uuid4().hex[:8]}"
        self.pixwarden = options.pixwarden.resolve()
        self.folder = folder
        self.uploaded = 0
        self.s3 = boto3.client(
            "s3",
            endpoint_url=os.environ["TEST_S3_ENDPOINT"],
            region_name=os.environ["TEST_S3_REGION"],
            aws_access_key_id=os.environ["TEST_S3_ACCESS_KEY"],
            aws_secret_access_key=os.environ["TEST_S3_SECRET_KEY"],
            config=boto3.session.Config(max_pool_connections=32),
        )
        self.s3.create_bucket(Bucket=self.name)
        server = os.environ["TEST_POSTGRES_URL"]
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{self.name}"')
        self.ledger = f"{server.rsplit('/', 1)[0]}/{self.name}"
        self.configure(f'detectors = ["{DETECTOR}"]')
        self.command("migrate")
        self.database = psycopg.connect(self.ledger, autocommit=True)

    def configure(self, more: str) -> None:
        (self.folder / "pixwarden.toml").write_text(
            f'queue = "{os.environ["TEST_AMQP_URL"]}"\nledger = "{self.ledger}"\nprefix = "{self.name}"\n'
            f'buckets = ["{self.name}"]\n{more}\n'
            f'[storage]\nendpoint = "{os.environ["TEST_S3_ENDPOINT"]}"\npath_style = true\n'
        )

    def start(self, *words: str, **keywords: object) -> subprocess.Popen[str]:
        environment = os.environ | {
            "AWS_ACCESS_KEY_ID": os.environ["TEST_S3_ACCESS_KEY"],
            "AWS_SECRET_ACCESS_KEY": os.environ["TEST_S3_SECRET_KEY"],
            "AWS_REGION": os.environ["TEST_S3_REGION"],
        }
        command = [str(self.pixwarden), *words]
        return subprocess.Popen(command, cwd=self.folder, env=environment, text=True, **keywords)

    def command(self, *words: str) -> None:
        check(self.start(*words).wait() == 0, words)

    @contextlib.contextmanager
    def worker(self):
        with (self.folder / "worker.log").open("w") as log:
            process = self.start("worker", stderr=log)
            while "consuming" not in (self.folder / "worker.log").read_text():
                check(process.poll() is None, (self.folder / "worker.log").read_text())
                time.sleep(0.1)
            yield
            process.terminate()
            check(process.wait() == 0, "the worker drained")

    def store(self, numbers: range) -> None:
        def put(number: int) -> None:
            self.s3.put_object(Bucket=self.name, Key=f"archive/{number % 97:02}/{number:07}.png", Body=picture(number))

        with ThreadPoolExecutor(32) as pool:
            for _ in pool.map(put, numbers):
                pass

    # The backfill.

    def start_backfill(self, *words: str) -> subprocess.Popen[str]:
        source = f"s3://{self.name}/archive/"
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        return self.start("backfill", source, "--format", "jsonl", *words, **streams)

    def end(self, process: subprocess.Popen[str]) -> dict[str, int]:
        output, _ = process.communicate()
        check(process.returncode == 0, output)
        return json.loads(output)

    def backfill(self, *words: str) -> tuple[float, dict[str, int]]:
        began = time.monotonic()
        summary = self.end(self.start_backfill(*words))
        return time.monotonic() - began, summary

    def add_detector(self) -> None:
        """The bundled detector under a second name is another detector."""
        shutil.copytree(DETECTOR, self.folder / "another")
        rule = '[[policy.rules]]\ndetector = "{}"\nlabel = "by AI"\nreview_at = 0.5\nflag_at = 0.9\n'
        paths = f'detectors = ["{DETECTOR}", "{self.folder / "another"}"]\n'
        self.configure(paths + rule.format(DETECTOR.name) + rule.format("another"))

    # The ledger and the lane.

    def verdicts(self) -> int:
        query = "SELECT count(*) FROM verdicts WHERE key LIKE 'archive/%'"
        return self.database.execute(query).fetchone()[0]

    def wait_for(self, count: int) -> None:
        while self.verdicts() < count:
            time.sleep(0.2)

    def check_one_verdict_each(self, count: int) -> None:
        query = "SELECT count(*), count(DISTINCT key) FROM verdicts WHERE key LIKE 'archive/%'"
        check(self.database.execute(query).fetchone() == (count, count), "one verdict an image")
        doubled = self.database.execute("SELECT count(*) FROM verdicts WHERE outcome IN ('missing', 'failed')")
        check(doubled.fetchone()[0] == 0, "none is missing and none failed")

    def forget_uploads(self) -> None:
        self.database.execute("DELETE FROM verdicts WHERE key LIKE 'upload/%'")

    def channel(self) -> pika.adapters.blocking_connection.BlockingChannel:
        return pika.BlockingConnection(pika.URLParameters(os.environ["TEST_AMQP_URL"])).channel()

    def waiting(self) -> int:
        return self.channel().queue_declare(f"{self.name}.jobs.backfill", passive=True).method.message_count

    def empty_lane(self) -> None:
        self.channel().queue_purge(f"{self.name}.jobs.backfill")
        self.database.execute("DELETE FROM backfill_jobs")

    # Uploads.

    def uploads(self, meanwhile) -> list[float]:
        """Uploads as long as `meanwhile` takes, and gives the seconds that each took to its reply."""
        replies, sent, stop = f"{self.name}.replies-{uuid.uuid4().hex}".replace(".", "-"), {}, threading.Event()
        took: dict[str, float] = {}

        def listen() -> None:
            channel = self.channel()
            for _, properties, _ in channel.consume(replies, auto_ack=True, inactivity_timeout=0.2):
                if properties is not None:
                    took[properties.correlation_id] = time.monotonic() - sent[properties.correlation_id]
                elif stop.is_set() and len(took) == len(sent):
                    return

        self.channel().queue_declare(replies)
        listener = threading.Thread(target=listen)
        uploader = threading.Thread(target=self.upload, args=(replies, sent, stop))
        listener.start()
        uploader.start()
        meanwhile()
        stop.set()
        uploader.join()
        listener.join(60)
        check(len(took) == len(sent), f"{len(took)} of {len(sent)} replies")
        return list(took.values())

    def upload(self, replies: str, sent: dict[str, float], stop: threading.Event) -> None:
        channel = self.channel()
        due = time.monotonic()
        while not stop.is_set():
            self.uploaded += 1
            key = f"upload/{self.uploaded:06}.png"
            # No content is the same twice: earlier scores would answer for it.
            self.s3.put_object(Bucket=self.name, Key=key, Body=picture(10_000_000 + self.uploaded))
            job = json.dumps({"id": key, "image": f"s3://{self.name}/{key}"})
            properties = pika.BasicProperties(reply_to=replies, correlation_id=key, delivery_mode=2)
            sent[key] = time.monotonic()
            channel.basic_publish(f"{self.name}.jobs", "live", job, properties)
            # What is late is not made up for.
            due = max(due + 1 / UPLOADS_A_SECOND, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))


def picture(number: int) -> bytes:
    """A small picture like no other: noise that only `number` decides."""
    noise = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(noise).save(file, "PNG", compress_level=0)
    return file.getvalue()


def peak_megabytes(process: subprocess.Popen[str]) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024


def latency(when: str, seconds: list[float]) -> None:
    cuts = statistics.quantiles([1000 * s for s in seconds], n=100)
    print(f"uploads {when}: {len(seconds)}, p50 {cuts[49]:.0f} ms, p99 {cuts[98]:.0f} ms")


@contextlib.contextmanager
def figure(what: str):
    began = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - began:.0f} s", flush=True)


def check(holds: bool, what: object) -> None:
    if not holds:
        raise SystemExit(f"FAILED: {what}")


if __name__ == "__main__":
    main()
