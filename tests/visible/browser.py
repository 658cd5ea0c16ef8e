"""What Chromium shows: one page draws every file on a canvas and posts the samples to a server in this process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from formats import media_type
from seen import Seen, reduce

ANIMATED = {"image/gif", "image/png", "image/webp", "image/avif"}
"""The types of which Chromium's ImageDecoder gives single frames."""

_LANES = 3
_STALLED_S = 25
"""Chromium answers every file within some seconds. After this time without an answer it is stopped."""
_MOST_TRIES = 3


class Chromium:
    """Shows files in a headless Chromium, and keeps what it reports."""

    def __init__(self, paths: list[Path]) -> None:
        self.seen: list[Seen] = [Seen() for _ in paths]
        self._paths = paths
        self._left = list(range(len(paths)))[::-1]
        self._shown_now: set[int] = set()
        self._tries: dict[int, int] = {}
        self._lock = threading.Lock()
        self._last_answer = time.monotonic()
        self._is_done = threading.Event()

    def run(self) -> None:
        server = _Server(("127.0.0.1", 0), self._handler())
        threading.Thread(target=server.serve_forever, daemon=True).start()
        lanes = _LANES
        try:
            while self._left:
                self._run_once(server.server_port, lanes)
                # One of the files made it stop. The next try shows one at a time, so that only that file fails.
                lanes = 1 if self._give_back() else _LANES
        finally:
            server.shutdown()

    def _run_once(self, port: int, lanes: int) -> None:
        self._is_done.clear()
        self._last_answer = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
            process = subprocess.Popen(
                _command(profile, f"http://127.0.0.1:{port}/?lanes={lanes}"),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            while not self._is_done.wait(0.1) and process.poll() is None:
                if time.monotonic() - self._last_answer > _STALLED_S:
                    break
            _stop(process)

    def _give_back(self) -> list[int]:
        """Puts files without an answer back, and gives up those that were tried often enough."""
        with self._lock:
            unanswered, self._shown_now = sorted(self._shown_now), set()
            for number in unanswered:
                self._tries[number] = self._tries.get(number, 0) + 1
                if self._tries[number] < _MOST_TRIES:
                    self._left.append(number)
                else:
                    print(f"Chromium gave no answer for {self._paths[number]}", file=sys.stderr)
            return unanswered

    def _next(self) -> dict | None:
        with self._lock:
            if not self._left:
                return None
            number = self._left.pop()
            self._shown_now.add(number)
        kind = media_type(self._paths[number].read_bytes())
        return {"id": number, "type": kind, "animated": kind in ANIMATED}

    def _answer(self, path: str, facts: dict, body: bytes) -> None:
        self._last_answer = time.monotonic()
        seen = self.seen[facts["id"]]
        picture = None
        if body:
            rgba = np.frombuffer(body, np.uint8).reshape(facts["rows"], facts["columns"], 4)
            picture = reduce(rgba, facts.get("duration", 0.0))
        if path == "/frame":
            seen.frames[facts["number"]] = picture
            return
        seen.width, seen.height, seen.picture = facts["width"], facts["height"], picture
        seen.frame_count = max(facts.get("frames", 1), 1)
        with self._lock:
            self._shown_now.discard(facts["id"])

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        browser = self
        page = Path(__file__).with_name("page.html").read_bytes()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                path = urllib.parse.urlsplit(self.path).path
                if path == "/":
                    self._send(page, "text/html")
                elif path == "/next":
                    self._send(json.dumps(browser._next()).encode(), "application/json")
                elif path.startswith("/file/"):
                    data = browser._paths[int(path.removeprefix("/file/"))].read_bytes()
                    self._send(data, media_type(data))
                else:
                    self._send(b"", None, 404)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                path, _, facts = self.path.partition("?")
                if path == "/done":
                    browser._is_done.set()
                else:
                    browser._answer(path, json.loads(urllib.parse.unquote(facts)), body)
                self._send(b"", None)

            def _send(self, body: bytes, kind: str | None, status: int = 200) -> None:
                self.send_response(status)
                if kind:
                    self.send_header("content-type", kind)
                self.send_header("cache-control", "no-store")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Chromium drops its connections when it is stopped. Everything else is printed."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def find() -> str | None:
    """The program, as Debian and others name it."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


def _command(profile: str, address: str) -> list[str]:
    options = ["--headless", "--disable-gpu", "--force-color-profile=srgb", "--no-first-run", "--disable-extensions"]
    options += ["--disable-dev-shm-usage", "--disable-background-networking", f"--user-data-dir={profile}"]
    if os.geteuid() == 0:
        # Chromium's own sandbox refuses to start as root.
        options.append("--no-sandbox")
    return [find() or "chromium", *options, address]


def _stop(process: subprocess.Popen) -> None:
    """Stops Chromium with the processes that it started."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, kind)
        except ProcessLookupError:
            pass
        try:
            process.wait(8)
            return
        except subprocess.TimeoutExpired:
            continue
