#!/usr/bin/env python3
"""Requests over HTTP, beside `scan` of the same files: rate, latency, overload.

    python tests/bench/load.py --pixwarden target/release/pixwarden

Starts `serve` with the bundled detector and no service, and sends JPEGs of one megapixel that all differ, so that no score is
reused. Prints requests a second and the latency at 1, 8 and 64 callers, the ratio to the rate of `scan`, and what happens at
three times as many callers as there are places: every answer must be 200 or 503, or a closed connection. The callers run in this process and share the
processor with `serve`: the real rate is somewhat higher. ORT_DYLIB_PATH is taken from the environment.
"""

import argparse
import hashlib
import http.client
import json
import os
import re
import subprocess
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from isolation import SUMMARY, make

KEY = "a-key-for-measurements"
CONFIG = """\
[metrics]
listen = "off"
[http]
listen = "127.0.0.1:0"
max_in_flight = {places}
[[http.keys]]
name = "bench"
sha256 = "{digest}"
scopes = ["screen"]
"""


class Serve:
    """A process that answers, and its peak memory."""

    def __init__(self, pixwarden, folder, places=0):
        config = folder / "serve.toml"
        config.write_text(CONFIG.format(places=places, digest=hashlib.sha256(KEY.encode()).hexdigest()))
        command = [pixwarden, "--config", config, "--log-format", "json", "serve"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, cwd=folder)
        for line in self.process.stderr:
            said = json.loads(line) if line.startswith(b"{") else {}
            if said.get("message") == "images are screened over HTTP":
                self.address, self.places = said["address"], said["max_in_flight"]
                break
        else:
            raise SystemExit("`serve` has ended")
        # Its log must not fill the pipe.
        threading.Thread(target=lambda: self.process.stderr.read(), daemon=True).start()

    def megabytes(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024

    def end(self):
        self.process.terminate()
        self.process.wait()


def send(serve, images, callers):
    """Status and seconds of each request, and the seconds of all."""
    waiting, answers, lock = iter(images), [], threading.Lock()

    def call():
        connection = http.client.HTTPConnection(serve.address, timeout=120)
        while True:
            with lock:
                image = next(waiting, None)
            if image is None:
                return
            began = time.monotonic()
            try:
                connection.request("POST", "/v1/screen", image, {"Authorization": f"Bearer {KEY}"})
                response = connection.getresponse()
                response.read()
                status = response.status
            except OSError:
                # A refusal ends the connection while the image is still on its way, and may be lost with it.
                connection.close()
                status = "connection closed"
            answers.append((status, time.monotonic() - began))

    threads = [threading.Thread(target=call) for _ in range(callers)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers, time.monotonic() - began


def percentile(seconds, share):
    return sorted(seconds)[min(len(seconds) - 1, int(share * len(seconds)))] * 1000


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pixwarden", required=True, type=Path)
    parser.add_argument("--images", type=int, default=600, help="images of each measurement")
    arguments = parser.parse_args()
    pixwarden = arguments.pixwarden.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "images").mkdir()
        make(folder / "images", arguments.images)
        plain = [path.read_bytes() for path in sorted((folder / "images").iterdir())]
        command = [pixwarden, "scan", "--format", "jsonl", folder / "images"]
        scanned = subprocess.run(command, capture_output=True, env={**os.environ, "NO_COLOR": "1"}, cwd=folder)
        rate = float(SUMMARY.search(scanned.stderr)[2])
        print(f"scan: {rate:.1f} images/s")
        serve = Serve(pixwarden, folder)
        for run, callers in enumerate((1, 8, 64)):
            # Bytes behind an image change its digest and no pixel.
            images = [image + bytes([run + 1]) for image in plain]
            answers, took = send(serve, images, callers)
            seconds = [seconds for _, seconds in answers]
            statuses = dict(Counter(status for status, _ in answers))
            print(
                f"{callers:3} callers: {len(answers) / took:6.1f} requests/s ({len(answers) / took / rate:.2f} of scan), "
                f"p50 {percentile(seconds, 0.5):.0f} ms, p99 {percentile(seconds, 0.99):.0f} ms, {statuses}, "
                f"{serve.megabytes():.0f} MB"
            )
        serve.end()
        serve = Serve(pixwarden, folder, places=16)
        images = [image + b"\4" for image in plain]
        answers, took = send(serve, images, 3 * serve.places)
        for wanted in (200, 503, "connection closed"):
            seconds = [seconds for status, seconds in answers if status == wanted]
            if seconds:
                print(f"overload: {len(seconds)} x {wanted}, p99 {percentile(seconds, 0.99):.0f} ms")
        others = Counter(status for status, _ in answers if status not in (200, 503, "connection closed"))
        print(f"overload: other answers {dict(others)}, {serve.megabytes():.0f} MB")
        serve.end()
        if others:
            raise SystemExit("an answer is neither 200 nor 503")


if __name__ == "__main__":
    main()
