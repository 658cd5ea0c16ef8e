#!/usr/bin/env python3
"""Ends TLS before a server that speaks none.

    tests/services/tls_proxy.py TARGET_PORT PORT=CERTIFICATE=KEY...
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
            # Either side may leave at any time; closing the other is all there is to do.
            pass
        finally:
            writer.close()

    servers = []
    for listener in listeners:
        port, certificate, key = listener.split("=")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        servers.append(await asyncio.start_server(serve, LOOPBACK, int(port), ssl=context))
    await asyncio.gather(*(server.serve_forever() for server in servers))


async def pipe(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
