"""A replica's feeding, kept up to date: from the stored profile, and from a calibration where there is none.

The calibration is a process of its own, with the lowest priority, so it takes only what nobody else needs, and cannot
stand in the way of an answer: a thread would have to share the interpreter with the one that serves. It ends with its
replica, because it watches a pipe that the replica holds. One runs at a time in a home; the others wait for its file.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple, Protocol

import msgspec

from argosy.cluster.machine import process_memory_bytes
from argosy.core.clock import Clock
from argosy.core.config import Config, own_environment
from argosy.core.files import FileLock
from argosy.core.logs import get_logger
from argosy.serve.control import ReplicaConfig
from argosy.serve.host import free_memory
from argosy.serve.profile import Batching, Host, Profile, decode
from argosy.serve.profile_store import ProfileStore
from argosy.serve.wire import Advice

log = get_logger()

MODULE = "argosy.serve.calibrating"
_TRIES = 3
_AGAIN_S, _QUIETER_S = 30.0, 60.0
"""Until the next try: after one that came to nothing, and after one on a busy machine; longer each time."""
_MOST_S = 600.0
"""A calibration that is not done by then never ends, or never gets a core; it is ended and tried again."""


class Request(Config, frozen=True):
    """What a calibration process is told, as one line of JSON on its standard input."""

    replica: ReplicaConfig
    """Which version, where from, and the threads that batches are to be measured for too."""
    is_gentle: bool = True
    """Whether it takes only the time that nobody else needs."""


class Child(Protocol):
    """A calibration under way."""

    def result(self) -> bytes | None:
        """Return what it wrote when it has ended, empty if it failed; None while it runs."""
        ...

    def kill(self) -> None:
        """End it; harmless when it has ended."""
        ...


class Process:
    """A calibration in a process."""

    def __init__(self, request: Request) -> None:
        # -P: what lies in the folder it is started from is not imported.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            close_fds=True,
            env=own_environment(),
        )
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(request) + b"\n")
        self._process.stdin.flush()

    def result(self) -> bytes | None:
        """Return what it wrote when it has ended, empty if it failed."""
        if self._process.poll() is None:
            return None
        return self._read()

    def wait(self, seconds: float) -> bytes:
        """Wait for its end, at most so long, and return what it wrote."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
        return self._read()

    def kill(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> bytes:
        # A profile is far smaller than what a pipe holds, so it could always be written.
        with self._process:
            found = self._process.stdout.read() if self._process.stdout is not None else b""
        return found if self._process.returncode == 0 else b""


class Feed(NamedTuple):
    """How a replica wants to be fed, and what it recommends."""

    batching: Batching
    advice: Advice | None


class Tuning:
    """One replica's side of calibrating."""

    def __init__(
        self,
        config: ReplicaConfig,
        store: ProfileStore,
        clock: Clock,
        *,
        start: Callable[[Request], Child] = Process,
        has_memory: Callable[[], bool] | None = None,
    ) -> None:
        self._config = config
        self._store = store
        self._clock = clock
        self._start = start
        self._has_memory = has_memory or _has_memory
        self._stamp = (0, 0)
        self._is_settled = False
        self._tries = 0
        self._next_try = -1.0
        self._child: Child | None = None
        self._child_since = 0.0
        self._lock: FileLock | None = None

    @property
    def is_settled(self) -> bool:
        """Whether nothing is being measured, or going to be."""
        return self._is_settled

    @property
    def host(self) -> Host:
        """The machine that profiles are of."""
        return self._store.host

    def stored(self) -> Feed | None:
        """Return what the stored profile says, if there is one for this replica's threads."""
        self._stamp = self._store.stamp(self._config.digest)
        return self._feed(self._store.read(self._config.digest))

    def keep(self, profile: Profile) -> Feed:
        """Store a profile and return what it says; what can't be stored is not recommended to anybody."""
        kept = self._store.keep(profile)
        self._stamp = self._store.stamp(self._config.digest)
        feed = self._feed(profile)
        assert feed is not None, "a calibration measures for its replica's threads"
        if kept is None:
            # Another replica would measure again, find something slightly different, and be followed in its turn.
            log.warning("profile_not_kept", version=self._config.ref)
            return Feed(feed.batching, None)
        return feed

    def look(self) -> Feed | None:
        """Return what is new, and begin or end a calibration if that is due. Costs a look at a file's record."""
        stamp = self._store.stamp(self._config.digest)
        if stamp != self._stamp:
            self._stamp = stamp
            found = self._feed(self._store.read(self._config.digest))
            if found is not None:
                self.close()
                return found
        if self._is_settled:
            return None
        return self._follow() if self._child is not None else self._begin()

    def close(self) -> None:
        """End a calibration that is under way."""
        if self._child is not None:
            self._child.kill()
            self._child = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _feed(self, profile: Profile | None) -> Feed | None:
        batching = profile.batching.get(self._config.threads) if profile is not None else None
        if profile is None or batching is None:
            return None
        # What was measured on a busy machine holds until it could be measured better.
        self._is_settled = profile.is_quiet or self._tries >= _TRIES
        self._next_try = self._clock.monotonic() + _QUIETER_S * (1 + self._tries)
        return Feed(batching, profile.advice)

    def _begin(self) -> Feed | None:
        now = self._clock.monotonic()
        if now < self._next_try:
            return None
        lock = self._store.lock()
        try:
            is_free = lock.acquire()
        except OSError:
            # No place for a lock, so none for a profile either.
            self._is_settled = True
            return None
        if not is_free:
            return None
        self._lock = lock
        if self._store.stamp(self._config.digest) != self._stamp:
            # Whoever had the lock may have measured this very version.
            self.close()
            return self.stored()
        self._tries += 1
        if not self._has_memory():
            self.close()
            self._put_off("there is no memory for another copy of the version")
            return None
        try:
            self._child, self._child_since = self._start(Request(replica=self._config)), now
        except OSError as error:
            self.close()
            self._put_off(f"the calibration can't be started: {error.strerror}")
        return None

    def _follow(self) -> Feed | None:
        assert self._child is not None
        written = self._child.result()
        if written is None:
            if self._clock.monotonic() - self._child_since > _MOST_S:
                self.close()
                self._put_off(f"the calibration was not done after {_MOST_S:.0f} s")
            return None
        profile = decode(written, self._config.digest, self._store.host) if written else None
        if profile is None or self._config.threads not in profile.batching:
            self.close()
            self._put_off("the calibration failed")
            return None
        feed = self.keep(profile)
        self.close()
        log.info("calibrated", version=self._config.ref, choice=profile.summary(), took_s=profile.took_s)
        return feed

    def _put_off(self, why: str) -> None:
        log.warning("calibration_put_off", version=self._config.ref, why=why)
        self._next_try = self._clock.monotonic() + _AGAIN_S * max(1, self._tries)
        self._is_settled = self._tries >= _TRIES


def _has_memory() -> bool:
    return free_memory() > 3 * process_memory_bytes(os.getpid())
