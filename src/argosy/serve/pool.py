"""The gateway's side of replicas: who is connected, with what in hand, and who of them may be handed work.

A replica is trusted to compute, never to survive: its batch stays here until its answer has come, so its death, silence
or garbage costs nothing but time.
"""

import asyncio
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Protocol

from argosy.core.clock import Clock
from argosy.core.errors import InvalidInput
from argosy.core.logs import get_logger
from argosy.core.tensors import Signature
from argosy.serve import wire
from argosy.serve.arena import LEAST_BYTES, MOST_BYTES, Arena
from argosy.serve.batcher import RUNNING, Batch, Trouble, VersionQueue, Work
from argosy.serve.control import GatewayConfig, ReplicaStatus, VersionLoad
from argosy.serve.ejection import Conduct
from argosy.serve.glance import QUICK_S, Glance
from argosy.serve.values import item_size

log = get_logger()

READY, DRAINING, DRAINED, FROZEN, FAULTY = "ready", "draining", "drained", "frozen", "faulty"
# Runs that fail as a whole, one after the other, while another replica of the version works: then it is this replica.
_FAULTY_AFTER = 5
# A run this many times longer than at calibration, and at least so many seconds, never ends.
_RUNAWAY_FACTOR, _RUNAWAY_S = 100.0, 10.0
# A frame up to this size is copied together for one write.
_JOINED_BYTES = 256 << 10
# With more replicas the gateway has other things to do than to look at one.
_FEW = 8
# A replica that was told to stop goes on for its version's last requests for so long; launchers give 5 s of grace.
_LEAVING_S = 3.0


class Observer(Protocol):
    """Whoever must know what happens here: the data plane."""

    def ready_changed(self) -> None:
        """Take the news that a version has got its first ready replica, or lost its last."""
        ...

    def dispatched(self, ref: str, works: list[Work], now: float) -> None:
        """Take the news that a batch was handed to a replica of the version `ref`."""
        ...

    def ran(self, ref: str, run_s: float) -> None:
        """Take the news that a replica of the version `ref` has run a batch, and how long that took."""
        ...


