"""A delay line: frames that come out of one network device go into another some milliseconds later, both ways.

    python -m netlab.relay DELAY_S PORT:HOST...       each name becomes a device; prints "ready", runs until it is ended

This kernel may have no netem. So a host's device and its port of the switch are TAP devices, and this process carries
the frames between them. Offloads stay on (IFF_VNET_HDR), so that a frame may have 64 KB: a gigabit per second is then
a few thousand frames, which Python can carry.
"""

import collections
import contextlib
import fcntl
import os
import select
import struct
import sys
import time

_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_OFFLOADS = 0x01 | 0x02 | 0x04  # checksums, TCP segmentation over IPv4 and IPv6
_FRAME_BYTES = 1 << 17
_MOST_WAITING = 20_000  # frames; beyond, they are dropped, as by a full queue

# Read into: os.read would have the operating system give and take back 128 KB for each frame.
_BUFFERS = [bytearray(_FRAME_BYTES)]
_VIEW = memoryview(_BUFFERS[0])

Waiting = collections.deque[tuple[float, bytes]]


def open_tap(name: str) -> int:
    """Make a TAP device of that name; it lives as long as the descriptor that is returned."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    request = struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
    fcntl.ioctl(descriptor, _TUNSETIFF, request)
    fcntl.ioctl(descriptor, _TUNSETOFFLOAD, _OFFLOADS)
    return descriptor


def carry(delay_s: float, other_ends: dict[int, int]) -> None:
    """Carry frames from each descriptor to its other end, `delay_s` later, for ever."""
    waiting: dict[int, Waiting] = {descriptor: collections.deque() for descriptor in other_ends}
    while True:
        due = min((line[0][0] for line in waiting.values() if line), default=None)
        timeout_s = None if due is None else max(0.0, due - time.monotonic())
        ready, _, _ = select.select(list(other_ends), [], [], timeout_s)
        for descriptor in ready:
            take(descriptor, waiting[other_ends[descriptor]], delay_s)
        now = time.monotonic()
        for descriptor, line in waiting.items():
            while line and line[0][0] <= now:
                # A device that is down refuses: the frame is lost, as in a cable that is cut.
                with contextlib.suppress(OSError):
                    os.write(descriptor, line[0][1])
                line.popleft()


def take(descriptor: int, line: Waiting, delay_s: float) -> None:
    """Put the frame that has come out of a device into the line to the other one."""
    with contextlib.suppress(OSError):
        size = os.readv(descriptor, _BUFFERS)
        if len(line) < _MOST_WAITING:
            line.append((time.monotonic() + delay_s, bytes(_VIEW[:size])))


def main(arguments: list[str]) -> None:
    """Make the devices, say so, and carry."""
    os.nice(-15)  # frames must not wait for the programs whose network this is
    other_ends = {}
    for pair in arguments[1:]:
        one, other = (open_tap(name) for name in pair.split(":"))
        other_ends |= {one: other, other: one}
    print("ready", flush=True)
    carry(float(arguments[0]), other_ends)


if __name__ == "__main__":
    main(sys.argv[1:])
