#!/usr/bin/env python3
"""A worker in Python, as fast as we can make it: decoder processes, batches, group commits, pipelined confirms.

    python tests/bench/peers/tuned.py --detector DIR [--decode full|scaled] [--decoders 1] [--prefetch 80] [--threads 1]

It reads the variables that `pixwarden worker` reads, consumes the same queue, writes the same rows and sends the same
events. This process has three threads, which mostly wait or are in C: one for the broker, which also hands out jobs to
the decoders, one for the session, one for the ledger. Pixels come from the decoders in shared memory.

A message is acknowledged after the commit that holds its verdict and its event, and the event stays in the outbox until
the broker has confirmed it. What a crash leaves there is for a sweeper, which Pixwarden has and this has not. Whatever
goes wrong with a service or a decoder ends the process, and its jobs are delivered again.
"""

import asyncio
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import orjson
import pika
import psycopg
import uvloop
from pika.adapters.asyncio_connection import AsyncioConnection

import records
from decoder import MESSAGE_BYTES, Orders, slots

# Jobs that a decoder has at a time: the one that it decodes, and downloads.
AHEAD = 8
# What warm-up chooses from. The largest is rarely the fastest on a processor: its activations fit into no cache.
BATCHES = (1, 2, 4, 8, 16)
# Rows a transaction.
GROUP = 500
# How long a group gathers. A statement costs much the same for one row as for ten, and no job waits for another's
# verdict as long as the prefetch is not used up.
LINGER_S = 0.05

# One parameter for all rows of a group: cheaper to make here than arrays, parameters a row or lines for COPY, and it
# passes over what is there already, as COPY cannot.
WRITE = """
    WITH input AS (
        SELECT * FROM jsonb_to_recordset(%s::text::jsonb) AS rows (
            id uuid, job_id text, lane text, bucket text, key text, etag text, sha256 text, bytes bigint, format text,
            width integer, height integer, frames integer, outcome text, reason text, label text, score real,
            scores jsonb, detectors jsonb, policy jsonb, metadata jsonb, attempts integer, received_at timestamptz,
            decided_at timestamptz, event_id uuid, routing_key text, correlation_id text, payload jsonb)
    ), written AS (
        INSERT INTO verdicts (
            id, job_id, lane, bucket, key, etag, sha256, bytes, format, width, height, frames, outcome, reason, label,
            score, scores, detectors, policy, metadata, attempts, received_at, decided_at)
        SELECT
            id, job_id, lane, bucket, key, etag, decode(sha256, 'hex'), bytes, format, width, height, frames, outcome,
            reason, label, score, scores, detectors, policy, metadata, attempts, received_at, decided_at
        FROM input
        ON CONFLICT (id) DO NOTHING
        RETURNING id
    )
    INSERT INTO outbox (event_id, verdict_id, routing_key, correlation_id, payload, due_at)
    SELECT event_id, id, routing_key, correlation_id, payload, now() + interval '30 seconds'
    FROM input JOIN written USING (id)
    ON CONFLICT (event_id) DO NOTHING
    RETURNING event_id"""
MARK_PUBLISHED = "UPDATE outbox SET published_at = now() WHERE event_id = ANY (%s)"


@dataclass(slots=True)
class Delivery:
    """A job from its message to its acknowledgement."""

    tag: int
    job: records.Job
    slot: int = -1
    image: records.Image | None = None
    verdict: dict | None = None
    event: dict | None = None
    body: bytes = b""


class Decoders:
    """The decoder processes, and the slots that their pixels come in."""

    def __init__(self, count, scaled, settings, size, spare_slots):
        width, height = size
        slot_count = count * AHEAD + spare_slots
        memory = os.memfd_create("pixels")
        os.truncate(memory, slot_count * 3 * width * height)
        self.pixels = slots(memory, size)
        self.free = list(range(slot_count))
        self.load = {}
        self.processes = []
        orders = pickle.dumps(Orders(settings, size, scaled))
        for _ in range(count):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            files = [theirs.fileno(), memory]
            command = [sys.executable, Path(__file__).with_name("decoder.py"), *map(str, files)]
            self.processes.append(subprocess.Popen(command, pass_fds=files))
            theirs.close()
            ours.send(orders)
            self.load[ours] = 0

    def has_room(self):
        return self.free and min(self.load.values()) < AHEAD

    def send(self, delivery):
        link = min(self.load, key=self.load.get)
        delivery.slot = self.free.pop()
        self.load[link] += 1
        link.send(pickle.dumps((delivery.tag, delivery.slot, delivery.job.bucket, delivery.job.key)))

    def receive(self, link):
        """A delivery's tag, what was found out about its image, and what is wrong with it."""
        answer = link.recv(MESSAGE_BYTES)
        if not answer:
            raise RuntimeError("a decoder ended")
        self.load[link] -= 1
        return pickle.loads(answer)

    def end(self):
        for link in self.load:
            link.close()
        for process in self.processes:
            process.wait()


