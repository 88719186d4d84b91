"""Replica processes: as many of each version as wanted, the dead and the sick replaced, the superfluous drained."""

import random
import sys
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from argosy.cluster.launcher import Launcher, ProcessInfo, ProcessSpec
from argosy.core.clock import Clock
from argosy.core.errors import ArgosyError, IntegrityError, InvalidInput, NotFound, PluginError
from argosy.core.units import format_size
from argosy.operate.desired import Target
from argosy.operate.layout import Wanted
from argosy.operate.rollout import READY_LIMIT_S
from argosy.serve.control import GatewayStatus, ReplicaStatus

ROLE = "replica"
ENTRY = "argosy.serve.replica:main"

FAILED_STARTS = 3
"""So many ends in a row, none after `PROVEN_S` of being ready, and the version counts as unable to run."""
PROVEN_S = 10.0
"""A replica that was ready for so long has proven that its version can run."""
BACKOFF_S = 0.5
"""Time before a version's replicas are started again when the last start came to nothing, doubled each time. One that
ended while it served is replaced at this pace whatever came before: a start that works costs about one CPU second."""
MAX_BACKOFF_S = 30.0
LOADING_S = 5.0
"""A replica that takes longer to be ready no longer holds up the start of others: it may wait for something."""
LOST_S = 10.0
"""A living replica that has been connected and is not for so long is replaced. It dials again every second or less."""
FROZEN_S = 5.0
"""A frozen replica may thaw for so long. A stand-in is started at once, and goes if the frozen one thaws first."""
DRAIN_S = 30.0
"""A drain that takes longer is cut: it is the gateway's default deadline of a request."""
STOP_GRACE_S = 0.3
"""A drained replica has nothing in its hands. The controller waits for its end, so it is short."""
RUNAWAY_MEMORY = 1.5
"""A replica that has so many times the memory it may take is ended at once, before the machine has none left."""
KEPT_FAILURES = 5
"""Ended processes whose logs stay for the user to read."""

_HOPELESS = (IntegrityError, PluginError, InvalidInput, NotFound)
"""Errors that the next start would only repeat."""

MakeConfig = Callable[[str, Wanted], dict[str, Any]]
"""A replica's name, and what is wanted of it, to its config."""


class Replica(msgspec.Struct, frozen=True):
    """One living replica process, with what the gateway says of it."""

    name: str
    key: str
    started: float
    state: str
    """starting (not connected), else as the gateway says: ready, draining, drained, frozen, faulty; or outgrown: ready,
    but with more memory than it may take, so it goes when a stand-in is ready; or outdated: ready, but with another
    number of threads than is wanted, so it goes likewise."""
    memory_bytes: int = 0

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests."""
        return self.state in ("ready", "outgrown", "outdated")

    @property
    def is_ailing(self) -> bool:
        """Whether it gets a stand-in."""
        return self.state in ("frozen", "outgrown", "outdated")

    @property
    def is_staying(self) -> bool:
        """Whether it counts towards what is wanted."""
        return self.state not in ("draining", "drained")


class _Failures(msgspec.Struct):
    count: int = 0
    vain: int = 0
    """Of these, the last ones that never got ready."""
    reason: str = ""
    next_at: float = 0.0
    is_hopeless: bool = False


def version_key(digest: str) -> str:
    """Return what names of processes say of a version: enough of its digest to tell it from the others of a home."""
    return digest.removeprefix("sha256:")[:12]


def replica_name(target: Target, nonce: str) -> str:
    """Return a process's name that people can read and `key_of` can take apart."""
    readable = (
        "".join(c if (c.isascii() and c.isalnum()) or c in "._" else "-" for c in target.ref).strip("-.") or "version"
    )
    return f"{ROLE}-{readable[:60].replace('..', '--')}-{version_key(target.digest)}-{nonce}"


def key_of(name: str) -> str:
    """Return the version's key in a replica's name."""
    parts = name.rsplit("-", 2)
    return parts[-2] if len(parts) == 3 else ""


