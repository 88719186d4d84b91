"""A server that lets clients in, reads nothing, and hangs up after a while: what an attack costs the machine by itself.

python -m faultlab.idle_server SECONDS      prints its port, then serves until it is killed
"""

import asyncio
import sys
from typing import cast

import uvloop


class _Held(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        held = cast("asyncio.Transport", transport)
        asyncio.get_running_loop().call_later(float(sys.argv[1]), held.abort)


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(_Held, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve())
