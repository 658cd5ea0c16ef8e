"""Where workers are compared: the private services on one core, a worker on another, and a run of it over jobs.

A worker gets a bucket, a ledger, a prefix and a queue of its own kind among the services that `tests/services/run`
started. It is started over an empty queue, screens some jobs to warm up, and is measured from then on: what is in
flight at the beginning and at the end is nothing, and no start is in the figures.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import boto3
import meter
import pika
import psycopg
import psycopg.rows

ROOT = Path(__file__).resolve().parents[2]
# The services have one of two cores, and the measured program has the other.
SERVICES_CORE, WORKER_CORE = 0, 1
EVENTS = "image.passed,image.flagged,image.review,image.failed"
START_LIMIT_S, RUN_LIMIT_S, STOP_LIMIT_S = 60, 600, 40
POLL_S, MEMORY_S = 0.01, 0.2


@dataclass
class Contestant:
    """A worker: how it is called, and the variables that it has besides everybody's."""

    name: str
    command: list
    variables: dict = field(default_factory=dict)


@dataclass
class Run:
    """What one run took, and what it said: number of the job → row."""

    jobs: int
    seconds: float
    cpu_seconds: float
    peak_pss_mb: float
    others_share: float
    """Of the worker's core: time of other processes, and time that the host gave to somebody else."""
    rows: dict


class Failed(Exception):
    """A worker that did not do what it was there for."""


