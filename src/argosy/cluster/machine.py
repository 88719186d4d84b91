"""What this machine has."""

import os
from pathlib import Path

# Where the kernel says how much a container may take: cgroup v2, then v1.
_USED = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
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


def free_memory_bytes() -> int:
    """Return the memory that could be used now without swapping, of this machine or its container; 0 when not known."""
    free = 0
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return 0
    for limit, used in _USED:
        try:
            bound, taken = Path(limit).read_text().strip(), Path(used).read_text().strip()
        except OSError:
            continue
        if bound.isdecimal() and taken.isdecimal():
            free = min(free, max(0, int(bound) - int(taken)))
    return free


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
