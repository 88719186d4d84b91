"""How processes that train are started."""

from typing import Any

from argosy.cluster.launcher import ProcessSpec

_MEMORY = {
    "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1099511627776:glibc.malloc.trim_threshold=1099511627776"
    ":glibc.malloc.top_pad=67108864:glibc.malloc.hugetlb=1"
}
"""A training asks for the same memory in every step. By default glibc gives large pieces back to the system at once,
and gets them again page by page, filled with zeros. Other C libraries ignore these settings."""

_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo"}
"""Ranks of a machine that form a group of torch's (`sharded`) listen to that machine only. By default they would listen
at the address of the host's name, to anybody."""


def rank_process(name: str, entry: str, config: dict[str, Any], threads: int) -> ProcessSpec:
    """Return a process of role `rank`, which ends with the one that starts it."""
    return ProcessSpec(
        name=name,
        role="rank",
        entry=entry,
        config=config,
        threads=threads,
        detached=False,
        env=_MEMORY | _LOOPBACK,
    )