class Replica:
    """One connected replica."""

    def __init__(
        self, hello: wire.Hello, transport: asyncio.WriteTransport, pool: "Pool", glance: Glance | None = None
    ) -> None:
        self._listen(hello)
        self.state = READY
        self.batch: Batch | None = None
        self.owed = 0
        """Id of the batch it was handed and has not answered, also when that batch was taken away since."""
        self.owed_since = 0.0
        self.answered = 0
        self.failed = 0
        self.failed_runs = 0
        self.conduct = Conduct()
        self.last_heard = pool.clock.monotonic()
        self.leaving_since = math.inf
        self.transport = transport
        self._pool = pool
        self._arena: Arena | None = None
        self._can_share = True
        self._glance = glance
        self.asked_solo = 0
        """Threads of the engine it was asked to get for runs that have the machine to themselves."""
        self._run_s = math.inf
        """What its last run took to compute."""
        self._answer_bytes = 0.0
        """The most that it has answered per row."""

    def _listen(self, hello: wire.Hello) -> None:
        self.hello = hello
        self.max_batch = hello.max_batch
        self.max_bytes = hello.max_bytes
        self.padding = hello.padding
        self.spare = hello.spare

    def greeted(self, hello: wire.Hello) -> None:
        """Take its newer word on how to feed it; InvalidInput if it says that it is another replica or version."""
        if (hello.replica, hello.digest) != (self.hello.replica, self.hello.digest):
            raise InvalidInput(
                f"replica '{self.hello.replica}' calls itself '{hello.replica}' all at once", code="bad_frame"
            )
        self._listen(hello)
        log.info("replica_calibrated", replica=hello.replica, batch=hello.max_batch, threads=hello.threads)

    def run(self, works: list[Work], now: float) -> None:
        """Send a batch: input after input, the raw bytes of all requests one behind the other."""
        self.batch = Batch(self._pool.next_batch(), works, self.hello.replica)
        self.owed, self.owed_since = self.batch.id, now
        first = works[0].inputs
        body: list[bytes | memoryview]
        if len(works) == 1:
            rows: tuple[int, ...] = (first.rows,)
            inputs = tuple([(t.name, t.datatype, t.shape) for t in first.tensors])
            body = [t.data for t in first.tensors]
            due = works[0].due
        else:
            rows = tuple([work.inputs.rows for work in works])
            total = sum(rows)
            inputs = tuple([(t.name, t.datatype, (total, *t.shape[1:])) for t in first.tensors])
            body = [work.inputs.tensors[i].data for i in range(len(inputs)) for work in works]
            due = max([work.due for work in works])
        is_alone = (self._run_s < QUICK_S or self.hello.solo > 0) and self._is_alone()
        is_solo = is_alone and self._pool.queues[self.hello.digest].solo is self
        size = sum([len(piece) for piece in body])
        room = max(size, int(self._answer_bytes * sum(rows)))
        if room >= LEAST_BYTES and size and self._can_share and self._share(room, body):
            assert self._arena is not None
            pieces = wire.encode(wire.Run(self.batch.id, inputs, rows, due, (*self._arena.place, size), is_solo))
        else:
            pieces = wire.encode(wire.Run(self.batch.id, inputs, rows, due, is_solo=is_solo), body)
        if len(pieces) > 2 and size <= _JOINED_BYTES:
            # One small piece instead of many: cheaper than a vector of a hundred.
            self.transport.write(b"".join(pieces))
        else:
            self.transport.writelines(pieces)
        self._pool.observer.dispatched(self.hello.ref, works, now)
        if is_alone and self._run_s < QUICK_S and self._glance is not None and rows == (1,):
            batch = self.owed
            self._glance.begin(lambda: self.owed == batch and self._is_alone())

    def _is_alone(self) -> bool:
        """Return whether nothing else runs or waits: nobody minds if the gateway does nothing for a moment, or if the
        run takes all cores.
        """
        pool = self._pool
        return (
            len(pool.replicas) <= _FEW
            and not pool.queues[self.hello.digest].requests
            and all(other is self or not other.owed for other in pool.replicas.values())
        )

    def _share(self, room: int, body: Sequence[bytes | memoryview]) -> bool:
        """Put a batch into the memory shared with this replica, with room for its answer; False where that can't be
        had.
        """
        if room > MOST_BYTES:
            return False
        try:
            if self._arena is None or self._arena.place.capacity < room:
                # The former one is free: the replica has answered the batch that was in it.
                self._drop_arena()
                self._arena = Arena(room)
        except OSError as error:
            log.warning("no_shared_memory", replica=self.hello.replica, error=str(error))
            self._can_share = False
            return False
        self._arena.write(body)
        return True

    def _drop_arena(self) -> None:
        arena, self._arena = self._arena, None
        if arena is not None:
            arena.close()

    def done(self, done: wire.Done, body: memoryview) -> None:
        """Take an answer and pass it on; InvalidInput means that it is garbage and the connection must go."""
        if done.batch != self.owed:
            raise InvalidInput(f"an answer for batch {done.batch} came, but {self.owed} is owed", code="bad_frame")
        if done.shared:
            if self._arena is None or not 0 < done.shared <= self._arena.place.capacity:
                raise InvalidInput("an answer is announced in memory that is not shared", code="bad_frame")
            body = self._arena.read(done.shared)
        if done.error[0] == wire.NO_ARENA:
            self._can_share, self.owed = False, 0
            self._drop_arena()
            self.give_up(wire.NO_ARENA, done.error[1])
            return
        batch = self.batch
        works = batch.works if batch is not None else []
        failures = {failure.index: failure for failure in done.failures} if done.failures else {}
        # Before anything is changed: an answer that can't be split leaves the batch here, for the connection's end.
        # A batch that was taken away (frozen, runaway) has been answered by others: nothing to split.
        answers = (
            split(done.outputs, body, [w for i, w in enumerate(works) if i not in failures] if failures else works)
            if (works and not done.error[0])
            else []
        )
        self.batch, self.owed = None, 0
        self._run_s = done.run_s
        self._pool.observer.ran(self.hello.ref, done.run_s)
        if done.error[0]:
            self.failed_runs += done.error[0] != wire.TOO_LATE
            # A run that fails as a whole is one failure, whoever shared it.
            self._pool.note(self, int(done.error[0] != wire.TOO_LATE), 0)
            self.failed += len(works)
            if batch is not None:
                batch.give_up(Trouble(*done.error, batch.id if len(works) > 1 else 0))
            return
        self.failed_runs = 0
        if works:
            rows = sum([work.inputs.rows for work in works])
            self._answer_bytes = max(self._answer_bytes, len(body) / max(1, rows))
            self._pool.queues[self.hello.digest].ran(len(works), self._pool.clock.monotonic() - self.owed_since, rows)
            own = sum(not failure.is_callers for failure in failures.values()) if failures else 0
            self._pool.note(self, own, len(works) - len(failures))
        self.failed += len(failures)
        self.answered += len(works) - len(failures)
        if failures:
            rest = iter(answers)
            for index, work in enumerate(works):
                failure = failures.get(index)
                outputs = next(rest) if failure is None else ()
                if work.state != RUNNING:
                    continue
                if failure is None:
                    work.answered(outputs)
                else:
                    work.failed(Trouble(failure.code, failure.message, is_callers=failure.is_callers))
        else:
            for work, outputs in zip(works, answers, strict=True):
                if work.state == RUNNING:
                    work.answered(outputs)
        if batch is not None:
            # Calls know their batch; without this, freeing them would take the garbage collector.
            batch.works = []

    def give_up(self, code: str, message: str) -> None:
        """Take its batch away, so that others answer it."""
        batch, self.batch = self.batch, None
        if batch is not None:
            self.failed += len(batch.works)
            batch.give_up(Trouble(code, message, batch.id, is_replayable=True))

    @property
    def is_sick(self) -> bool:
        """Whether it fails so much more than the others of its version that these should go on without it."""
        return self.failed_runs >= _FAULTY_AFTER or self.conduct.is_sick

    def let_go(self) -> None:
        """Free what is held for it: its connection has ended."""
        self._drop_arena()
        if self._glance is not None:
            self._glance.close()

    def status(self) -> ReplicaStatus:
        """Return it as the controller sees it."""
        return ReplicaStatus(
            id=self.hello.replica,
            version=self.hello.digest,
            ref=self.hello.ref,
            pid=self.hello.pid,
            state=self.state,
            in_flight=len(self.batch.works) if self.batch is not None else 0,
            answered=self.answered,
            failed=self.failed,
            max_batch=self.max_batch,
            run_s=self.hello.run_s,
            threads=self.hello.threads,
            advice=self.hello.advice,
            solo=self.hello.solo,
        )


