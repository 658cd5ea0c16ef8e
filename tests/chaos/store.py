"""An HTTP proxy in front of the object store. It gives false responses for single objects and records them."""

import asyncio
import random
import threading
from urllib.parse import unquote

from proxy import LATENCY_S, POLL_INTERVAL_S, Port, reset

# The share of requests that a fault affects, so that some jobs succeed while others fail.
SHARE = 0.7
STALL_S = 20

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
NO_SUCH_KEY = b"<Error><Code>NoSuchKey</Code><Message>The specified key does not exist.</Message></Error>"


class StoreProxy:
    def __init__(self, loop, target_port, seed):
        self.mode = "pass"
        self.false_responses = {}
        self._lock = threading.Lock()
        self._chance = random.Random(f"store-{seed}")
        self._target_port = target_port
        self._port = Port(loop, self._serve)
        self.port = self._port.number

    def refuse(self):
        """Refuses connections until `accept`."""
        self._port.refuse()

    def accept(self):
        self._port.accept()

    async def _serve(self, reader, writer):
        # One request per connection: every response has `Connection: close`.
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            await self._answer(head, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, head, writer):
        while self.mode == "black-hole":
            await asyncio.sleep(POLL_INTERVAL_S)
        mode = self.mode if self._chance.random() < SHARE else "pass"
        key = unquote(head.split(b" ", 2)[1].decode().split("?")[0]).lstrip("/").partition("/")[2]
        if mode == "reset":
            return reset(writer)
        if mode == "503":
            return await send(writer, b"503 Slow Down", [], SLOW_DOWN)
        if mode == "missing":
            self._record_false(key, mode)
            return await send(writer, b"404 Not Found", [], NO_SUCH_KEY)
        status, headers, body = await self._ask(head)
        if mode == "wrong-etag":
            self._record_false(key, mode)
            headers = [line for line in headers if not line.lower().startswith(b"etag:")] + [b'ETag: "0123456789abcdef"']
        half = len(body) // 2
        if mode == "cut-short" and body:
            return await send(writer, status, headers, body[:half], length=len(body))
        if mode == "stalled" and body:
            await send(writer, status, headers, body[:half], length=len(body))
            for _ in range(int(STALL_S / POLL_INTERVAL_S)):
                if self.mode != "stalled":
                    break
                await asyncio.sleep(POLL_INTERVAL_S)
            return reset(writer)
        await send(writer, status, headers, body, pause=LATENCY_S if mode == "slow" else 0)

    def _record_false(self, key, kind):
        with self._lock:
            self.false_responses.setdefault(key, set()).add(kind)

    async def _ask(self, head):
        """The store's response: status, headers except those about length and connection, body."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        try:
            writer.write(head)
            first, *headers = (await reader.readuntil(b"\r\n\r\n")).rstrip().split(b"\r\n")
            status = first.split(b" ", 1)[1]
            fields = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in headers)}
            if head.startswith(b"HEAD ") or status.startswith((b"204", b"304")):
                body = b""
            else:
                body = await read_body(reader, fields)
            ours = (b"content-length", b"connection", b"transfer-encoding")
            return status, [line for line in headers if line.partition(b":")[0].lower() not in ours], body
        finally:
            writer.close()


async def read_body(reader, fields):
    if b"content-length" in fields:
        return await reader.readexactly(int(fields[b"content-length"]))
    body = b""
    while size := int((await reader.readline()).split(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readline()
    return body


async def send(writer, status, headers, body, length=None, pause=0):
    length = len(body) if length is None else length
    lines = [b"HTTP/1.1 " + status, *headers, b"Content-Length: %d" % length, b"Connection: close", b"", b""]
    writer.write(b"\r\n".join(lines))
    pieces = 10 if pause else 1
    for i in range(pieces):
        await asyncio.sleep(pause)
        writer.write(body[len(body) * i // pieces : len(body) * (i + 1) // pieces])
        await writer.drain()
