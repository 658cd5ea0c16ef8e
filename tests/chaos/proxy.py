"""A TCP proxy between the workers and one service. It injects faults into connections."""

import asyncio
import socket
import struct
import threading

LATENCY_S = 0.2
DRIP_BYTES = 256
DRIP_S = 0.01
POLL_INTERVAL_S = 0.05


class Loop:
    """An event loop in a separate thread. All proxies share it."""

    def __init__(self):
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)


class Port:
    """A port that can refuse connections for a while, and cannot be taken by another program meanwhile."""

    def __init__(self, loop, serve):
        self._loop, self._serve = loop, serve
        # Bound and never listening. Without a listener beside it, the system refuses connections (ECONNREFUSED).
        self._reserved = self._bound(0)
        self.number = self._reserved.getsockname()[1]
        self._server = None
        self.accept()

    def accept(self):
        self._server = self._loop.call(asyncio.start_server(self._serve, sock=self._bound(self.number)))

    def refuse(self):
        self._loop.call(self._close())

    async def _close(self):
        self._server.close()

    @staticmethod
    def _bound(number):
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(("127.0.0.1", number))
        return bound


class Link:
    """One connection through the proxy."""

    def __init__(self, *writers):
        self.writers = writers
        self.doomed = False

    def reset(self):
        for writer in self.writers:
            reset(writer)


class TcpProxy:
    """Listens on its own port. A reply can be dropped if its request contains `marker`; None means any request."""

    def __init__(self, loop, target_port, marker=None):
        self.mode = "pass"
        self.dropped = 0
        self._loop = loop
        self._target_port = target_port
        self._marker = marker
        self._links = set()
        server = loop.call(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]

    def reset(self):
        """Resets every open connection."""
        self._loop.call(self._reset_all())

    async def _reset_all(self):
        for link in list(self._links):
            link.reset()

    async def _serve(self, from_worker, to_worker):
        try:
            from_service, to_service = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            reset(to_worker)
            return
        link = Link(to_worker, to_service)
        self._links.add(link)
        try:
            await asyncio.gather(
                self._pump(link, from_worker, to_service, up=True), self._pump(link, from_service, to_worker, up=False)
            )
        finally:
            self._links.discard(link)
            for writer in link.writers:
                writer.close()

    async def _pump(self, link, reader, writer, up):
        try:
            while data := await reader.read(1 << 16):
                await self._pass(link, data, writer, up)
        except OSError:
            pass
        # When one side ends, close both. These protocols do not use half-closed connections.
        for other in link.writers:
            other.close()

    async def _pass(self, link, data, writer, up):
        while self.mode == "black-hole":
            await asyncio.sleep(POLL_INTERVAL_S)
        if self.mode == "reply-dropped" and self._drops(link, data, up):
            self.dropped += 1
            link.reset()
            return
        if self.mode == "latency":
            await asyncio.sleep(LATENCY_S)
        if self.mode == "drip":
            for start in range(0, len(data), DRIP_BYTES):
                writer.write(data[start : start + DRIP_BYTES])
                await writer.drain()
                if self.mode == "drip":
                    await asyncio.sleep(DRIP_S)
            return
        writer.write(data)
        await writer.drain()

    def _drops(self, link, data, up):
        if up:
            link.doomed = link.doomed or self._marker is None or self._marker in data
            return False
        return link.doomed


def reset(writer):
    """Closes a connection with a TCP reset."""
    connection = writer.get_extra_info("socket")
    if connection is not None:
        # Lingering for zero seconds makes close() send RST (socket(7)).
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
