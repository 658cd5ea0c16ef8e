"""Whoever listens to the events: writes each down durably, and only then acknowledges it."""

import hashlib
import json
import threading
import time

import pika

from world import LISTENER, PREFIX, Journal


class Events(threading.Thread):
    def __init__(self, world):
        super().__init__(daemon=True)
        self.path = world.folder / "events.jsonl"
        self.heard = 0
        self._journal = Journal(self.path)
        self._world = world
        self._deaf = threading.Event()
        self._is_deaf = threading.Event()
        self._ending = threading.Event()
        self._answered = []

    def answered(self):
        """Ids of jobs whose event has been heard, the last hundred of them."""
        return self._answered[-100:]

    def delete_queue(self):
        """Takes the queue away, without losing what is in it: unbinds it, empties it, deletes it."""
        self._deaf.set()
        if not self._is_deaf.wait(20):
            raise RuntimeError("the listener did not give its queue up")

    def declare_queue(self):
        self._deaf.clear()

    def end(self):
        self._ending.set()
        self.join()

    def run(self):
        while not self._ending.is_set():
            try:
                self._listen(self._world.broker())
            except (pika.exceptions.AMQPError, OSError):
                time.sleep(0.2)

    def _listen(self, connection):
        channel = connection.channel()
        channel.basic_qos(prefetch_count=100)
        while not self._ending.is_set():
            if self._deaf.is_set():
                channel.queue_unbind(LISTENER, f"{PREFIX}.events", "image.#")
                # A quorum queue cannot be deleted on condition that it is empty, and its count is a little old.
                self._hear(channel, lambda is_empty: is_empty)
                while channel.queue_declare(LISTENER, passive=True).method.message_count:
                    self._hear(channel, lambda is_empty: is_empty)
                channel.queue_delete(LISTENER)
                self._is_deaf.set()
                while self._deaf.is_set():
                    connection.sleep(0.1)
                self._is_deaf.clear()
            channel.queue_declare(LISTENER, durable=True, arguments={"x-queue-type": "quorum"})
            channel.queue_bind(LISTENER, f"{PREFIX}.events", "image.#")
            self._hear(channel, lambda _: self._deaf.is_set() or self._ending.is_set())
        connection.close()

    def _hear(self, channel, enough):
        """Takes what comes until it is enough; `enough` is told whether nothing has come for a moment."""
        for method, _, body in channel.consume(LISTENER, inactivity_timeout=0.5):
            if method is not None:
                self._write_down(json.loads(body), body)
                channel.basic_ack(method.delivery_tag)
            # Not before: what has been taken would stay unacknowledged, and go with the queue.
            if enough(method is None):
                break
        channel.cancel()

    def _write_down(self, event, body):
        data = event["data"]
        self._journal.write(
            id=event["id"],
            job_id=data["job_id"],
            outcome=data["outcome"],
            verdict_id=data["verdict_id"],
            body=hashlib.sha256(body).hexdigest(),
        )
        self.heard += 1
        self._answered = [*self._answered[-100:], data["job_id"]]
