#!/usr/bin/env python3
"""Passes connections on to a server that has no TLS and keeps its objects in memory.

    tests/services/front.py TARGET_PORT PORT[=CERTIFICATE=KEY]...

A port with a certificate ends TLS. Tests stop this process instead of the server, so that the objects survive.
"""

import asyncio
import ssl
import sys

LOOPBACK = "127.0.0.1"


async def main(target, *listeners):
    async def serve(reader, writer):
        try:
            onward_reader, onward_writer = await asyncio.open_connection(LOOPBACK, int(target))
            await asyncio.gather(pipe(reader, onward_writer), pipe(onward_reader, writer))
        except OSError:
            # Either side may close its connection at any time. Closing the other side is all there is to do.
            pass
        finally:
            writer.close()

    servers = []
    for listener in listeners:
        port, *files = listener.split("=")
        context = None
        if files:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*files)
        servers.append(await asyncio.start_server(serve, LOOPBACK, int(port), ssl=context))
    await asyncio.gather(*(server.serve_forever() for server in servers))


async def pipe(reader, writer):
    try:
        while data := await reader.read(262144):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