def _soloist(replicas: Sequence[Replica]) -> Replica | None:
    """Return the replica that has an engine for runs that have the machine to themselves; ask one to get it.

    One of a version is enough, and the model is in memory twice there.
    """
    for replica in replicas:
        if replica.hello.solo > replica.hello.threads:
            return replica
    if not any(replica.asked_solo for replica in replicas):
        for replica in replicas:
            threads = replica.hello.advice.solo if replica.hello.advice is not None else 1
            if threads > max(1, replica.hello.threads):
                replica.asked_solo = threads
                replica.transport.writelines(wire.encode(wire.GoSolo(threads)))
                break
    return None


def split(outputs: Sequence[wire.Output], body: memoryview, works: Sequence[Work]) -> list[list[wire.Tensor]]:
    """Return each request's part of a batch's outputs, as views of `body`.

    Raises InvalidInput when sizes and rows don't add up.
    """
    answers: list[list[wire.Tensor]] = [[] for _ in works]
    at = 0
    rows = [work.inputs.rows for work in works]
    total = sum(rows)
    for output in outputs:
        name, datatype, shape = output.name, output.datatype, output.shape
        size = item_size(datatype)
        if len(works) == 1:
            count = math.prod(shape) * size if size else sum(output.cuts)
            answers[0].append(wire.Tensor(name, datatype, shape, body[at : at + count]))
            at += count
            continue
        if not shape or shape[0] != total or (not size and len(output.cuts) != len(works)):
            raise InvalidInput(f"output '{name}' of a batch of {total} has shape {shape}", code="bad_frame")
        row_bytes = math.prod(shape[1:]) * size
        tail = shape[1:]
        one = (1, *tail)
        for index, answer in enumerate(answers):
            count = rows[index] * row_bytes if size else output.cuts[index]
            part = one if rows[index] == 1 else (rows[index], *tail)
            answer.append(wire.Tensor(name, datatype, part, body[at : at + count]))
            at += count
    if at != len(body):
        raise InvalidInput(f"the outputs of a batch need {at} bytes, but {len(body)} came", code="bad_frame")
    return answers


