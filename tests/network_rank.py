"""A rank as a process of its own, for tests: sums without end and says, as JSON lines, what becomes of it.

Rank 0 opens the rendezvous itself, unless that is on the loopback address: there the test has one.
"""

import json
import sys
import time

import numpy as np

from argosy.core.errors import ArgosyError
from argosy.train.network.handshake import split_address
from argosy.train.network.rendezvous import Rendezvous
from argosy.train.network.transport import TcpTransport


def main(asked):
    host, port = split_address(asked["address"])
    rank, size, token = asked["rank"], asked["size"], asked["token"]
    rendezvous = None
    if rank == 0 and host != "127.0.0.1":
        rendezvous = Rendezvous(size, token=token, host=host, port=port)
    options = {"join_s": 60.0} | {key: asked[key] for key in ("silence_s", "join_s") if key in asked}
    transport, pending = None, None
    try:
        say(event="joining")
        transport = TcpTransport.join(asked["address"], rank, size, token=token, **options)
        values, small, behind = np.ones(1_000_000, np.float32), np.ones(3), np.ones(3_000_000, np.float32)
        say(event="exchanging")
        while True:
            transport.all_reduce(small)
            transport.all_reduce(values)
            small[...], values[...] = 1.0, 1.0
            if asked.get("behind"):
                if pending:
                    pending.wait()
                    behind[...] = 1.0
                pending = transport.start_all_reduce(behind)
    except ArgosyError as error:
        say(event="lost", code=error.code, lost=error.context.get("rank"), message=str(error), at=time.time())
        if transport:
            transport.close(failed=True)
    if rendezvous:
        rendezvous.close()


def say(**what):
    print(json.dumps(what), flush=True)  # noqa: T201 - what the test reads


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
