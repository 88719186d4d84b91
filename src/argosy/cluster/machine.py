"""What this machine has."""

import os
from pathlib import Path

# Where the kernel says how much a container may take: cgroup v2, then v1.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_bytes() -> int:
    """Return the memory of this machine, or of the container this process runs in."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in _LIMITS:
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        if text.isdecimal():
            total = min(total, int(text))
    return total


def process_memory_bytes(pid: int) -> int:
    """Return the memory a process has of its own, swapped out parts included; 0 if there is no such process.

    Files it has mapped don't count, because the kernel can take those pages back at any time.
    """
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    sizes = (line.split() for line in text.splitlines() if line.startswith(("RssAnon:", "RssShmem:", "VmSwap:")))
    return sum(int(fields[1]) * 1024 for fields in sizes)
