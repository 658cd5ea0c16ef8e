"""The load: jobs in several forms. Each attempt to publish and each confirm is recorded durably."""

import json
import random
import threading
import time
import uuid
from urllib.parse import quote_plus

import botocore.exceptions
import pika

from world import BUCKET, FAR_BUCKET, PREFIX, Journal

REPLIES = "chaos-replies"
# A copy of DEADLY_IMAGE in src/fault_injection/active.rs.
DEADLY = b"planted: this image kills the process"
MALFORMED = (b"not a job", b'{"image": 7}', b"\xff\xfe", b'{"Records": 1}')

# The relative frequency of each kind of job.
SHARES = {
    "good": 50,
    "derived": 12,
    "far": 8,
    "poison": 4,
    "damaged": 9,
    "missing": 5,
    "rejected": 3,
    "malformed": 4,
    "twice": 4,
    "conflict": 1,
}


class Jobs(threading.Thread):
    """Publishes at a rate until `end`. `fixtures` are bytes, the expected outcome, and those by the other policy."""

    def __init__(self, world, seed, rate, fixtures, seen):
        super().__init__(daemon=True)
        self.path = world.folder / "jobs.jsonl"
        self.confirmed = 0
        self._journal = Journal(self.path)
        self._world, self._rate, self._seen = world, rate, seen
        self._chance = random.Random(f"jobs-{seed}")
        self._good = [fixture for fixture in fixtures if fixture[1] != "undecodable"]
        self._damaged = [fixture for fixture in fixtures if fixture[1] == "undecodable"]
        self._ending = threading.Event()
        self._deadly_due = self._number = 0
        self._channel = None
        self._recent = []

    def end(self):
        self._ending.set()
        self.join()

    def kill_by_image(self):
        """Makes the next job one for an image that crashes the process."""
        self._deadly_due += 1

    def run(self):
        while not self._ending.is_set():
            due = time.monotonic() + 1 / self._rate
            self.more(1)
            time.sleep(max(0, due - time.monotonic()))

    def more(self, count):
        """Publishes this many jobs at once."""
        for _ in range(count):
            self._number += 1
            self._publish(*self._make(self._number))

    def _make(self, number):
        """A job's record and its message: lane, body, properties."""
        if self._deadly_due:
            self._deadly_due -= 1
            return self._plain(number, "deadly", DEADLY, "failed")
        kind = self._chance.choices(list(SHARES), SHARES.values())[0]
        if kind == "twice" and self._recent:
            return self._chance.choice(self._recent)
        if kind == "conflict" and (answered := self._seen()):
            record = {"id": self._chance.choice(answered), "kind": kind, "key": f"conflict/{number}", "outcome": None}
            return record, self._message({"image": f"s3://{BUCKET}/{record['key']}", "id": record["id"]})
        if kind == "malformed":
            body = self._chance.choice(MALFORMED)
            return {"id": f"malformed-{number}", "kind": kind, "key": None, "outcome": None}, self._message(body)
        if kind == "missing":
            return self._plain(number, kind, None, "missing")
        if kind == "rejected":
            record = {"id": f"job-{number}", "kind": kind, "key": f"x/{number}", "outcome": "rejected"}
            return record, self._message({"image": f"s3://elsewhere/{record['key']}", "id": record["id"]})
        if kind == "derived":
            return self._derived(number)
        fixture = self._chance.choice(self._damaged if kind == "damaged" else self._good)
        return self._plain(number, kind, *fixture)

    def _plain(self, number, kind, data, outcome, opposite=()):
        key = f"{kind}/{number} ä+%20.jpg"
        bucket = FAR_BUCKET if kind == "far" else BUCKET
        etag = None if data is None else self._put(key, data, bucket)
        record = {"id": f"job-{number}", "kind": kind, "key": key, "outcome": outcome, "has_metadata": True}
        record["opposite"] = list(opposite)
        image = f"s3://{bucket}/{key}"
        if etag and number % 3 == 0:
            image = {"bucket": bucket, "key": key, "etag": etag}
        metadata = {"number": number} | ({"poison": True} if kind == "poison" else {})
        body = {"image": image, "id": record["id"], "metadata": metadata}
        properties = {"reply_to": REPLIES} if number % 20 == 0 else {}
        if number % 4 == 1 and kind != "poison":
            body = image if isinstance(image, str) else {"image": image}
            properties["message_id"] = record["id"]
            record["has_metadata"] = False
        made = record, self._message(body, **properties)
        if kind != "deadly":
            self._recent = [*self._recent[-200:], made]
        return made

    def _derived(self, number):
        """A job without an id. It is identified by its key, which no other job has."""
        data, outcome, opposite = self._chance.choice(self._good)
        key = f"derived/{number} ä+.jpg"
        self._put(key, data)
        record = {"id": f"key:{key}", "kind": "derived", "key": key, "outcome": outcome, "opposite": opposite}
        thing = {"key": quote_plus(key), "sequencer": f"{number:016X}"}
        event = {"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": BUCKET}, "object": thing}}
        body = {"Records": [event]} if number % 2 else f"s3://{BUCKET}/{key}"
        return record, self._message(body)

    def _message(self, body, **properties):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        lane = "live" if self._chance.random() < 0.4 else "backfill"
        return lane, body, properties

    def _put(self, key, data, bucket=BUCKET):
        while True:
            try:
                return self._world.s3.put_object(Bucket=bucket, Key=key, Body=data)["ETag"].strip('"')
            except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
                time.sleep(0.2)

    def _publish(self, record, message):
        """Publishes until the broker confirms. A repeated publish may be a duplicate, which senders are allowed to make."""
        lane, body, properties = message
        attempt = str(uuid.uuid4())
        self._journal.write(attempt=attempt, tried=record)
        while True:
            try:
                if self._channel is None:
                    self._channel = self._world.broker().channel()
                    self._channel.queue_declare(REPLIES, durable=True)
                    self._channel.confirm_delivery()
                fields = pika.BasicProperties(delivery_mode=2, **properties)
                self._channel.basic_publish(f"{PREFIX}.jobs", lane, body, fields, mandatory=True)
                break
            except (pika.exceptions.AMQPError, OSError):
                self._channel = None
                time.sleep(0.2)
        self._journal.write(attempt=attempt, confirmed=True)
        self.confirmed += 1
