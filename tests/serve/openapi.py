#!/usr/bin/env python3
"""Whether src/http/openapi.json says what `pixwarden serve` does.

    .tools/venv/bin/python tests/serve/openapi.py --pixwarden target/debug/pixwarden

The document is valid, describes verdicts as the schema of events does, and has every problem's code. Answers of each kind that
can be caused here are as it describes, without a field or a header more. Then schemathesis makes requests from it, valid ones
and others: no connection breaks, and no answer is outside of the document. tests/it/openapi.rs runs this with a worker too.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import requests
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from PIL import Image
from serving import ROOT, SAMPLES, Pixwarden, create_key, serving

DOCUMENT = ROOT / "src/http/openapi.json"
SCHEMATHESIS = Path(sysconfig.get_path("scripts")) / "schemathesis"
_EXAMPLES = 10
_VERDICT_TIMEOUT_S = 60
_TRIES = 50
# Neither a request beyond the document nor an answer that it has is wrong: an unknown bucket is answered 200, and an id that
# was used 422. Of 5xx only those are answered that the document has.
_CHECKS = [
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "ignored_auth",
    "unsupported_method",
]


def resolved(part: object, document: dict) -> object:
    """A part of a document with everything that it refers to, and without descriptions."""
    if isinstance(part, list):
        return [resolved(below, document) for below in part]
    if not isinstance(part, dict):
        return part
    if isinstance(reference := part.get("$ref"), str):
        found: dict = document
        for name in reference.removeprefix("#/").split("/"):
            found = found[name]
        return resolved(found, document)
    return {name: resolved(below, document) for name, below in part.items() if name != "description"}


def of_documents(document: dict) -> Iterator[str]:
    """What the document says differently from the schema of events and from the program."""
    event = json.loads((ROOT / "docs/schemas/event.schema.json").read_text())
    if resolved(document["components"]["schemas"]["Verdict"], document) != resolved(event["$defs"]["verdict"], event):
        yield "Verdict is not the verdict of docs/schemas/event.schema.json"
    source = "".join(path.read_text().split("#[cfg(test)]\nmod tests")[0] for path in (ROOT / "src/http").rglob("*.rs"))
    made = r"(?:Problem::new\(\s*[^,]+,|Self::new\(\s*[^,]+,|unprocessable\(|conflict\(|unavailable\()\s*\"([a-z_]+)\""
    codes = set(re.findall(made, source))
    described = set(document["components"]["schemas"]["ProblemCode"]["enum"])
    if codes != described:
        yield f"ProblemCode: only in the program {sorted(codes - described)}, only in the document {sorted(described - codes)}"


class Answers:
    """Compares answers with the document, and notes which kinds were given."""

    def __init__(self, document: dict) -> None:
        self._document = document
        self.seen: set[tuple[str, str]] = set()
        self.faults: list[str] = []

    def check(self, path: str, answer: requests.Response, status: int) -> requests.Response:
        """Notes what is wrong with an answer from which `status` is expected."""
        operation = self._document["paths"][path][answer.request.method.lower()]
        name = operation["operationId"]
        where = f"{name} {answer.status_code}"
        self.seen.add((name, str(answer.status_code)))
        if answer.status_code != status:
            self.faults.append(f"{where}: expected {status}: {answer.text[:500]}")
        described = operation["responses"].get(str(answer.status_code))
        if described is None:
            self.faults.append(f"{where}: not in the document: {answer.text[:500]}")
            return answer
        described = self._resolve(described)
        for header, about in described.get("headers", {}).items():
            if self._resolve(about).get("required") and header not in answer.headers:
                self.faults.append(f"{where}: no header {header}")
        if "retry-after" in answer.headers and "Retry-After" not in described.get("headers", {}):
            self.faults.append(f"{where}: Retry-After is not in the document")
        kind = answer.headers.get("content-type", "").split(";")[0]
        content = described.get("content", {})
        if content and kind not in content:
            self.faults.append(f"{where}: the content type {kind} is not in the document")
        if not kind.endswith("json") or kind not in content:
            return answer
        # Nothing more than is described.
        schema = {"allOf": [content[kind]["schema"]], "unevaluatedProperties": False, "components": self._document["components"]}
        if name == "document":
            del schema["unevaluatedProperties"]
        for error in Draft202012Validator(schema).iter_errors(answer.json()):
            self.faults.append(f"{where}: {error.json_path}: {error.message[:500]}")
        return answer

    def _resolve(self, part: dict) -> dict:
        reference = part.get("$ref")
        if reference is None:
            return part
        part = self._document
        for name in reference.removeprefix("#/").split("/"):
            part = part[name]
        return part


def large_picture() -> bytes:
    encoded = io.BytesIO()
    Image.linear_gradient("L").resize((4000, 3000)).save(encoded, "png", compress_level=1)
    return encoded.getvalue()


def with_key(answers: Answers, url: str, key: str, slow_key: str, screening_key: str) -> None:
    """Asks for each kind of answer that a machine with a key gets."""
    http = requests.Session()
    http.headers["authorization"] = f"Bearer {key}"
    screen = f"{url}/v1/screen"
    for sample in sorted(SAMPLES.iterdir()):
        answers.check("/v1/screen", http.post(f"{screen}?include=pictures,stages", sample.read_bytes()), 200)
    picture = (SAMPLES / "palette.png").read_bytes()
    form = {"image": ("a.png", picture), "metadata": (None, '{"user": 7}'), "detectors": (None, '["cifake-32"]')}
    answers.check("/v1/screen", http.post(screen, files=form), 200)
    once = {"idempotency-key": "order-1"}
    verdict = answers.check("/v1/screen", http.post(screen, picture, headers=once), 200).json()
    answers.check("/v1/screen", http.post(screen, picture, headers=once), 200)
    answers.check("/v1/screen", http.post(screen, b"other", headers=once), 422)
    for image, status in [("s3://samples/lossy.webp", 200), ("s3://samples/none", 200), ("s3://elsewhere/k", 200), ("x", 400)]:
        answers.check("/v1/screen", http.post(screen, json={"image": image}), status)
    answers.check("/v1/screen", http.post(screen, json={"image": {"bucket": "inline:sha256", "key": "a"}}), 422)
    answers.check("/v1/screen", http.post(f"{screen}?deep=1", picture), 400)
    # New content that takes far longer than a millisecond. A small picture was screened in time on a fast machine.
    answers.check("/v1/screen", http.post(screen, large_picture(), headers={"x-timeout-ms": "1"}), 504)
    answers.check("/v1/screen", requests.post(screen, picture), 401)
    answers.check("/v1/screen", http.post(screen, json={"image": "s3://samples/" + "k" * 70_000}), 413)
    answers.check("/v1/jobs", http.post(f"{url}/v1/jobs", json={"image": "s3://samples/lossy.webp"}), 501)
    answers.check("/v1/verdicts/{job_id}", http.get(f"{url}/v1/verdicts/{verdict['job_id']}"), 200)
    answers.check("/v1/verdicts/{job_id}", http.get(f"{url}/v1/verdicts/none"), 404)
    answers.check("/v1/verdicts/{job_id}", http.get(f"{url}/v1/verdicts/%ff"), 400)
    found = answers.check("/v1/verdicts", http.get(f"{url}/v1/verdicts", params={"sha256": verdict["image"]["sha256"]}), 200)
    if not found.json()["verdicts"]:
        answers.faults.append("no verdict is found by its content")
    answers.check("/v1/verdicts", http.get(f"{url}/v1/verdicts", params={"image": "s3://samples/lossy.webp"}), 200)
    answers.check("/v1/verdicts", http.get(f"{url}/v1/verdicts"), 400)
    answers.check("/v1/detectors", http.get(f"{url}/v1/detectors"), 200)
    # Review needs PostgreSQL.
    answers.check("/v1/review", http.get(f"{url}/v1/review"), 501)
    answers.check("/v1/review", http.get(f"{url}/v1/review?limit=0"), 422)
    answers.check("/v1/claims", http.post(f"{url}/v1/claims", json={"actor": "ada"}), 501)
    answers.check("/openapi.json", http.get(f"{url}/openapi.json"), 200)
    answers.check("/", http.get(url), 200)
    # A client of AWS without a signature, and one that is none.
    answers.check("/", http.post(url, "{}"), 404)
    detect = {"x-amz-target": "RekognitionService.DetectModerationLabels"}
    answers.check("/", requests.post(url, "{}", headers=detect), 400)
    for name, status in [("demo.js", 200), ("demo.css", 200), ("none", 404)]:
        answers.check("/assets/{name}", http.get(f"{url}/assets/{name}"), status)
    reading = {"authorization": f"Bearer {slow_key}"}
    answers.check("/v1/screen", requests.post(screen, picture, headers=reading), 403)
    for _ in range(_TRIES):
        if (answer := requests.get(f"{url}/v1/detectors", headers=reading)).status_code != 200:
            break
    answers.check("/v1/detectors", answer, 429)
    # The key is bound to another bucket.
    bound = {"authorization": f"Bearer {screening_key}"}
    answers.check("/v1/screen", requests.post(screen, json={"image": "s3://samples/lossy.webp"}, headers=bound), 403)
    # All places are taken by uploads that do not end, which are answered in the end.
    host, port = url.removeprefix("http://").split(":")
    head = f"POST /v1/screen HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: 1000\r\n\r\nabc"
    slow = []
    for _ in range(_TRIES):
        slow += [socket.create_connection((host, int(port)), timeout=30) for _ in range(4)]
        for one in slow[-4:]:
            one.sendall(head.encode())
        # It arrives before one of them on a busy machine. They give up their places after a while.
        if (answer := http.post(screen, b"x")).status_code != 200:
            break
    answers.check("/v1/screen", answer, 503)
    # By hand, because no client of HTTP waits for an answer before it has sent everything. Some of many find no place.
    received = [one.recv(65_536) for one in slow]
    if not any(b"HTTP/1.1 408" in text for text in received):
        answers.faults.append(f"a body that does not arrive is not answered 408: {received}")
    for one in slow:
        one.close()
    answers.seen.add(("screen", "408"))


def with_link(answers: Answers, pixwarden: Pixwarden) -> None:
    """Asks for what a browser gets where no key is configured."""
    url = f"http://{pixwarden.address}"
    link = re.search(r"open (http:\S+)", pixwarden.log)[1]
    answers.check("/open", requests.get(link, headers={"host": "evil.example"}, allow_redirects=False), 421)
    opened = answers.check("/open", requests.get(link, allow_redirects=False), 303)
    answers.check("/open", requests.get(link, allow_redirects=False), 401)
    # The cookie of the answer, sent by hand: clients keep none for an address without a name.
    session = {"cookie": opened.headers["set-cookie"].split(";")[0]}
    answers.check("/v1/detectors", requests.get(f"{url}/v1/detectors", headers=session), 200)
    picture = (SAMPLES / "palette.png").read_bytes()
    answers.check("/v1/screen", requests.post(f"{url}/v1/screen", picture, headers=session), 403)
    answers.check("/v1/screen", requests.post(f"{url}/v1/screen", picture, headers={**session, "origin": url}), 200)
    answers.check("/v1/screen", requests.post(f"{url}/v1/screen", picture, headers={**session, "host": "evil.example"}), 421)


def made_requests(url: str, key: str, folder: Path) -> str | None:
    """What schemathesis finds."""
    command = [SCHEMATHESIS, "run", DOCUMENT, "--url", url, "--header", f"Authorization: Bearer {key}", "--no-color"]
    command += ["--phases", "fuzzing,stateful", "--checks", ",".join(_CHECKS), "--max-examples", str(_EXAMPLES)]
    command += ["--seed", "1", "--request-timeout", "30", "--warnings", "off", "--suppress-health-check", "all"]
    # It makes no bodies of this content type; tests/it/rekognition.py asks as SDKs do.
    command += ["--exclude-operation-id", "detectModerationLabels"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env={**os.environ, "CI": "true"}, check=False)
    summary = re.search(r"(\d+) generated", done.stdout)
    if done.returncode != 0 or summary is None:
        return f"schemathesis, exit status {done.returncode}:\n{done.stdout[-6000:]}{done.stderr[-2000:]}"
    print(f"openapi: schemathesis made {summary[1]} requests")
    return None


def with_review(answers: Answers, url: str, key: str, image: str) -> None:
    """Asks a worker for what needs its queue and its PostgreSQL. `image` is a reference that it may screen."""
    http = requests.Session()
    http.headers["authorization"] = f"Bearer {key}"
    queued = answers.check("/v1/jobs", http.post(f"{url}/v1/jobs", json={"image": image}), 202).json()
    answers.check("/v1/jobs", http.post(f"{url}/v1/jobs", json={"image": "s3://elsewhere/k"}), 422)
    answers.check("/v1/jobs", http.post(f"{url}/v1/jobs", data="{"), 400)
    deadline = time.monotonic() + _VERDICT_TIMEOUT_S
    while (answer := http.get(url + queued["verdict"])).status_code == 404 and time.monotonic() < deadline:
        time.sleep(0.1)
    answers.check("/v1/verdicts/{job_id}", answer, 200)

    def post(path: str, status: int, **body: object) -> dict:
        return answers.check(path, http.post(url + path, json=body), status).json()

    # Damaged, so that they are for review.
    damaged = (SAMPLES / "bad-cut-short.png").read_bytes()
    sent = [http.post(f"{url}/v1/screen", damaged, headers={"idempotency-key": str(n)}) for n in range(2)]
    first, second = (answers.check("/v1/screen", answer, 200).json()["verdict_id"] for answer in sent)
    answers.check("/v1/review", http.get(f"{url}/v1/review?limit=1&kind=review&kind=appeal"), 200)
    answers.check("/v1/review", http.get(f"{url}/v1/review?limit=0"), 422)
    items = post("/v1/claims", 200, actor="ada", count=2)["items"]
    post("/v1/claims", 200, actor="ada", renew=[item["item_id"] for item in items[:1]])
    decision = {"verdict_id": first, "revision": 1, "actor": "ada", "action": "clear"}
    post("/v1/decisions", 409, **{**decision, "actor": "bob"})
    post("/v1/decisions", 409, **{**decision, "revision": 7})
    post("/v1/decisions", 422, **{**decision, "action": "approve"})
    post("/v1/decisions", 404, **{**decision, "verdict_id": "00000000-0000-0000-0000-000000000000"})
    answers.check("/v1/decisions", http.post(f"{url}/v1/decisions", data="{"), 400)
    decided = post("/v1/decisions", 200, **decision)
    post("/v1/decisions", 200, **decision)
    post("/v1/decisions", 409, **{**decision, "action": "flag"})
    post("/v1/decisions", 200, **{**decision, "revision": decided["revision"], "action": "undo"})
    post("/v1/claims", 200, actor="ada", release=[item["item_id"] for item in items])
    post("/v1/decisions", 200, verdict_id=second, revision=1, actor="ada", action="flag", note="why")
    post("/v1/reports", 201, verdict_id=second, kind="appeal", note="it is mine", due_at="2027-01-01T00:00:00Z")
    answers.check("/v1/review", http.get(f"{url}/v1/review"), 200)
    post("/v1/decisions", 403, verdict_id=second, revision=2, actor="ada", action="clear")
    post("/v1/reports", 404, job_id="none", kind="report")
    post("/v1/reports", 422, kind="report")
    post("/v1/claims", 422, actor="")


def from_serve(answers: Answers, binary: Path) -> list[str]:
    """What is wrong with answers of `serve`, which needs no service."""
    faults = []
    with tempfile.TemporaryDirectory(prefix="openapi-") as name:
        folder = Path(name)
        keys = {
            "admin": create_key(binary, "admin", "--scope", "admin"),
            "slow": create_key(binary, "slow", "--scope", "read", "--per-second", "1"),
            "bound": create_key(binary, "bound", "--scope", "screen", "--bucket", "elsewhere"),
        }
        tables = "\n".join(table for _, table in keys.values())
        key = keys["admin"][0]
        # Four places suffice for clients that send one request after another.
        with serving(binary, folder, f"[http]\nmax_in_flight = 4\nbody_timeout_ms = 3000\n{tables}") as pixwarden:
            url = f"http://{pixwarden.address}"
            with_key(answers, url, key, keys["slow"][0], keys["bound"][0])
            if (found := made_requests(url, key, folder)) is not None:
                faults.append(found)
        with serving(binary, folder, "") as pixwarden:
            with_link(answers, pixwarden)
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixwarden", type=Path, metavar="PATH", help="the binary, for answers that need no service")
    parser.add_argument("--worker", nargs=3, metavar=("URL", "KEY", "IMAGE"), help="a worker, for answers that need services")
    options = parser.parse_args()
    document = json.loads(DOCUMENT.read_text())
    validate(document)
    answers = Answers(document)
    faults = list(of_documents(document))
    if options.pixwarden is not None:
        faults += from_serve(answers, options.pixwarden.resolve())
    if options.worker is not None:
        with_review(answers, *options.worker)
    faults += answers.faults
    for fault in faults:
        print(f"openapi: {fault}", file=sys.stderr)
    seen = ", ".join(f"{name} {status}" for name, status in sorted(answers.seen))
    print(f"openapi: {len(faults)} faults in {len(answers.seen)} kinds of answers: {seen}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
