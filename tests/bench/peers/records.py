"""What both workers read and write: settings, the detector's package, jobs, verdicts and events.

It is Pixwarden's own interface (docs/guide, migrations/postgres): the same variables, tables, columns, ids and events.
How they get from one to the other is each worker's own affair.
"""

import argparse
import hashlib
import json
import os
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

# Of every verdict's id (src/job.rs).
NAMESPACE = uuid.UUID("8f4d9e52-6c0b-4a39-9d8e-5b1f70c3a2e6")
LANE = "live"
LABEL, REVIEW_AT, FLAG_AT = "by AI", 0.5, 0.9
CONTENT_TYPE = "application/cloudevents+json"


class Malformed(Exception):
    """A message that is no job."""


class Missing(Exception):
    """There is no such object."""


class Undecodable(Exception):
    """The bytes are no image, or a damaged one."""


@dataclass(frozen=True)
class Settings:
    queue_url: str
    ledger_url: str
    storage_endpoint: str
    region: str
    access_key: str
    secret_key: str
    prefix: str
    detector: Path
    prefetch: int

    @property
    def queue(self):
        return f"{self.prefix}.jobs.{LANE}"

    @property
    def events(self):
        return f"{self.prefix}.events"


def parser(description):
    """The options that both workers have."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--detector", type=Path, required=True, metavar="DIR", help="model package")
    options.add_argument("--prefetch", type=int, default=80, help="deliveries held at a time (default 80)")
    return options


def settings(options):
    return Settings(
        queue_url=os.environ["PIXWARDEN_QUEUE"],
        ledger_url=os.environ["PIXWARDEN_LEDGER"],
        storage_endpoint=os.environ["PIXWARDEN_STORAGE_ENDPOINT"],
        region=os.environ["AWS_REGION"],
        access_key=os.environ["AWS_ACCESS_KEY_ID"],
        secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        prefix=os.environ["PIXWARDEN_PREFIX"],
        detector=options.detector,
        prefetch=options.prefetch,
    )


class Detector:
    """A model package: its file, its labels and what its preprocessor wants."""

    def __init__(self, folder):
        self.name = folder.name
        self.model = folder / "model.onnx"
        config = json.loads((folder / "config.json").read_text())
        self.labels = [config["id2label"][str(index)] for index in range(len(config["id2label"]))]
        preprocessor = json.loads((folder / "preprocessor_config.json").read_text())
        self.size = preprocessor["size"]["width"], preprocessor["size"]["height"]
        self.rescale_factor = preprocessor["rescale_factor"]
        self.mean, self.std = preprocessor["image_mean"], preprocessor["image_std"]
        digest = hashlib.sha256(self.model.read_bytes() + json.dumps([self.labels, preprocessor]).encode()).hexdigest()
        self.digests = {self.name: digest}
        policy = json.dumps([self.name, LABEL, REVIEW_AT, FLAG_AT])
        self.policy = {"name": "default", "sha256": hashlib.sha256(policy.encode()).hexdigest()}


@dataclass(frozen=True, slots=True)
class Job:
    id: str
    bucket: str
    key: str
    metadata: dict | None
    correlation_id: str
    received_at: datetime


def job(body, properties):
    """Reads a message of the form `{"image": "s3://bucket/key", "id": ..., "metadata"?: {...}}`."""
    try:
        fields = json.loads(body)
        scheme, _, rest = fields["image"].partition("s3://")
        bucket, _, key = rest.partition("/")
        if scheme or not bucket or not key:
            raise ValueError(f"{fields['image']} is not s3://bucket/key")
        name = fields.get("id") or properties.message_id
        if not isinstance(name, str):
            raise ValueError("it has no id")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Malformed(str(error)) from error
    return Job(name, bucket, key, fields.get("metadata"), properties.correlation_id or name, datetime.now(UTC))


@dataclass(frozen=True, slots=True)
class Image:
    """What was found out about the object; the last three of an image that could be decoded."""

    etag: str | None
    sha256: bytes | None
    bytes: int | None
    format: str | None = None
    width: int | None = None
    height: int | None = None


def judge(score):
    if score >= FLAG_AT:
        return "flagged", FLAG_AT
    if score >= REVIEW_AT:
        return "review", REVIEW_AT
    return "passed", None


def scored(detector, job, image, probabilities):
    """The verdict over an image with scores, and its event."""
    scores = {detector.name: dict(zip(detector.labels, probabilities))}
    score = scores[detector.name][LABEL]
    outcome, threshold = judge(score)
    reason = threshold and f'{detector.name} says "{LABEL}" {score:.4f}, the threshold is {threshold}'
    return rows(detector, job, image, outcome, reason, score, scores)


def unscored(detector, job, image, outcome, reason):
    """The verdict over an image that could not be scored, and its event; `image` is None where there is none."""
    return rows(detector, job, image or Image(None, None, None), outcome, reason, None, None)


def rows(detector, job, image, outcome, reason, score, scores):
    """A row of `verdicts` and one of `outbox`, by column. What is JSON in the table is an object here."""
    verdict_id = uuid.uuid5(NAMESPACE, job.id)
    event_id = uuid.uuid5(verdict_id, outcome)
    decided_at = datetime.now(UTC)
    label = LABEL if scores else None
    verdict = {
        "id": verdict_id,
        "job_id": job.id,
        "lane": LANE,
        "bucket": job.bucket,
        "key": job.key,
        "etag": image.etag,
        "sha256": image.sha256,
        "bytes": image.bytes,
        "format": image.format,
        "width": image.width,
        "height": image.height,
        "frames": 1 if image.format else None,
        "outcome": outcome,
        "reason": reason,
        "label": label,
        "score": score,
        "scores": scores,
        "detectors": detector.digests,
        "policy": detector.policy,
        "metadata": job.metadata,
        "attempts": 1,
        "received_at": job.received_at,
        "decided_at": decided_at,
    }
    time = decided_at.isoformat()
    payload = {
        "specversion": "1.0",
        "id": str(event_id),
        "type": f"io.pixwarden.image.{outcome}.v1",
        "source": "/bench",
        "subject": f"s3://{job.bucket}/{job.key}",
        "time": time,
        "datacontenttype": "application/json",
        "data": {
            "verdict_id": str(verdict_id),
            "job_id": job.id,
            "lane": LANE,
            "image": {
                "bucket": job.bucket,
                "key": job.key,
                "version_id": None,
                "etag": image.etag,
                "sha256": image.sha256 and image.sha256.hex(),
            },
            "outcome": outcome,
            "reason": reason,
            "label": label,
            "score": score,
            "scores": scores,
            "detectors": detector.digests,
            "policy": detector.policy,
            "metadata": job.metadata,
            "decided_at": time,
        },
    }
    event = {
        "event_id": event_id,
        "verdict_id": verdict_id,
        "routing_key": f"image.{outcome}" if scores else "image.failed",
        "correlation_id": job.correlation_id,
        "payload": payload,
    }
    return verdict, event