class Pool:
    """All replicas and queues of one gateway."""

    def __init__(self, config: GatewayConfig, clock: Clock, observer: Observer) -> None:
        self.clock = clock
        self.observer = observer
        self.replicas: dict[str, Replica] = {}
        self.queues: dict[str, VersionQueue] = {}
        self.ready: frozenset[str] = frozenset()
        """Digests of the versions that have a ready replica."""
        self._config = config
        self._batches = itertools.count(1)
        self._last_check = self._measured = clock.monotonic()
        self.elastic: frozenset[str] = frozenset()
        """Digests of the versions that can get more replicas."""
        self._solo: frozenset[str] = frozenset()

    def next_batch(self) -> int:
        """Return a fresh id of a batch."""
        return next(self._batches)

    def queue(self, digest: str, signature: Signature) -> VersionQueue:
        """Return the queue of a version, made on first use."""
        found = self.queues.get(digest)
        if found is None:
            found = self.queues[digest] = VersionQueue(
                digest,
                signature,
                max_requests=self._config.queue_requests,
                max_bytes=self._config.queue_bytes,
                wait_s=self._config.queue_wait_s,
            )
            found.is_elastic = digest in self.elastic
        return found

    def set_elastic(self, digests: frozenset[str]) -> None:
        """Say which versions can get more replicas."""
        self.elastic = digests
        for digest, queue in self.queues.items():
            queue.is_elastic = digest in digests

    def set_solo(self, digests: frozenset[str]) -> None:
        """Say of which versions a request that comes alone may be computed by more threads than replicas have."""
        if digests != self._solo:
            self._solo = digests
            self._review()

    def in_flight(self) -> dict[str, int]:
        """Return how many requests of each version run."""
        found: dict[str, int] = {}
        for replica in self.replicas.values():
            if replica.batch is not None:
                found[replica.hello.digest] = found.get(replica.hello.digest, 0) + len(replica.batch.works)
        return found

    def measure(self) -> None:
        """Sum up the load of every version since the last look: the mean of what is seen at each tick.

        A few dozen looks a second cost nothing; counting at every request would.
        """
        now = self.clock.monotonic()
        span, self._measured = now - self._measured, now
        running = self.in_flight()
        for digest, queue in self.queues.items():
            queue.load_s += span * (queue.requests + running.get(digest, 0))

    def statuses(self) -> list[VersionLoad]:
        """Return every version's load as the controller sees it."""
        now = self.clock.monotonic()
        running = self.in_flight()
        return [
            VersionLoad(
                digest=digest,
                waiting=queue.requests,
                in_flight=running.get(digest, 0),
                oldest_wait_s=max(0.0, now - queue.oldest) if queue.requests else 0.0,
                load_s=queue.load_s,
                pace_s=queue.pace_s,
                rows=queue.rows,
            )
            for digest, queue in self.queues.items()
        ]

    def keep_queues(self, digests: set[str]) -> None:
        """Forget empty queues of versions that are neither named here nor connected."""
        connected = {replica.hello.digest for replica in self.replicas.values()}
        for digest in [d for d, q in self.queues.items() if not q.requests and d not in digests | connected]:
            del self.queues[digest]

    def joined(self, replica: Replica) -> None:
        """Take in a replica that has said hello."""
        former = self.replicas.pop(replica.hello.replica, None)
        if former is not None:
            # The same replica dialled again, because its connection broke before this side noticed.
            former.transport.abort()
            self.gone(former, pop=False)
        self.replicas[replica.hello.replica] = replica
        queue = self.queue(replica.hello.digest, replica.hello.signature)
        queue.signature = replica.hello.signature
        log.info("replica_joined", replica=replica.hello.replica, version=replica.hello.ref, batch=replica.max_batch)
        self._review()

    def gone(self, replica: Replica, *, pop: bool = True) -> None:
        """Let go of a replica whose connection has ended; its batch is given to others."""
        if pop and self.replicas.get(replica.hello.replica) is replica:
            del self.replicas[replica.hello.replica]
        replica.state = DRAINED
        replica.let_go()
        log.info(
            "replica_gone", replica=replica.hello.replica, in_flight=len(replica.batch.works) if replica.batch else 0
        )
        self._review()
        replica.give_up("replica_gone", f"replica '{replica.hello.replica}' ended while it ran the request")
        self._dispatch_all()

    def heard(self, replica: Replica) -> None:
        """Note a sign of life."""
        replica.last_heard = self.clock.monotonic()
        if replica.state == FROZEN and not replica.owed:
            replica.state = READY
            self._review()

    def learned(self, replica: Replica) -> None:
        """Follow a replica's newer word on what it can do."""
        if replica.state == READY:
            self._review()

    def finished(self, replica: Replica) -> None:
        """Hand the next batch to a replica that has answered one."""
        if replica.state == READY and not replica.is_sick:
            queue = self.queues[replica.hello.digest]
            queue.idle.appendleft(replica)
            queue.dispatch(self.clock.monotonic())
        else:
            if replica.state == FROZEN:
                replica.state = READY
            self._review()

    def drain(self, replica: Replica) -> None:
        """Hand it nothing more than what nobody else can do."""
        if replica.state in (READY, FROZEN, FAULTY):
            replica.state = DRAINING
            self._review()

    def leaving(self, replica: Replica) -> None:
        """Drain a replica that was told to end; it is told when it may."""
        replica.leaving_since = self.clock.monotonic()
        self.drain(replica)
        self._settle(replica)

    def check(self) -> None:
        """Find replicas that are silent or never finish. Called every few milliseconds."""
        now = self.clock.monotonic()
        # When this process itself stood still, silence says nothing about the others.
        pause = now - self._last_check
        stood_still = pause > self._config.frozen_s / 2
        self._last_check = now
        for replica in list(self.replicas.values()):
            if stood_still:
                replica.last_heard = now
                replica.owed_since += pause
            silent = now - replica.last_heard > self._config.frozen_s
            limit = max(_RUNAWAY_S, _RUNAWAY_FACTOR * replica.hello.run_s)
            runaway = bool(replica.owed) and now - replica.owed_since > limit
            if replica.state in (READY, FAULTY, DRAINING) and (silent or runaway):
                self._freeze(replica, "is silent" if silent else f"has not finished within {limit:.0f} s")
            if replica.state == DRAINING or replica.leaving_since < math.inf:
                self._settle(replica)
            if replica.state == FAULTY and replica.conduct.may_return(now):
                # Whoever watches over processes has not replaced it: it gets a chance, on probation.
                replica.state, replica.failed_runs = READY, 0
                replica.conduct.give_chance()
                log.info("replica_on_probation", replica=replica.hello.replica, ejections=replica.conduct.ejections)
                self._review()

    def note(self, replica: Replica, failed: int, answered: int) -> None:
        """Compare what a replica did with what the others of its version do, where there are any."""
        if not failed and not replica.conduct.score:
            replica.conduct.note(0, answered, ())
            return
        group = replicas_of(self, replica.hello.digest)
        others = [other.conduct for other in group if other is not replica]
        replica.conduct.note(failed, answered, others)

    def _freeze(self, replica: Replica, why: str) -> None:
        log.warning("replica_frozen", replica=replica.hello.replica, why=why)
        replica.state = FROZEN
        self._review()
        replica.give_up("replica_frozen", f"replica '{replica.hello.replica}' {why}")
        self._dispatch_all()

    def _settle(self, replica: Replica) -> None:
        """Finish a draining replica when nothing is left for it to do."""
        queue = self.queues.get(replica.hello.digest)
        overdue = self.clock.monotonic() - replica.leaving_since > _LEAVING_S
        needed = queue is not None and queue.requests and replica.hello.digest not in self.ready and not overdue
        if replica.owed or needed:
            return
        if replica.state != DRAINED:
            replica.state = DRAINED
            self._review()
        if replica.leaving_since < math.inf:
            replica.leaving_since = math.inf
            replica.transport.writelines(wire.encode(wire.Bye()))

    def _review(self) -> None:
        """Bring everything that follows from the replicas' states up to date."""
        groups: dict[str, list[Replica]] = {}
        for replica in self.replicas.values():
            groups.setdefault(replica.hello.digest, []).append(replica)
        for group in groups.values():
            _find_faulty(group, self.clock.monotonic())
        ready = frozenset(d for d, group in groups.items() if any(r.state == READY for r in group))
        for digest, queue in self.queues.items():
            group = groups.get(digest, [])
            # A draining replica goes on with what was queued for its version while nobody else is there.
            able = [r for r in group if r.state == READY] or [r for r in group if r.state == DRAINING]
            queue.replicas = len(able)
            idle = [r for r in able if not r.owed]
            stay = [r for r in queue.idle if r in idle]
            queue.idle.clear()
            queue.idle.extend([*stay, *(r for r in idle if r not in stay)])
            queue.solo = _soloist(able) if digest in self._solo else None
        if ready != self.ready:
            self.ready = ready
            self.observer.ready_changed()
        self._dispatch_all()

    def _dispatch_all(self) -> None:
        now = self.clock.monotonic()
        for queue in list(self.queues.values()):
            queue.dispatch(now)


def _find_faulty(group: list[Replica], now: float) -> None:
    """Set aside replicas that fail while others of their version work; take all back when none is left."""
    healthy = [r for r in group if r.state == READY and not r.is_sick]
    for replica in group:
        if healthy and replica.state == READY and replica not in healthy:
            replica.state = FAULTY
            replica.conduct.eject(now)
            log.warning(
                "replica_faulty",
                replica=replica.hello.replica,
                failed_runs=replica.failed_runs,
                failed_lately=round(replica.conduct.failed, 1),
                answered_lately=round(replica.conduct.answered, 1),
            )
        elif not healthy and replica.state == FAULTY:
            replica.state, replica.failed_runs = READY, 0
            replica.conduct.give_chance()


def replicas_of(pool: Pool, digest: str) -> Iterator[Replica]:
    """Return the connected replicas of a version."""
    return (replica for replica in pool.replicas.values() if replica.hello.digest == digest)
