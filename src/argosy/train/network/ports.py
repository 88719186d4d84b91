"""Addresses and ports of this machine: where others reach it, and who listens, as far as this user may see."""

import contextlib
import socket
from pathlib import Path

_LISTENING = "0A"


_ELSEWHERE = ("192.0.2.1", 9)
"""An address that no machine has (RFC 5737): asked only for the way that packets to it would take."""


def free_address() -> str:
    """Return `host:port` of this machine as others reach it, with a port that nobody listens on just now."""
    host = "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(_ELSEWHERE)  # sends nothing
        host = probe.getsockname()[0]
    with socket.socket() as free:
        free.bind((host, 0))
        return f"{host}:{free.getsockname()[1]}"


def listening_process(port: int) -> str:
    """Return a phrase that names the process which listens on `port`, or "another process" if it can't be seen."""
    inodes = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    if not inodes:
        return "another process"
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            for entry in (folder / "fd").iterdir():
                if str(entry.readlink()) in inodes:
                    name = (folder / "comm").read_text().strip()
                    return f"process {folder.name} ({name})"
        except OSError:  # ended meanwhile, or another user's
            continue
    return "another process"


def _listening_inodes(port: int) -> set[str]:
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if int(fields[1].rpartition(":")[2], 16) == port and fields[3] == _LISTENING:
                found.add(fields[9])
    return found
