#!/usr/bin/env python3
"""The worker that one writes first in Python: pika, boto3, Pillow, ONNX Runtime and psycopg, one job after another.

    python tests/bench/peers/idiomatic.py --detector DIR [--prefetch 80] [--threads 1]

It reads the variables that `pixwarden worker` reads, consumes the same queue, writes the same rows and sends the same
events, and is as careful: a message is acknowledged after the commit that holds its verdict and its event, and the
event stays in the outbox until the broker has confirmed it. What a crash leaves there is for a sweeper, which Pixwarden
has and this has not.
"""

import hashlib
import io
import json
import signal

import boto3
import botocore.exceptions
import numpy as np
import onnxruntime
import pika
import psycopg
from PIL import Image, ImageOps, UnidentifiedImageError
from psycopg.types.json import JsonbDumper

import records

INSERT_VERDICT = """
    INSERT INTO verdicts (
        id, job_id, lane, bucket, key, etag, sha256, bytes, format, width, height, frames, outcome, reason, label,
        score, scores, detectors, policy, metadata, attempts, received_at, decided_at)
    VALUES (
        %(id)s, %(job_id)s, %(lane)s, %(bucket)s, %(key)s, %(etag)s, %(sha256)s, %(bytes)s, %(format)s, %(width)s,
        %(height)s, %(frames)s, %(outcome)s, %(reason)s, %(label)s, %(score)s, %(scores)s, %(detectors)s, %(policy)s,
        %(metadata)s, %(attempts)s, %(received_at)s, %(decided_at)s)
    ON CONFLICT (id) DO NOTHING"""
INSERT_EVENT = """
    INSERT INTO outbox (event_id, verdict_id, routing_key, correlation_id, payload, due_at)
    VALUES (
        %(event_id)s, %(verdict_id)s, %(routing_key)s, %(correlation_id)s, %(payload)s, now() + interval '30 seconds')
    ON CONFLICT (event_id) DO NOTHING"""
MARK_PUBLISHED = "UPDATE outbox SET published_at = now() WHERE event_id = %s"


class Worker:
    def __init__(self, settings, threads):
        self.settings = settings
        self.detector = records.Detector(settings.detector)
        self.session = session(self.detector, threads)
        self.storage = boto3.client("s3", endpoint_url=settings.storage_endpoint)
        self.database = psycopg.connect(settings.ledger_url, autocommit=True)
        self.database.adapters.register_dumper(dict, JsonbDumper)

        self.connection = pika.BlockingConnection(pika.URLParameters(settings.queue_url))
        self.jobs = self.connection.channel()
        self.jobs.basic_qos(prefetch_count=settings.prefetch)
        self.jobs.queue_declare(settings.queue, passive=True)
        self.events = self.connection.channel()
        self.events.confirm_delivery()

    def run(self):
        """Consumes until SIGTERM; what was delivered and not acknowledged goes back to the queue."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.connection.add_callback_threadsafe(self.jobs.stop_consuming))
        self.jobs.basic_consume(self.settings.queue, self.on_message)
        self.jobs.start_consuming()
        self.connection.close()
        self.database.close()

    def on_message(self, channel, method, properties, body):
        try:
            job = records.job(body, properties)
        except records.Malformed:
            # To the dead letters.
            channel.basic_nack(method.delivery_tag, requeue=False)
            return
        verdict, event = self.screen(job)
        with self.database.transaction():
            written = self.database.execute(INSERT_VERDICT, verdict).rowcount
            if written:
                self.database.execute(INSERT_EVENT, event)
        if written:
            self.publish(event)
        channel.basic_ack(method.delivery_tag)

    def screen(self, job):
        """The verdict's row and the event's."""
        try:
            data, etag = self.fetch(job)
        except records.Missing:
            return records.unscored(self.detector, job, None, "missing", "there is no such object")
        sha256 = hashlib.sha256(data).digest()
        try:
            with Image.open(io.BytesIO(data)) as picture:
                width, height = picture.size
                pixels = normalised(resized(picture, self.detector.size), self.detector)
                image = records.Image(etag, sha256, len(data), picture.format.lower(), width, height)
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
            image = records.Image(etag, sha256, len(data))
            return records.unscored(self.detector, job, image, "undecodable", str(error))
        (logits,) = self.session.run(None, {"pixel_values": pixels})
        exponents = np.exp(logits[0] - logits[0].max())
        return records.scored(self.detector, job, image, (exponents / exponents.sum()).tolist())

    def fetch(self, job):
        try:
            answer = self.storage.get_object(Bucket=job.bucket, Key=job.key)
        except botocore.exceptions.ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                raise records.Missing from error
            raise
        return answer["Body"].read(), answer["ETag"].strip('"')

    def publish(self, event):
        """Publishes and waits for the confirmation; raises when nobody is bound to the event."""
        properties = pika.BasicProperties(
            content_type=records.CONTENT_TYPE,
            delivery_mode=pika.DeliveryMode.Persistent,
            message_id=str(event["event_id"]),
            correlation_id=event["correlation_id"],
        )
        body = json.dumps(event["payload"])
        self.events.basic_publish(self.settings.events, event["routing_key"], body, properties, mandatory=True)
        self.database.execute(MARK_PUBLISHED, (event["event_id"],))


def resized(picture, size):
    """Upright, at the detector's size: uint8 `[height, width, 3]`."""
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode != "RGB":
        picture = picture.convert("RGB")
    return np.asarray(picture.resize(size, Image.Resampling.BICUBIC))


def normalised(pixels, detector):
    """float32 `[1, 3, height, width]`."""
    values = pixels.astype(np.float32) * np.float32(detector.rescale_factor)
    values = (values - np.array(detector.mean, np.float32)) / np.array(detector.std, np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1)[np.newaxis])


def session(detector, threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(detector.model, options, providers=["CPUExecutionProvider"])


def main():
    parser = records.parser(__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="ONNX Runtime's threads (default 1)")
    options = parser.parse_args()
    Worker(records.settings(options), options.threads).run()


if __name__ == "__main__":
    main()