class Session:
    """The model. Pixels of several images → probabilities."""

    def __init__(self, detector, threads):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(detector.model, options, providers=["CPUExecutionProvider"])
        # (x * rescale_factor - mean) / std, as one multiplication and one addition.
        std = np.array(detector.std, np.float32)
        self.scale = (detector.rescale_factor / std).reshape(3, 1, 1).astype(np.float32)
        self.offset = (-np.array(detector.mean, np.float32) / std).reshape(3, 1, 1)
        width, height = detector.size
        self.values = np.zeros((max(BATCHES), 3, height, width), np.float32)
        self.batch = min(BATCHES, key=self.seconds_an_image)

    def seconds_an_image(self, batch):
        took = []
        for _ in range(3):
            began = time.perf_counter()
            self.run(batch)
            took.append(time.perf_counter() - began)
        return min(took) / batch

    def settle(self):
        """Gives back what batches took that were tried and not chosen."""
        # Pages that no batch reaches take no memory; a copy would write them.
        self.values = np.zeros((self.batch, *self.values.shape[1:]), np.float32)
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self.session.run(None, {"pixel_values": self.values[:1]}, options)

    def fill(self, index, pixels):
        values = self.values[index]
        values[...] = pixels
        values *= self.scale
        values += self.offset

    def run(self, count):
        (logits,) = self.session.run(None, {"pixel_values": self.values[:count]})
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (exponents / exponents.sum(axis=1, keepdims=True)).tolist()


