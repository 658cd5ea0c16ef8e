"""The consumer of events. It records each event durably before it acknowledges it."""

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
        self.received = 0
        self._journal = Journal(self.path)
        self._world = world
        self._is_unwanted = threading.Event()
        self._is_deleted = threading.Event()
        self._ending = threading.Event()
        self._answered = []

    def answered(self):
        """The ids of the last hundred jobs whose event was received."""
        return self._answered[-100:]

    def delete_queue(self):
        """Deletes the queue without losing a message: unbinds it, empties it, deletes it."""
        self._is_unwanted.set()
        if not self._is_deleted.wait(20):
            raise RuntimeError("the listener did not delete its queue in time")

    def declare_queue(self):
        self._is_unwanted.clear()

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
            if self._is_unwanted.is_set():
                channel.queue_unbind(LISTENER, f"{PREFIX}.events", "image.#")
                # A quorum queue has no conditional delete (if-empty), and its message count is slightly old.
                self._receive(channel, lambda is_empty: is_empty)
                while channel.queue_declare(LISTENER, passive=True).method.message_count:
                    self._receive(channel, lambda is_empty: is_empty)
                channel.queue_delete(LISTENER)
                self._is_deleted.set()
                while self._is_unwanted.is_set():
                    connection.sleep(0.1)
                self._is_deleted.clear()
            channel.queue_declare(LISTENER, durable=True, arguments={"x-queue-type": "quorum"})
            channel.queue_bind(LISTENER, f"{PREFIX}.events", "image.#")
            self._receive(channel, lambda _: self._is_unwanted.is_set() or self._ending.is_set())
        connection.close()

    def _receive(self, channel, is_done):
        """Records events until `is_done` returns true. It is called with whether no event arrived within half a second."""
        for method, _, body in channel.consume(LISTENER, inactivity_timeout=0.5):
            if method is not None:
                self._record(json.loads(body), body)
                channel.basic_ack(method.delivery_tag)
            # Only now: an event that was received but not acknowledged would be lost with the queue.
            if is_done(method is None):
                break
        channel.cancel()

    def _record(self, event, body):
        data = event["data"]
        self._journal.write(
            id=event["id"],
            job_id=data["job_id"],
            outcome=data["outcome"],
            revision=data["revision"],
            judged_at=data["judged_at"],
            # What the event's type announces: the outcome, or `cleared`.
            announced=event["type"].split(".")[-2],
            verdict_id=data["verdict_id"],
            body=hashlib.sha256(body).hexdigest(),
        )
        self.received += 1
        self._answered = [*self._answered[-100:], data["job_id"]]
