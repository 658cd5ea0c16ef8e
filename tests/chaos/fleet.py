"""The workers, and a supervisor that starts each again when it has died."""

import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from world import at

RESTART_S = 0.3


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
        self.expected_death = False
        self.started_at = 0.0

    def start(self, crash=None):
        environment = {**self._environment, "PIXWARDEN_METRICS_LISTEN": f"127.0.0.1:{self.port}"}
        if crash:
            environment["TEST_CRASH"] = crash
        self.was_ready, self.expected_death = False, bool(crash)
        self.started_at = time.monotonic()
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(self._command, env=environment, stdout=subprocess.DEVNULL, stderr=log)

    def is_ready(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=1) as answer:
                self.was_ready = self.was_ready or answer.status == 200
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def usage(self):
        """Resident memory in MiB, and open file descriptors, its decoders' with its own; nothing once it is gone."""
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
        queue, ledger, store = proxies
        environment = world.environment(
            queue=at(world.amqp_url, port=queue.port),
            ledger=at(world.postgres_url, port=ledger.port, query="sslmode=disable"),
            store=f"http://127.0.0.1:{store.port}",
        ) | {
            # By this the keeper of the services finds what is left over when this run is killed.
            "TEST_SERVICES_STATE": os.environ["TEST_SERVICES_STATE"],
            "TEST_PLANTED": ",".join(planted),
            "PIXWARDEN_EVENTS_PUBLISH": "image.passed,image.flagged,image.review,image.failed",
            "PIXWARDEN_EVENTS_DEFAULT_QUEUE": "false",
            "PIXWARDEN_WORKER_REUSE_SCORES": "false",
            # Short, so that a short run sees what follows from them; what is not named is as it is by default.
            "PIXWARDEN_STORAGE_CONNECT_TIMEOUT_MS": "1000",
            "PIXWARDEN_STORAGE_DEADLINE_MS": "6000",
            "PIXWARDEN_OUTBOX_SWEEP_MS": "1000",
            "PIXWARDEN_WORKER_HOLD_MS": "10000",
            "PIXWARDEN_DECODE_THREADS": "1",
            "PIXWARDEN_INFERENCE_THREADS": "1",
        }
        flags = ["--detector", str(world.folder / "fixtures" / "detectors" / "spread-nhwc"), "--label", "by AI"]
        command = [world.pixwarden, "worker", "--log", "info,pixwarden=debug,lapin=warn,ort=warn", *flags]
        self.workers = [
            Worker(number, command, environment, world.folder / f"worker-{number}.log") for number in range(count)
        ]
        self.kills = 0
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
        elif worker.was_ready:
            self.unexpected.append(f"worker {worker.number} ended with {status}")

    def ready(self):
        return all([worker.is_ready() for worker in self.workers])

    def kill(self, worker):
        worker.process.send_signal(signal.SIGKILL)

    def crash(self, worker, step, times):
        """Lets the worker die at once, and its successor after it has passed a step so many times."""
        with self._lock:
            self._crash_next[worker.number] = f"{step}:{times}"
            self.kill(worker)

    def end(self):
        """Asks all to drain; returns what each said by its exit status."""
        self._ending.set()
        self.join()
        for worker in self.workers:
            worker.process.send_signal(signal.SIGTERM)
        return [worker.process.wait(60) for worker in self.workers]
