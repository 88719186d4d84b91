"""What calibration found out about one version on one machine, and what follows from it. Plain values, no arrays."""

import msgspec

from argosy.core.config import Config
from argosy.core.units import format_time
from argosy.serve.wire import Advice

FORMAT = 2
"""Raised when what is measured, or what follows from it, changes: older profiles are measured again."""


class Host(Config, frozen=True):
    """What a measurement depends on, beside the version."""

    cpu: str
    """Model name, family, stepping, and a short digest of the instruction sets."""
    cores: int
    """Cores this process may use, by affinity and by the quota of its control group."""
    memory_bytes: int
    """Memory of the machine or of the control group, rounded to 256 MiB."""
    runtime: str
    """Name and version of the library that runs models."""


class Batching(Config, frozen=True):
    """How a replica with a certain number of threads wants to be fed. The fields are those of `wire.Hello`."""

    max_batch: int = 1
    run_s: float = 0.0
    """Of the longest run that these bounds allow."""
    row_s: float = 0.0
    """Of one row alone; a text of middle length."""
    max_bytes: int = 0
    spare: float = 0.0
    padding: float = 1.0

    def in_words(self) -> list[str]:
        """Return in plain sentences how a replica is fed."""
        if self.max_batch == 1:
            return ["rows run one by one: together they would not be cheaper"]
        run, alone = format_time(self.run_s), format_time(self.row_s)
        found = [f"up to {self.max_batch} rows run together, in {run} at most; a row alone takes {alone}"]
        if self.max_bytes:
            found.append(f"but at most {self.max_bytes} bytes, rows times the longest: beyond, batches are slower")
        if self.spare:
            found.append(f"texts may be padded by some {self.spare:.0f} bytes to share a run; more would not pay")
        return found

    def check(self) -> bool:
        """Return whether the values are possible."""
        return (
            1 <= self.max_batch <= 4096
            and 0 <= self.run_s < 1e6
            and 0 <= self.row_s < 1e6
            and self.max_bytes >= 0
            and 0 <= self.spare <= 1e12
            and 1 <= self.padding <= 1e6
        )


class Point(Config, frozen=True):
    """One size of batch that was measured."""

    rows: int
    length_bytes: int
    """Of each row: the text, or the inputs together; 0 where all rows are alike."""
    seconds: float
    """Of one run."""


class Shape(Config, frozen=True):
    """One way to use all cores that was measured."""

    replicas: int
    threads: int
    rows_s: float
    """Rows per second of all replicas together."""
    row_s: float
    """Seconds of one row alone in one of them."""


class Profile(Config, frozen=True):
    """The result of a calibration, as it is stored and shown."""

    version: str
    """Digest."""
    host: Host
    measured: float
    """Seconds since 1970."""
    took_s: float
    batching: dict[int, Batching]
    """By threads of a replica."""
    replicas: int
    threads: int
    alone: int
    """Threads of a replica where the user wants only one."""
    most: int
    """Replicas for which there is memory."""
    solo: int
    """Threads of a run that has the machine to itself."""
    memory_bytes: int
    """Of one replica."""
    is_quiet: bool = True
    """Whether the machine was idle enough to compare ways to use its cores."""
    points: tuple[Point, ...] = ()
    """With one thread."""
    shapes: tuple[Shape, ...] = ()
    reasons: tuple[str, ...] = ()
    """Plain sentences, shown to users."""
    format: int = FORMAT

    @property
    def advice(self) -> Advice:
        """What the controller needs of it."""
        return Advice(self.replicas, self.threads, self.alone, self.most, self.solo)

    def summary(self) -> str:
        """Return the choice in a few words.

        >>> host = Host(cpu="c", cores=2, memory_bytes=0, runtime="r")
        >>> Profile(version="d", host=host, measured=0, took_s=1, batching={1: Batching(max_batch=8)}, replicas=2,
        ...         threads=1, alone=2, most=9, solo=1, memory_bytes=0).summary()
        '2 replicas x 1 thread, batches up to 8'
        """
        return f"{shape_text(self.replicas, self.threads)}, {batch_text(self.batching.get(self.threads))}"


def shape_text(replicas: int, threads: int) -> str:
    """Return replicas and threads in words.

    >>> shape_text(1, 2)
    '1 replica x 2 threads'
    """
    return f"{replicas} replica{'s' * (replicas != 1)} x {threads} thread{'s' * (threads != 1)}"


def batch_text(batching: Batching | None) -> str:
    """Return the largest batch in words."""
    return f"batches up to {batching.max_batch}" if batching is not None and batching.max_batch > 1 else "no batches"


def decode(data: bytes, version: str, host: Host) -> Profile | None:
    """Read a stored profile; None unless it is whole, of this version and machine, and says nothing impossible."""
    try:
        found = msgspec.json.decode(data, type=Profile)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return None
    is_sane = (
        (found.format, found.version, found.host) == (FORMAT, version, host)
        and bool(found.batching)
        and all(1 <= threads <= 1024 and batching.check() for threads, batching in found.batching.items())
        and 1 <= found.replicas <= found.most <= 1024
        and 1 <= found.threads <= 1024
        and 1 <= found.alone <= 1024
        and 1 <= found.solo <= 1024
    )
    return found if is_sane else None


def encode(profile: Profile) -> bytes:
    """Return a profile as it is stored."""
    return msgspec.json.format(msgspec.json.encode(profile), indent=2) + b"\n"
