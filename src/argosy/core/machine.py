"""How much of this machine a process may use, and what kind of machine it is. Linux; no heavy imports."""

import hashlib
import os
import re
from pathlib import Path

_ROOT = Path("/")


def usable_cores(root: Path = _ROOT) -> int:
    """Return how many cores this process may use: its affinity, and the quota of its control group, rounded down."""
    cores = len(os.sched_getaffinity(0))
    quota = _quota(root)
    return max(1, min(cores, int(quota))) if quota else cores


def free_memory(root: Path = _ROOT) -> int:
    """Return the bytes that may still be used before something is swapped or killed."""
    free = _meminfo(root).get("MemAvailable", 0)
    limit = _memory_limit(root)
    if limit:
        used = _number(_group(root) / "memory.current") or _number(root / "sys/fs/cgroup/memory/memory.usage_in_bytes")
        free = min(free, max(0, limit - (used or 0)))
    return free


def total_memory(root: Path = _ROOT) -> int:
    """Return the bytes of memory that all processes of this machine, or of this control group, have together."""
    limit = _memory_limit(root)
    total = _meminfo(root).get("MemTotal", 0)
    return min(total, limit) if limit else total


def worked_s(root: Path = _ROOT) -> float:
    """Return the CPU seconds that all cores together have worked since some moment, those taken by a host included."""
    fields = _text(root / "proc/stat").partition("\n")[0].split()[1:9]
    ticks = [int(field) for field in fields if field.isdigit()]
    # user, nice, system, idle, iowait, irq, softirq, steal (proc(5)); user holds guests already
    return sum(ticks[:3] + ticks[5:8]) / os.sysconf("SC_CLK_TCK")


def cpu_name(root: Path = _ROOT) -> str:
    """Return which processor this is, with what it can do as a digest."""
    fields: dict[str, str] = {}
    for line in _text(root / "proc/cpuinfo").partition("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    flags = hashlib.sha256((fields.get("flags") or fields.get("Features") or "").encode()).hexdigest()[:8]
    parts = [fields.get("model name") or fields.get("CPU part") or "unknown"]
    parts += [f"{name} {fields[name]}" for name in ("cpu family", "model", "stepping") if name in fields]
    return ", ".join([*parts, f"flags {flags}"])


def version_of(package: str) -> str:
    """Return a package's version without importing it, and without the package that reads metadata: 50 ms."""
    from importlib.util import find_spec

    spec = find_spec(package)
    text = _text(Path(spec.origin)) if spec is not None and spec.origin else ""
    found = re.search(r"^__version__\s*=\s*[\"']([^\"']+)", text, re.MULTILINE)
    return found[1] if found else "unknown"


def _quota(root: Path) -> float:
    """Return the cores that the control group grants, 0 for no limit."""
    given = _text(_group(root) / "cpu.max").split()
    if len(given) == 2 and given[0] != "max":
        return int(given[0]) / int(given[1])
    former = root / "sys/fs/cgroup/cpu"
    quota, period = _number(former / "cpu.cfs_quota_us"), _number(former / "cpu.cfs_period_us")
    return quota / period if quota and quota > 0 and period else 0.0


def _memory_limit(root: Path) -> int:
    found = _number(_group(root) / "memory.max") or _number(root / "sys/fs/cgroup/memory/memory.limit_in_bytes")
    # Version 1 writes a number near 2**63 for no limit.
    return found if found and found < 1 << 60 else 0


def _group(root: Path) -> Path:
    """Return the folder of this process's control group (version 2)."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        if line.startswith("0::"):
            found = root / "sys/fs/cgroup" / line[3:].lstrip("/")
            # In a container the path may be the host's; its own group is mounted at the top.
            return found if found.is_dir() else root / "sys/fs/cgroup"
    return root / "sys/fs/cgroup"


def _meminfo(root: Path) -> dict[str, int]:
    found = {}
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        number = value.split()
        if number and number[0].isdigit():
            found[name] = int(number[0]) * 1024
    return found


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
