"""What the private services have in common: a process, a folder, ports, and a way to start and stop.

The services themselves are in instances.py.
"""

import ctypes
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

LOOPBACK = "127.0.0.1"

# Every process that a run starts has this variable, with a value that is different for each run. A test finds there
# where to send its requests, and the run finds the processes that it has to end.
STATE_VARIABLE = "TEST_SERVICES_STATE"

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class ServiceError(Exception):
    """A service could not be found, started, stopped or changed. The text is for people."""


def state_file(folder):
    """The file that the variable names. It holds the address for requests."""
    return folder / "state.json"


def die_with_parent(signal_number):
    """Asks the kernel to send this process a signal when its parent ends for any reason (prctl(2))."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal_number))


def executable(name, *folders):
    """The path of a program. The folders are searched before the PATH."""
    for folder in folders:
        if os.access(folder / name, os.X_OK):
            return folder / name
    found = shutil.which(name)
    if not found:
        raise ServiceError(f"{name} is not installed\n  hint: tests/services/get installs it")
    return Path(found)


# Ports


class Ports:
    """Free ports, reserved against other runs of these services for as long as the object lives.

    Linux takes the ports of outgoing connections from 32768 and up. The ports here are below, because otherwise a
    client could have the port of a stopped service when that service starts again. The lock on a block of ports is an
    abstract socket: it is removed with the process that holds it, and belongs to a network namespace, as ports do.
    """

    BLOCK = 32

    def __init__(self):
        blocks = range(20000, 32000, self.BLOCK)
        for first in random.sample(blocks, len(blocks)):
            block = range(first, first + self.BLOCK)
            self._lock = socket.socket(socket.AF_UNIX)
            try:
                self._lock.bind(f"\0pixwarden-test-ports-{first}")
            except OSError:
                self._lock.close()
                continue
            if all(map(_is_free, block)):
                self._left = list(block)
                return
            self._lock.close()
        raise ServiceError(f"no {self.BLOCK} consecutive ports are free between 20000 and 32000")

    def take(self):
        return self._left.pop(0)


def _is_free(port):
    with socket.socket() as probe:
        # As servers do: old connections in TIME_WAIT do not make the port taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


# Processes


def descendants(pid):
    """The processes under one, and itself, parents first."""
    children = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in parentheses, may hold any character. The parent is the second field after it (proc(5)).
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    family = [pid]
    for member in family:
        family.extend(children.get(member, []))
    return family


def kill_marked(state, grace_s=0):
    """Kills the processes of this run that still exist after the grace period, and waits until they are gone."""
    mark = f"{STATE_VARIABLE}={state}".encode()
    kill_at = time.monotonic() + grace_s
    while marked := [pid for pid in _processes_with(mark) if pid != os.getpid()]:
        if time.monotonic() > kill_at + 10:
            raise ServiceError(f"these processes exist after SIGKILL: {marked}")
        if time.monotonic() >= kill_at:
            for pid in marked:
                _send(pid, signal.SIGKILL)
        time.sleep(0.02)


def _processes_with(mark):
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in environ.read_bytes().split(b"\0"):
                yield int(environ.parent.name)
        except OSError:
            continue


def _send(pid, signal_number):
    try:
        os.kill(pid, signal_number)
    except ProcessLookupError:
        pass


# Services


class Service:
    """One service: a process in the foreground, its folder, its log, and a test whether it serves."""

    name = ""
    stop_signal = signal.SIGTERM
    # Ends it like a crash, but leaves nothing outside its folder.
    quick_signal = signal.SIGKILL
    start_limit_s = 60
    stop_limit_s = 30
    user = None

    def __init__(self, run, prefix=""):
        self.run = run
        self.prefix = prefix
        self.name = prefix + self.name
        self.port = run.ports.take()
        self.folder = run.folder / self.name
        self.log = self.folder / "log"
        self.process = None
        self.wanted = False
        self.is_set_up = False

    def prepare(self):
        """Creates what the first start needs."""

    def command(self):
        raise NotImplementedError

    def variables(self):
        """The environment, besides what every service gets."""
        return {}

    def is_ready(self):
        return accepts_connections(self.port)

    def set_up(self):
        """Does what is possible only when it serves. Called once, after the first start."""

    def exports(self):
        """Variables for the tests, without their prefix."""
        return {}

    def environment(self):
        # Only the path of the caller's environment: a PGHOST or an ERL_FLAGS there must change nothing here.
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),
            "LANG": "C.UTF-8",
            "NO_COLOR": "1",
            STATE_VARIABLE: str(self.run.state),
            **self.variables(),
        }

    def is_running(self):
        return self.process is not None and self.process.poll() is None

    def launch(self):
        """Starts the process and does not wait until it serves."""
        if self.is_running():
            return
        if not self.folder.exists():
            self.folder.mkdir()
            self.prepare()
        command = [str(part) for part in self.command()]
        with open(self.log, "ab") as log:
            try:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self.environment(),
                    cwd=self.folder,
                    start_new_session=True,
                    preexec_fn=lambda: die_with_parent(self.quick_signal),
                    **as_user(self.user),
                )
            except OSError as error:
                raise ServiceError(f"cannot run {command[0]}: {error.strerror}") from None
        self.wanted = True

    def await_ready(self):
        deadline = time.monotonic() + self.start_limit_s
        while not self.is_ready():
            if not self.is_running():
                raise ServiceError(f"{self.name} ended while starting, {self.how_it_ended()}{self.end_of_log()}")
            if time.monotonic() > deadline:
                limit = f"{self.start_limit_s} s"
                raise ServiceError(f"{self.name} does not serve {limit} after its start{self.end_of_log()}")
            self.run.check()
            time.sleep(0.05)
        if not self.is_set_up:
            self.set_up()
            self.is_set_up = True

    def start(self):
        self.launch()
        self.await_ready()

    def stop(self):
        self.wanted = False
        if not self.is_running():
            return
        # A paused process reacts to SIGKILL only.
        self.resume()
        self.process.send_signal(self.stop_signal)
        try:
            self.process.wait(self.stop_limit_s)
        except subprocess.TimeoutExpired:
            say(f"{self.name} did not stop within {self.stop_limit_s} s and is killed")
            self.kill()

    def restart(self):
        self.stop()
        self.start()

    def kill(self):
        """Ends it like a crash. The data on disk stays."""
        self.end()
        self.await_end()

    def pause(self):
        """Freezes it: its connections stay open, and no request is answered."""
        self._signal_all(signal.SIGSTOP)

    def resume(self):
        self._signal_all(signal.SIGCONT)

    def end(self):
        """Ends it at once and does not wait for it."""
        self.wanted = False
        if self.is_running():
            self.resume()
            self.process.send_signal(self.quick_signal)

    def await_end(self):
        if self.process is None:
            return
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _signal_all(self, signal_number):
        if not self.is_running():
            raise ServiceError(f"{self.name} is not running")
        for pid in descendants(self.process.pid):
            _send(pid, signal_number)

    def how_it_ended(self):
        status = self.process.returncode
        return f"by {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"

    def end_of_log(self):
        lines = self.log.read_text(errors="replace").splitlines()[-60:] if self.log.exists() else []
        return "".join(f"\n  {self.name} | {line}" for line in lines)


# Small things


def say(message):
    print(f"services: {message}", file=sys.stderr, flush=True)


def unprivileged_user():
    """The user that runs PostgreSQL, which refuses to run as root. None if this process is not root."""
    if os.geteuid() != 0:
        return None
    users = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in users else "nobody"


def as_user(name):
    """The arguments that make subprocess change to a user."""
    if name is None:
        return {}
    return {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": []}


def accepts_connections(port):
    try:
        socket.create_connection((LOOPBACK, port), timeout=1).close()
        return True
    except OSError:
        return False


def exchange(port, request, length):
    """Sends bytes and returns as many bytes of the response as are asked for, or fewer if the response is shorter."""
    answer = b""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1) as connection:
            connection.sendall(request)
            while len(answer) < length and (part := connection.recv(length - len(answer))):
                answer += part
    except OSError:
        pass
    return answer


def answers_http(port, path):
    """Whether an HTTP server responds there, with any status."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        direct.open(f"http://{LOOPBACK}:{port}{path}", timeout=2).close()
        return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
