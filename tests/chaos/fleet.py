"""The workers, and a supervisor that restarts each one when it has ended."""

import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from rejudges import rules
from world import BUCKET, FAR_BUCKET, at, wait

RESTART_S = 0.3
# The log line of a worker that died of an image.
DIED_OF_IMAGE = b"over a deadly image"
# Longer than worker.drain_ms, after which a worker ends in any case.
DRAIN_LIMIT_S = 45

# Every outcome has an event, so that the checker can demand it.
PUBLISHED = "image.passed,image.flagged,image.review,image.failed,image.noted,image.cleared"

BUCKETS = """
[[buckets]]
name = "{near}"

[[buckets]]
name = "{far}"
endpoint = "{endpoint}"
path_style = true
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Worker:
    def __init__(self, number, command, environment, log):
        self.number, self._command, self._environment, self._log = number, command, environment, log
        self.port = free_port()
        self.process = None
        self.was_ready = False
        self.is_asked_to_end = False
        # The answer to the last question whether it is ready.
        self.said = ""

    def start(self, crash=None):
        environment = {**self._environment, "PIXWARDEN_METRICS_LISTEN": f"127.0.0.1:{self.port}"}
        if crash:
            environment["TEST_CRASH"] = crash
        self.was_ready = self.is_asked_to_end = False
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(self._command, env=environment, stdout=subprocess.DEVNULL, stderr=log)

    def is_ready(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=1) as answer:
                self.was_ready, self.said = True, answer.read().decode().strip()
                return True
        except urllib.error.HTTPError as answer:
            self.said = answer.read().decode().strip()
        except (urllib.error.URLError, OSError):
            self.said = ""
        return False

    def knows_of_no_outage(self):
        """Whether it is ready, and takes every store for working. While one store is down, the worker is ready."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=1) as answer:
                lines = answer.read().decode().splitlines()
        except (urllib.error.URLError, OSError):
            return False
        down = [line for line in lines if line.startswith("pixwarden_stores_down ") and float(line.split()[1]) > 0]
        return self.is_ready() and not down

    def deaths_by_image(self):
        return self._log.read_bytes().count(DIED_OF_IMAGE) if self._log.exists() else 0

    def usage(self):
        """Resident memory in MiB and open file descriptors, including those of its decoder processes; 0 if it has ended."""
        resident = descriptors = 0
        for folder in self._processes():
            try:
                lines = (folder / "status").read_text(encoding="ascii").splitlines()
                resident += next((int(line.split()[1]) for line in lines if line.startswith("VmRSS")), 0)
                descriptors += len(os.listdir(folder / "fd"))
            except OSError:
                continue
        return resident // 1024, descriptors

    def _processes(self):
        own = Path("/proc") / str(self.process.pid)
        try:
            children = [pid for task in own.glob("task/*/children") for pid in task.read_text(encoding="ascii").split()]
        except OSError:
            children = []
        return [own, *(Path("/proc") / pid for pid in children)]


class Fleet(threading.Thread):
    def __init__(self, world, count, proxies, planted):
        super().__init__(daemon=True)
        queue, ledger, store, far_store = proxies
        environment = world.environment(
            queue=at(world.amqp_url, port=queue.port),
            ledger=at(world.worker_url, port=ledger.port, query="sslmode=disable"),
            store=f"http://127.0.0.1:{store.port}",
        ) | {
            # The process that manages the services uses this to find left-over workers if this run is killed.
            "TEST_SERVICES_STATE": os.environ["TEST_SERVICES_STATE"],
            "TEST_PLANTED": ",".join(planted),
            "PIXWARDEN_EVENTS_PUBLISH": PUBLISHED,
            "PIXWARDEN_EVENTS_DEFAULT_QUEUE": "false",
            "PIXWARDEN_WORKER_REUSE_SCORES": "false",
            # Shorter than the defaults, so that their effects show in a short run.
            "PIXWARDEN_STORAGE_CONNECT_TIMEOUT_MS": "1000",
            "PIXWARDEN_STORAGE_DEADLINE_MS": "6000",
            "PIXWARDEN_OUTBOX_SWEEP_MS": "1000",
            "PIXWARDEN_WORKER_HOLD_MS": "10000",
            "PIXWARDEN_DECODE_THREADS": "1",
            "PIXWARDEN_INFERENCE_THREADS": "1",
        }
        # The file has the buckets, because a variable cannot say that one of them has its own endpoint.
        del environment["PIXWARDEN_BUCKETS"]
        config = world.folder / "pixwarden.toml"
        buckets = BUCKETS.format(near=BUCKET, far=FAR_BUCKET, endpoint=f"http://127.0.0.1:{far_store.port}")
        config.write_text(buckets + rules("default"))
        flags = ["--config", str(config), "--detector", str(world.folder / "fixtures" / "detectors" / "spread-nhwc")]
        command = [world.pixwarden, "worker", "--log", "info,pixwarden=debug,lapin=warn,ort=warn", *flags]
        self.workers = [
            Worker(number, command, environment, world.folder / f"worker-{number}.log") for number in range(count)
        ]
        self.kills = self.restarts = 0
        self.unexpected = []
        self._lock = threading.Lock()
        self._crash_next = {}
        self._ending = threading.Event()

    def run(self):
        for worker in self.workers:
            worker.start()
        while not self._ending.wait(RESTART_S):
            with self._lock:
                for worker in self.workers:
                    if (status := worker.process.poll()) is not None:
                        self._bury(worker, status)
                        worker.start(self._crash_next.pop(worker.number, None))

    def _bury(self, worker, status):
        if status in (-signal.SIGKILL, -signal.SIGABRT):
            self.kills += 1
        elif worker.is_asked_to_end and status == 0:
            self.restarts += 1
        elif worker.was_ready:
            self.unexpected.append(f"worker {worker.number} ended with {status}")

    def ready(self):
        return all([worker.is_ready() for worker in self.workers])

    def is_calm(self):
        return all([worker.knows_of_no_outage() for worker in self.workers])

    def deaths_by_image(self):
        return sum(worker.deaths_by_image() for worker in self.workers)

    def kill(self, worker):
        worker.process.send_signal(signal.SIGKILL)

    def crash(self, worker, step, times):
        """Kills the worker. Its successor crashes when it reaches a crash point for the given time."""
        with self._lock:
            self._crash_next[worker.number] = f"{step}:{times}"
            self.kill(worker)

    def restart(self, workers):
        """Asks workers to end, and waits until each has a successor."""
        with self._lock:
            old = [worker.process for worker in workers]
            for worker, process in zip(workers, old):
                worker.is_asked_to_end = True
                process.send_signal(signal.SIGTERM)
        try:
            wait("workers ended", lambda: not any(w.process is o for w, o in zip(workers, old)), DRAIN_LIMIT_S)
        except TimeoutError:
            self.unexpected.append(f"a worker had not drained {DRAIN_LIMIT_S} s after SIGTERM")

    def pauses(self):
        """Why the intake of a worker is paused now."""
        return {worker.said for worker in self.workers if worker.said.startswith("paused")}

    def end(self):
        """Drains all workers and returns their exit statuses."""
        self._ending.set()
        self.join()
        for worker in self.workers:
            worker.process.send_signal(signal.SIGTERM)
        return [worker.process.wait(60) for worker in self.workers]