class Worker:
    def __init__(self, settings, options):
        self.settings = settings
        self.detector = records.Detector(settings.detector)
        self.session = Session(self.detector, options.threads)
        self.session.settle()
        scaled = options.decode == "scaled"
        self.decoders = Decoders(options.decoders, scaled, settings, self.detector.size, 2 * self.session.batch)
        self.database = psycopg.connect(settings.ledger_url, autocommit=True)
        self.decoded, self.judged = queue.SimpleQueue(), queue.SimpleQueue()

        self.deliveries = {}
        self.waiting = deque()
        # Tags of deliveries that are done, or dead letters, while one before them is not done; and the first of those.
        self.settled, self.refused = set(), set()
        self.next_tag = 1
        # Events on their way: the publishing channel's delivery tag → the event's id.
        self.unconfirmed = {}
        self.last_published = 0
        self.returned = set()

    async def run(self):
        """Works until SIGTERM; what was delivered and not acknowledged goes back to the queue."""
        self.loop = asyncio.get_running_loop()
        self.ended = self.loop.create_future()
        self.loop.set_exception_handler(self.on_exception)
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(number, self.end)
        for link in self.decoders.load:
            self.loop.add_reader(link.fileno(), self.on_decoded, link)
        for work in (self.infer, self.write):
            threading.Thread(target=self.guarded, args=(work,), daemon=True).start()
        parameters = pika.URLParameters(self.settings.queue_url)
        self.connection = AsyncioConnection(
            parameters,
            on_open_callback=self.on_connected,
            on_open_error_callback=lambda _, error: self.end(error),
            on_close_callback=lambda _, reason: self.end(reason),
            custom_ioloop=self.loop,
        )
        try:
            await self.ended
        finally:
            for link in self.decoders.load:
                self.loop.remove_reader(link.fileno())
            self.decoders.end()

    def end(self, error=None):
        if not self.ended.done():
            if error is None:
                self.ended.set_result(None)
            else:
                self.ended.set_exception(error)

    def on_exception(self, _, context):
        self.end(context.get("exception") or RuntimeError(context["message"]))

    def guarded(self, work):
        """A thread that cannot go on ends the process."""
        try:
            work()
        except Exception as error:
            self.loop.call_soon_threadsafe(self.end, error)

    # The broker. Everything in this part runs in the loop.

    def on_connected(self, connection):
        connection.channel(on_open_callback=self.on_events_open)

    def on_events_open(self, channel):
        self.events = channel
        channel.add_on_close_callback(lambda _, reason: self.end(reason))
        channel.add_on_return_callback(lambda _, method, properties, body: self.returned.add(properties.message_id))
        channel.confirm_delivery(self.on_confirmed, callback=self.on_confirming)

    def on_confirming(self, _):
        self.connection.channel(on_open_callback=self.on_jobs_open)

    def on_jobs_open(self, channel):
        self.jobs = channel
        channel.add_on_close_callback(lambda _, reason: self.end(reason))
        channel.basic_qos(prefetch_count=self.settings.prefetch)
        channel.queue_declare(self.settings.queue, passive=True)
        channel.basic_consume(self.settings.queue, self.on_message)

    def on_message(self, channel, method, properties, body):
        try:
            job = records.job(body, properties)
        except records.Malformed:
            # To the dead letters.
            channel.basic_nack(method.delivery_tag, requeue=False)
            self.refused.add(method.delivery_tag)
            self.settle([method.delivery_tag])
            return
        self.deliveries[method.delivery_tag] = delivery = Delivery(method.delivery_tag, job)
        self.waiting.append(delivery)
        self.hand_out()

    def hand_out(self):
        while self.waiting and self.decoders.has_room():
            self.decoders.send(self.waiting.popleft())

    def on_decoded(self, link):
        tag, image, error = self.decoders.receive(link)
        delivery = self.deliveries[tag]
        delivery.image = image
        if error is None:
            self.decoded.put(delivery)
        elif isinstance(error, (records.Missing, records.Undecodable)):
            outcome = "missing" if isinstance(error, records.Missing) else "undecodable"
            delivery.verdict, delivery.event = records.unscored(self.detector, delivery.job, image, outcome, str(error))
            self.decoders.free.append(delivery.slot)
            self.judged.put(delivery)
        else:
            raise error
        self.hand_out()

    def on_slots_free(self, freed):
        self.decoders.free += freed
        self.hand_out()

    def on_committed(self, group, written):
        for delivery in group:
            if delivery.event["event_id"] in written:
                self.publish(delivery)
            del self.deliveries[delivery.tag]
        self.settle(delivery.tag for delivery in group)

    def publish(self, delivery):
        event = delivery.event
        properties = pika.BasicProperties(
            content_type=records.CONTENT_TYPE,
            delivery_mode=pika.DeliveryMode.Persistent,
            message_id=str(event["event_id"]),
            correlation_id=event["correlation_id"],
        )
        self.last_published += 1
        self.unconfirmed[self.last_published] = event["event_id"]
        self.events.basic_publish(self.settings.events, event["routing_key"], delivery.body, properties, mandatory=True)

    def on_confirmed(self, frame):
        """One event or all up to it have arrived. What came back or was refused stays in the outbox."""
        method = frame.method
        tags = [method.delivery_tag]
        if method.multiple:
            # Tags are in the order of publishing, and so is the dictionary.
            tags = [tag for tag in self.unconfirmed if tag <= method.delivery_tag]
        ids = [self.unconfirmed.pop(tag) for tag in tags]
        if isinstance(method, pika.spec.Basic.Nack):
            return
        if self.returned:
            arrived = [id for id in ids if str(id) not in self.returned]
            self.returned.difference_update(map(str, ids))
            ids = arrived
        self.judged.put(ids)

    def settle(self, tags):
        """Acknowledges with one frame all up to the first delivery that is not done, but for what was refused."""
        self.settled.update(tags)
        last = None
        while self.next_tag in self.settled:
            self.settled.remove(self.next_tag)
            if self.next_tag in self.refused:
                self.refused.remove(self.next_tag)
            else:
                last = self.next_tag
            self.next_tag += 1
        if last is not None:
            self.jobs.basic_ack(last, multiple=True)

    # The session's thread.

    def infer(self):
        while True:
            batch = take(self.decoded, self.session.batch)
            for index, delivery in enumerate(batch):
                self.session.fill(index, self.decoders.pixels[delivery.slot])
            self.loop.call_soon_threadsafe(self.on_slots_free, [delivery.slot for delivery in batch])
            for delivery, probabilities in zip(batch, self.session.run(len(batch))):
                scored = records.scored(self.detector, delivery.job, delivery.image, probabilities)
                delivery.verdict, delivery.event = scored
                self.judged.put(delivery)

    # The ledger's thread.

    def write(self):
        """Writes what waits: verdicts with their events in one transaction, and which events have arrived."""
        while True:
            group, arrived = [], []
            for item in take(self.judged, GROUP, LINGER_S):
                if isinstance(item, Delivery):
                    group.append(item)
                else:
                    arrived += item
            if group:
                self.commit(group)
            if arrived:
                self.database.execute(MARK_PUBLISHED, (arrived,))

    def commit(self, group):
        rows = []
        for delivery in group:
            delivery.body = orjson.dumps(delivery.event["payload"])
            sha256 = delivery.verdict["sha256"]
            as_text = {"sha256": sha256 and sha256.hex(), "payload": orjson.Fragment(delivery.body)}
            rows.append(delivery.verdict | delivery.event | as_text)
        cursor = self.database.execute(WRITE, (orjson.dumps(rows).decode(),))
        written = {event_id for (event_id,) in cursor}
        self.loop.call_soon_threadsafe(self.on_committed, group, written)


def take(waiting, most, linger_s=0):
    """Waits for one, and takes what else is there after `linger_s`."""
    taken = [waiting.get()]
    if linger_s:
        time.sleep(linger_s)
    while len(taken) < most:
        try:
            taken.append(waiting.get_nowait())
        except queue.Empty:
            break
    return taken


def main():
    parser = records.parser(__doc__.splitlines()[0])
    parser.add_argument("--decode", choices=["full", "scaled"], default="full", help="all of a JPEG, or a part")
    parser.add_argument("--decoders", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: cores)")
    parser.add_argument("--threads", type=int, default=1, help="ONNX Runtime's threads (default 1)")
    options = parser.parse_args()
    uvloop.run(Worker(records.settings(options), options).run())


if __name__ == "__main__":
    main()
