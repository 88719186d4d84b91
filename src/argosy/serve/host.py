"""What of this machine a measurement of serving depends on. Linux; no heavy imports."""

import hashlib
from pathlib import Path

from argosy.core.machine import cpu_name, free_memory, total_memory, usable_cores, version_of, worked_s
from argosy.serve.profile import Host

__all__ = ["free_memory", "host_key", "this_host", "usable_cores", "worked_s"]

_ROUND_BYTES = 256 << 20
_ROOT = Path("/")


def this_host(root: Path = _ROOT) -> Host:
    """Return the machine as profiles name it. `root` is where `proc` and `sys` are."""
    return Host(
        cpu=cpu_name(root),
        cores=usable_cores(root),
        # A kernel's update changes the total by some pages.
        memory_bytes=round(total_memory(root) / _ROUND_BYTES) * _ROUND_BYTES,
        runtime=f"onnxruntime {version_of('onnxruntime')}",
    )


def host_key(host: Host) -> str:
    """Return a short name of a machine for files."""
    return hashlib.sha256(f"{host.cpu}|{host.cores}|{host.memory_bytes}|{host.runtime}".encode()).hexdigest()[:12]