class Stand:
    def __init__(self, pixwarden, folder, cores):
        self.folder = Path(folder)
        self.pixwarden = str(Path(pixwarden).resolve())
        self.services_core, self.worker_core = cores
        self.name = f"bench-{uuid.uuid4().hex[:8]}"
        self.runs = 0
        pin_services(self.services_core)

        self.s3 = boto3.client(
            "s3",
            endpoint_url=os.environ["TEST_S3_ENDPOINT"],
            region_name=os.environ["TEST_S3_REGION"],
            aws_access_key_id=os.environ["TEST_S3_ACCESS_KEY"],
            aws_secret_access_key=os.environ["TEST_S3_SECRET_KEY"],
        )
        self.s3.create_bucket(Bucket=self.name)
        server = os.environ["TEST_POSTGRES_URL"]
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{self.name}"')
        # Everybody's connection is plain: loopback needs no TLS, and not all clients would choose the same.
        self.ledger = f"{server.rpartition('/')[0]}/{self.name}?sslmode=disable"
        subprocess.run([self.pixwarden, "migrate"], env=self.environment(), cwd=self.folder, check=True)
        self.database = psycopg.connect(self.ledger, autocommit=True)
        self.declare()

    def environment(self):
        """What every worker is told."""
        return {
            "PATH": os.environ["PATH"],
            "ORT_DYLIB_PATH": os.environ["ORT_DYLIB_PATH"],
            # By this the keeper of the services finds what is left over when this run is killed.
            "TEST_SERVICES_STATE": os.environ["TEST_SERVICES_STATE"],
            "AWS_ACCESS_KEY_ID": os.environ["TEST_S3_ACCESS_KEY"],
            "AWS_SECRET_ACCESS_KEY": os.environ["TEST_S3_SECRET_KEY"],
            "AWS_REGION": os.environ["TEST_S3_REGION"],
            "AWS_DEFAULT_REGION": os.environ["TEST_S3_REGION"],
            "AWS_EC2_METADATA_DISABLED": "true",
            "PIXWARDEN_QUEUE": os.environ["TEST_AMQP_URL"],
            "PIXWARDEN_LEDGER": self.ledger,
            "PIXWARDEN_STORAGE_ENDPOINT": os.environ["TEST_S3_ENDPOINT"],
            "PIXWARDEN_STORAGE_PATH_STYLE": "true",
            "PIXWARDEN_PREFIX": self.name,
            "PIXWARDEN_BUCKETS": self.name,
            # Every verdict is announced, so that a run has as many events as it has jobs.
            "PIXWARDEN_EVENTS_PUBLISH": EVENTS,
            "PIXWARDEN_EVENTS_DEFAULT_QUEUE": "false",
        }

    def declare(self):
        """The topology, by a worker that is stopped again, and a queue that hears every event."""
        command = [self.pixwarden, "worker", "--detector", str(ROOT / "models/cifake-32"), "--log", "warn"]
        worker = subprocess.Popen(command, env=self.environment(), cwd=self.folder)
        try:
            self.wait(worker, START_LIMIT_S, lambda: self.depth(self.jobs_queue, "consumer_count"))
        finally:
            end(worker)
        channel = self.channel()
        arguments = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000_000}
        channel.queue_declare(self.heard_queue, durable=True, arguments=arguments)
        channel.queue_bind(self.heard_queue, f"{self.name}.events", "image.#")
        channel.connection.close()

    @property
    def jobs_queue(self):
        return f"{self.name}.jobs.live"

    @property
    def heard_queue(self):
        # Not below the prefix, which is the workers' own.
        return f"heard-{self.name}"

    def ask(self, arguments, variables):
        """One command of Pixwarden's, on the worker's core."""
        return self.on_worker_core([self.pixwarden, *arguments], variables)

    def on_worker_core(self, command, variables):
        environment = self.environment() | variables
        keywords = {"env": environment, "cwd": self.folder, "capture_output": True, "text": True}
        return subprocess.run(command, preexec_fn=self.pin_worker, **keywords)

    def pin_worker(self):
        os.sched_setaffinity(0, {self.worker_core})

    def store(self, size, paths):
        """Uploads the pictures of one size, and returns their keys."""
        keys = [f"{size}/{path.name}" for path in paths]
        for key, path in zip(keys, paths):
            self.s3.put_object(Bucket=self.name, Key=key, Body=path.read_bytes())
        return keys

    def run(self, contestant, keys, warm_up, jobs):
        """Has one worker screen `jobs` jobs, after `warm_up` others."""
        self.database.execute("TRUNCATE verdicts, outbox")
        self.database.execute("CHECKPOINT")
        self.purge()
        self.runs += 1
        log_path = self.folder / f"{self.runs:03}-{contestant.name}.log"
        with log_path.open("w") as log:
            worker = subprocess.Popen(
                contestant.command,
                env=self.environment() | contestant.variables,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                preexec_fn=self.pin_worker,
            )
            try:
                self.wait(worker, START_LIMIT_S, lambda: self.depth(self.jobs_queue, "consumer_count"))
                with self.published("warm-up", keys, warm_up):
                    self.wait(worker, RUN_LIMIT_S, lambda: self.done() >= warm_up)
                time.sleep(0.5)
                found = self.measure(worker, keys, warm_up, jobs)
                self.check(warm_up + jobs)
            except Failed as error:
                raise Failed(f"{contestant.name}: {error}\n{log_path.read_text()[-3000:]}") from None
            finally:
                status = end(worker)
        if status != 0:
            raise Failed(f"{contestant.name} ended with {status}\n{log_path.read_text()[-3000:]}")
        return found

    def measure(self, worker, keys, warm_up, jobs):
        core = self.worker_core
        memory, memory_due = 0.0, 0.0
        busy, stolen = core_seconds(core)
        cpu, began = meter.cpu_seconds(worker.pid), time.monotonic()

        def done():
            nonlocal memory, memory_due
            if time.monotonic() > memory_due:
                memory = max(memory, meter.pss_megabytes(worker.pid))
                memory_due = time.monotonic() + MEMORY_S
            return self.done() >= warm_up + jobs

        with self.published("job", keys, jobs):
            self.wait(worker, RUN_LIMIT_S, done)
        seconds = time.monotonic() - began
        cpu = meter.cpu_seconds(worker.pid) - cpu
        busy, stolen = (after - before for after, before in zip(core_seconds(core), (busy, stolen)))
        others = max(0.0, busy - cpu) + stolen
        return Run(jobs, seconds, cpu, memory, others / seconds, self.rows())

    @contextlib.contextmanager
    def published(self, name, keys, count):
        """All jobs at once, each with an id of its own; objects take turns.

        The channel stays open for as long as they are worked on. Confirmations are not waited for one by one, and of a
        channel that closes earlier a quorum queue loses what it has not taken yet.
        """
        channel = self.channel(heartbeat=0)
        for number in range(count):
            image = f"s3://{self.name}/{keys[number % len(keys)]}"
            body = json.dumps({"id": f"{name}-{number}", "image": image})
            properties = pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent)
            channel.basic_publish(f"{self.name}.jobs", "live", body, properties)
        yield
        channel.connection.close()

    def done(self):
        """Jobs whose verdict is committed and whose event is confirmed and marked as such."""
        query = "SELECT count(*) FROM outbox WHERE published_at IS NOT NULL"
        return self.database.execute(query).fetchone()[0]

    def rows(self):
        """What was said of each job, by its number."""
        query = """
            SELECT job_id, outcome, score, encode(sha256, 'hex') AS sha256, bytes, format, width, height
            FROM verdicts WHERE job_id LIKE 'job-%'"""
        with self.database.cursor(row_factory=psycopg.rows.dict_row) as cursor:
            return {int(row["job_id"].removeprefix("job-")): row for row in cursor.execute(query)}

    def check(self, jobs):
        """One verdict and one event a job, and nothing left in the queue."""
        if (verdicts := self.database.execute("SELECT count(*) FROM verdicts").fetchone()[0]) != jobs:
            raise Failed(f"{verdicts} verdicts for {jobs} jobs")
        # A quorum queue's counts are as old as its last tick.
        until = time.monotonic() + 10
        while (self.depth(self.heard_queue), self.depth(self.jobs_queue)) != (jobs, 0):
            if time.monotonic() > until:
                left = self.depth(self.jobs_queue)
                raise Failed(f"{self.depth(self.heard_queue)} events for {jobs} jobs, {left} jobs left")
            time.sleep(0.1)

    def wait(self, worker, limit_s, done):
        until = time.monotonic() + limit_s
        while not done():
            if worker.poll() is not None:
                raise Failed(f"it ended with {worker.returncode}")
            if time.monotonic() > until:
                waits = self.depth(self.jobs_queue)
                raise Failed(f"not within {limit_s} s: {self.done()} jobs done, {waits} in the queue")
            time.sleep(POLL_S)

    def channel(self, heartbeat=None):
        parameters = pika.URLParameters(os.environ["TEST_AMQP_URL"])
        parameters.heartbeat = heartbeat
        return pika.BlockingConnection(parameters).channel()

    def depth(self, queue, what="message_count"):
        """A queue's count of messages or consumers; 0 where there is no such queue yet."""
        channel = self.channel()
        try:
            return getattr(channel.queue_declare(queue, passive=True).method, what)
        except pika.exceptions.ChannelClosedByBroker:
            return 0
        finally:
            channel.connection.close()

    def purge(self):
        channel = self.channel()
        for queue in (self.jobs_queue, self.heard_queue):
            channel.queue_purge(queue)
        channel.connection.close()


def end(worker):
    """Asks a worker to stop, and returns its exit status."""
    if worker.poll() is None:
        worker.send_signal(signal.SIGTERM)
        try:
            worker.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            for pid in reversed(meter.tree(worker.pid)):
                os.kill(pid, signal.SIGKILL)
            worker.wait()
    return worker.returncode


def pin_services(core):
    """Puts every process of the services on one core, and this one with them: the other is the worker's alone."""
    mark = f"TEST_SERVICES_STATE={os.environ['TEST_SERVICES_STATE']}".encode()
    pids = [os.getpid()]
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in environ.read_bytes().split(b"\0"):
                pids.append(int(environ.parent.name))
        except OSError:
            continue
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*"):
            try:
                os.sched_setaffinity(int(task.name), {core})
            except OSError:
                continue


def core_seconds(core):
    """Busy and stolen seconds of one core since the machine's start (proc(5))."""
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith(f"cpu{core} "):
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, line.split()[1:9])
            return (user + nice + system + irq + softirq) * meter.TICK, steal * meter.TICK
    raise Failed(f"there is no core {core}")
