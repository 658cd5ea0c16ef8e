"""A proxy before the object store. It knows HTTP, so that it can lie about single objects, and it remembers its lies."""

import asyncio
import random
import threading
from urllib.parse import unquote

from proxy import LATENCY_S, LOOK_S, reset

# Of the requests during a fault, which part it hits: some jobs fare well beside those that do not.
SHARE = 0.7
STALL_S = 20

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
NO_SUCH_KEY = b"<Error><Code>NoSuchKey</Code><Message>The specified key does not exist.</Message></Error>"


class StoreProxy:
    def __init__(self, loop, target_port, seed):
        self.mode = "pass"
        self.lies = {}
        self._lock = threading.Lock()
        self._chance = random.Random(f"store-{seed}")
        self._target_port = target_port
        server = loop.call(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]

    async def _serve(self, reader, writer):
        # One request a connection: the client is told so, and nothing here depends on what came before.
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            await self._answer(head, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, head, writer):
        while self.mode == "black-hole":
            await asyncio.sleep(LOOK_S)
        mode = self.mode if self._chance.random() < SHARE else "pass"
        key = unquote(head.split(b" ", 2)[1].decode().split("?")[0]).lstrip("/").partition("/")[2]
        if mode == "reset":
            return reset(writer)
        if mode == "503":
            return await send(writer, b"503 Slow Down", [], SLOW_DOWN)
        if mode == "missing":
            self._lie(key, mode)
            return await send(writer, b"404 Not Found", [], NO_SUCH_KEY)
        status, headers, body = await self._ask(head)
        if mode == "wrong-etag":
            self._lie(key, mode)
            headers = [line for line in headers if not line.lower().startswith(b"etag:")] + [b'ETag: "0123456789abcdef"']
        half = len(body) // 2
        if mode == "cut-short" and body:
            return await send(writer, status, headers, body[:half], length=len(body))
        if mode == "stalled" and body:
            await send(writer, status, headers, body[:half], length=len(body))
            for _ in range(int(STALL_S / LOOK_S)):
                if self.mode != "stalled":
                    break
                await asyncio.sleep(LOOK_S)
            return reset(writer)
        await send(writer, status, headers, body, pause=LATENCY_S if mode == "slow" else 0)

    def _lie(self, key, kind):
        with self._lock:
            self.lies.setdefault(key, set()).add(kind)

    async def _ask(self, head):
        """The store's own answer: status, headers but for those about length and connection, body."""
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