class Replicas:
    """The supervisor. What it knows beyond the launcher's records is only how often versions failed lately."""

    def __init__(
        self,
        launcher: Launcher,
        clock: Clock,
        randomness: random.Random,
        make_config: MakeConfig,
        *,
        memory_bytes: int = 0,
        at_once: int = 0,
        report: Callable[..., None] | None = None,
    ) -> None:
        """`memory_bytes`: what a replica may take where its endpoint says nothing, 0 for no bound.

        `at_once`: how many replicas may be loading at a time, 0 for any number. Those of versions of which none is
        ready come first, so that on a small machine the first answer does not wait for the second replica.
        """
        self._launcher = launcher
        self._memory_bytes = memory_bytes
        self._at_once = at_once
        self._report = report or _say_nothing
        self._bounds: dict[str, int] = {}
        """For each version's key, the memory a replica of it may take."""
        self._outgrown: set[str] = set()
        self._threads: dict[str, int] = {}
        """For each version's key, the threads that its replicas should have."""
        self._clock = clock
        self._random = randomness
        self._make_config = make_config
        self._failures: dict[str, _Failures] = {}
        self._seen_ended: set[str] | None = None
        self._ready_since: dict[str, float] = {}
        self._absent_since: dict[str, float] = {}
        self._draining_since: dict[str, float] = {}
        self._frozen_since: dict[str, float] = {}
        self.living: list[Replica] = []

    def observe(self, status: GatewayStatus | None) -> None:
        """Look at the processes, and at what the gateway says of them; None: it can't be asked."""
        connected = {replica.id: replica for replica in status.replicas} if status else {}
        processes = self._launcher.list(ROLE)
        self._note_ended([info for info in processes if not info.alive])
        self.living = [self._seen(info, connected.get(info.name)) for info in processes if info.alive]
        if status is None:
            self._absent_since.clear()  # it is the gateway that is absent
            self._frozen_since.clear()
        else:
            self._note_states()

    def ready(self, digest: str) -> int:
        """Return how many replicas of a version can take requests now."""
        key = version_key(digest)
        return sum(1 for replica in self.living if replica.key == key and replica.is_ready)

    def failed(self, digest: str) -> str:
        """Return why a version can't run, empty as long as there is hope."""
        failures = self._failures.get(version_key(digest))
        if failures is None or not (failures.is_hopeless or failures.count >= FAILED_STARTS):
            return ""
        return failures.reason

    def start_missing(self, wanted: Mapping[str, Wanted]) -> None:
        """Start what is wanted and not there, with back-off where it failed before."""
        now = self._clock.monotonic()
        self._bounds = {version_key(digest): self._bound(want) for digest, want in wanted.items()}
        self._threads = {version_key(digest): want.threads for digest, want in wanted.items()}
        self._failures = {key: failures for key, failures in self._failures.items() if key in self._bounds}
        room = self._room()
        for digest, want in sorted(wanted.items(), key=lambda item: self.ready(item[0]) > 0):
            key = version_key(digest)
            missing = self._missing(key, want.replicas)
            failures = self._failures.get(key)
            if failures is not None and failures.count:
                missing = min(missing, 1) if now >= failures.next_at else 0
            for _ in range(min(missing, room)):
                self._start(want)
                room -= 1

    def stop_sick(self) -> None:
        """End replicas that live but can't work, so that the next look replaces them."""
        for replica in list(self.living):
            reason = self._sickness(replica)
            if reason:
                was_ready = replica.name in self._ready_since
                self._stop(replica)
                self._note_failure(replica.key, reason, was_ready=was_ready)

    def stop_extras(self, wanted: Mapping[str, Wanted], routed: set[str], drain: Callable[[str], None] | None) -> bool:
        """Drain, then stop, what is not wanted; return whether some of that is still under way.

        `routed`: versions that may still get requests; those are left alone until they are not. `drain` is None when
        there is no gateway to ask.
        """
        counts = {version_key(digest): want.replicas for digest, want in wanted.items()}
        open_keys = {version_key(digest) for digest, want in wanted.items() if want.is_open}
        routed_keys = {version_key(digest) for digest in routed}
        is_busy = False
        for key in sorted({replica.key for replica in self.living}):
            if key in routed_keys and key not in counts:
                is_busy = True
                continue
            for replica in self._extras(key, counts.get(key, 0), is_open=key in open_keys):
                is_busy = True
                if replica.state in ("starting", "frozen") or drain is None:
                    self._stop(replica)  # it has nothing in its hands
                    if replica.state == "frozen" and counts.get(key):
                        self._note_failure(key, "it was silent until its stand-in was ready", was_ready=True)
                else:
                    if replica.state == "outgrown" and counts.get(key) and replica.name not in self._draining_since:
                        self._note_failure(key, self._grown(replica), was_ready=True)
                    drain(replica.name)
                    self._draining_since.setdefault(replica.name, self._clock.monotonic())
        return self._stop_drained() or is_busy

    def stop_all(self) -> None:
        """Stop every replica."""
        for replica in list(self.living):
            self._stop(replica)

    def _room(self) -> int:
        """Return how many replicas may be started now."""
        if not self._at_once:
            return sys.maxsize
        loading = [r for r in self.living if r.state == "starting" and self._clock.now() - r.started < LOADING_S]
        return max(0, self._at_once - len(loading))

    def _missing(self, key: str, wanted: int) -> int:
        staying = [replica for replica in self.living if replica.key == key and replica.is_staying]
        states = {replica.state for replica in staying}
        # Stand-ins come one by one: if it is the machine that can't keep up, more would not help it.
        is_ailing = any(replica.is_ailing for replica in staying)
        return wanted - len(staying) + (is_ailing and "starting" not in states)

    def _extras(self, key: str, count: int, *, is_open: bool) -> list[Replica]:
        staying = [replica for replica in self.living if replica.key == key and replica.is_staying]
        # The ready ones are kept before others, the old before the young: so the last ready one never goes.
        staying.sort(key=lambda replica: (replica.state != "ready", replica.started, replica.name))
        working = [replica for replica in staying if not replica.is_ailing]
        # Those that still answer are kept before those that don't.
        ailing = sorted((replica for replica in staying if replica.is_ailing), key=lambda replica: not replica.is_ready)
        ready = sum(1 for replica in working if replica.state == "ready")
        # Where it is not known yet how many do best, what is there from before stays.
        return ([] if is_open else working[count:]) + ailing[max(0, count - ready) :]

    def _stop_drained(self) -> bool:
        now = self._clock.monotonic()
        is_busy = False
        for replica in [r for r in self.living if not r.is_staying]:
            since = self._draining_since.setdefault(replica.name, now)
            if replica.state == "drained" or now - since > DRAIN_S:
                self._stop(replica)
            else:
                is_busy = True
        return is_busy

    def _start(self, want: Wanted) -> None:
        name = replica_name(want.target, f"{self._random.getrandbits(24):06x}")
        config = self._make_config(name, msgspec.structs.replace(want, memory_bytes=self._bound(want)))
        spec = ProcessSpec(name=name, role=ROLE, entry=ENTRY, config=config, threads=want.threads)
        try:
            self._launcher.start(spec)
        except ArgosyError as error:
            self._note_failure(version_key(want.target.digest), error.message, was_ready=False)
            return
        self.living.append(Replica(name, key_of(name), self._clock.now(), "starting"))

    def _stop(self, replica: Replica) -> None:
        if self._seen_ended is not None:
            self._seen_ended.add(replica.name)
        self._launcher.stop(replica.name, STOP_GRACE_S)
        self._launcher.forget(replica.name)
        self.living = [other for other in self.living if other.name != replica.name]

    def _bound(self, want: Wanted) -> int:
        return want.memory_bytes or self._memory_bytes

    def _seen(self, info: ProcessInfo, status: ReplicaStatus | None) -> Replica:
        state = _state(status)
        bound = self._bounds.get(key_of(info.name), 0)
        if state == "ready" and bound and (info.memory_bytes > bound or info.name in self._outgrown):
            # Once and for good: what it gives back now it takes again.
            state = "outgrown"
        elif state == "ready" and status is not None and self._is_outdated(info.name, status):
            state = "outdated"
        found = Replica(info.name, key_of(info.name), info.started, state, info.memory_bytes)
        if state == "outgrown" and info.name not in self._outgrown:
            self._outgrown.add(info.name)
            self._report("replica_outgrown", replica=info.name, memory_bytes=info.memory_bytes, bound_bytes=bound)
        return found

    def _is_outdated(self, name: str, status: ReplicaStatus) -> bool:
        return bool(status.threads) and status.threads != self._threads.get(key_of(name), status.threads)

    def _grown(self, replica: Replica) -> str:
        bound = self._bounds.get(replica.key, 0)
        return f"it grew to {format_size(replica.memory_bytes)} of memory, {format_size(bound)} are allowed"

    def _note_ended(self, ended: list[ProcessInfo]) -> None:
        if self._seen_ended is None:
            # What ended before this controller's time is not its versions' present trouble.
            self._seen_ended = {info.name for info in ended}
        for info in ended:
            if info.name not in self._seen_ended:
                self._seen_ended.add(info.name)
                self._launcher.stop(info.name)  # what it had started and could not end itself
                if info.exit_code not in (0, -15):
                    error = self._launcher.error(info.name)
                    reason = self._reason(info, error)
                    self._note_failure(
                        key_of(info.name),
                        reason,
                        was_ready=info.name in self._ready_since,
                        is_hopeless=isinstance(error, _HOPELESS),
                    )
        for info in sorted(ended, key=lambda info: info.started)[:-KEPT_FAILURES]:
            self._launcher.forget(info.name)
            self._seen_ended.discard(info.name)

    def _reason(self, info: ProcessInfo, error: ArgosyError | None) -> str:
        if error is not None:
            return error.message
        if info.exit_code is not None and info.exit_code < 0:
            return f"it was ended by signal {-info.exit_code}"
        lines = [line for line in self._launcher.log_tail(info.name, 5).splitlines() if line.strip()]
        said = f": {lines[-1].strip()[:300]}" if lines else ""
        return f"it ended with exit code {info.exit_code}{said}"

    def _note_failure(self, key: str, reason: str, *, was_ready: bool, is_hopeless: bool = False) -> None:
        self._report("replica_failed", version=key, reason=reason[:300])
        failures = self._failures.setdefault(key, _Failures())
        failures.count += 1
        failures.vain = 0 if was_ready else failures.vain + 1
        failures.reason = reason
        failures.is_hopeless = is_hopeless
        delay = min(MAX_BACKOFF_S, BACKOFF_S * 2.0 ** min(max(failures.vain - 2, 0), 16)) if failures.count > 1 else 0.0
        if is_hopeless:
            delay = MAX_BACKOFF_S
        failures.next_at = self._clock.monotonic() + delay * self._random.uniform(0.8, 1.2)

    def _note_states(self) -> None:
        now = self._clock.monotonic()
        living = {replica.name for replica in self.living}
        for table in (self._ready_since, self._absent_since, self._draining_since, self._frozen_since):
            for name in [name for name in table if name not in living]:
                del table[name]
        self._outgrown &= living
        for replica in self.living:
            _since(self._absent_since, replica.name, now, holds=replica.state == "starting")
            _since(self._frozen_since, replica.name, now, holds=replica.state == "frozen")
            if replica.is_ready:
                since = self._ready_since.setdefault(replica.name, now)
                if now - since >= PROVEN_S and replica.state == "ready":
                    self._failures.pop(replica.key, None)

    def _sickness(self, replica: Replica) -> str:
        now = self._clock.monotonic()
        if replica.state == "faulty":
            return "it failed requests that other replicas of its version answered"
        bound = self._bounds.get(replica.key, 0)
        if bound and replica.memory_bytes > RUNAWAY_MEMORY * bound:
            return self._grown(replica)
        if now - self._frozen_since.get(replica.name, now) > FROZEN_S:
            return f"it was silent for {FROZEN_S:g} s"
        absent = now - self._absent_since.get(replica.name, now)
        if replica.name in self._ready_since and absent > LOST_S:
            return f"it lost the gateway and did not come back within {LOST_S:g} s"
        return f"it was not ready within {READY_LIMIT_S:g} s" if absent > READY_LIMIT_S else ""


def _say_nothing(event: str, **fields: Any) -> None:
    del event, fields


def _state(status: ReplicaStatus | None) -> str:
    return status.state if status is not None else "starting"


def _since(table: dict[str, float], name: str, now: float, *, holds: bool) -> None:
    if holds:
        table.setdefault(name, now)
    else:
        table.pop(name, None)
