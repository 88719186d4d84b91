"""Makes a version's profile: batches with one thread, then ways to use all cores, then the choice and its reasons."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from argosy.core.clock import Clock
from argosy.core.units import format_time
from argosy.serve.bench import together
from argosy.serve.calibration import Bench, Case, Cost, Found, measure_batching
from argosy.serve.profile import Batching, Host, Profile, Shape
from argosy.serve.scaling import (
    Choice,
    choose,
    replicas_that_fit,
    shapes_to_try,
    solo_choice,
    solo_threads_to_try,
    tiny_choice,
    useful_replicas,
)

BUDGET_S = 1.5
"""For batches; versions that are measured at several lengths get twice that."""
QUICK_S = 0.2
"""For what is measured before a replica's first answer, of versions so quick that it suffices."""
_SHAPES_S = 1.0
"""For all ways to use the cores together, loading apart."""
_SOLO_S = 1.0
"""For all lengths and numbers of threads of runs that have the machine to themselves, loading apart."""
_SOLO_MEMORY = 4
"""A second copy of the version may take this part of the memory that is free."""
_ROUNDS = 3
_QUIET_PART = 0.2
"""Part of the machine that others may take without a measurement being repeated later."""


class Loaded(NamedTuple):
    """A version that was loaded to be measured."""

    bench: Bench
    lengths: tuple[int, ...]
    is_batched: bool = True
    takes_texts: bool = False
    is_shared: bool = True
    """Whether several threads may run it at once as if each had a process of its own."""

    @property
    def middle(self) -> int:
        """The length that stands for all when ways to use the cores are compared."""
        return self.lengths[len(self.lengths) // 2]


class Memory(NamedTuple):
    """Bytes that this process has of its own, and that are free, when it has loaded the version once."""

    own: int
    free: int


class Solo(NamedTuple):
    """How runs are made that have the machine to themselves."""

    threads: int = 1
    before_s: float = 0.0
    """What a row takes in a replica as it is, and that way."""
    seconds: float = 0.0

    def in_words(self) -> list[str]:
        """Return why, in a plain sentence; nothing where such runs are like others."""
        if self.threads == 1:
            return []
        gain = f"{format_time(self.seconds)} instead of {format_time(self.before_s)}"
        return [f"a request that comes alone is computed by {self.threads} threads, in {gain}"]


NO_SOLO = Solo()


class Machine(Protocol):
    """What measuring needs of the machine."""

    @property
    def host(self) -> Host:
        """Its name in profiles."""
        ...

    def memory(self) -> Memory:
        """Return the memory now."""
        ...

    def others_s(self) -> float:
        """Return the CPU seconds that all other processes have taken since some moment."""
        ...


class Calibrator:
    """Measures one version on this machine. `load(threads)` loads it once more, `load_solo(threads)` does so for runs
    that have the machine to themselves.
    """

    def __init__(
        self,
        version: str,
        load: Callable[[int], Loaded],
        machine: Machine,
        clock: Clock,
        *,
        load_solo: Callable[[int], Loaded] | None = None,
    ) -> None:
        self._version = version
        self._load = load
        self._load_solo = load_solo
        self._machine = machine
        self._cores = machine.host.cores
        self._clock = clock
        self._begun = clock.monotonic()
        self._others_s = machine.others_s()

    def quick(self, loaded: Loaded, *, threads: int = 1, budget_s: float = QUICK_S) -> tuple[Batching, Profile | None]:
        """Return how to feed a version just loaded; and its profile, if nothing else is to be found.

        That is so for versions of which one replica keeps up with the gateway. Others are fed as this look found,
        where it found nothing one row at a time, until `full` was there.
        """
        try:
            # The first run allocates. Of a slow version it must do: an answer may be waited for.
            cost = loaded.bench((loaded.middle,))
            if cost.wall_s < budget_s / 4:
                cost = loaded.bench((loaded.middle,))
        except Exception:  # noqa: BLE001 - a version may raise anything on made-up inputs; real ones will tell
            return Batching(), None
        alone = Batching(run_s=cost.wall_s, row_s=cost.wall_s)
        # Where batches bring nothing, measuring them takes some 700 times a row.
        if cost.wall_s > budget_s / 200:
            return alone, None
        found = self._batches(loaded, budget_s, wall_s=budget_s, in_wall=threads > 1)
        if not found.is_complete or found.error:
            return alone, None
        memory = self._machine.memory()
        choice = tiny_choice(_best_row_s(found, loaded), self._cores, replicas_that_fit(*memory))
        if choice is None:
            return found.batching, None
        # With how many threads such short runs are measured makes no difference.
        batchings = {1: found.batching, threads: found.batching}
        return found.batching, self._profile(batchings, found, choice, memory)

    def full(self, *, threads: int = 1, wall_s: float = 60.0) -> Profile:
        """Measure everything, batches for replicas with `threads` threads included; takes some `wall_s` at most."""
        until = self._clock.monotonic() + wall_s
        loaded = self._load(1)
        found = self._batches(loaded, BUDGET_S * (2 if len(loaded.lengths) > 1 else 1), wall_s=wall_s / 2)
        memory = self._machine.memory()
        most = replicas_that_fit(*memory)
        shapes = _Shapes(loaded, found, self._load, self._cores)
        choice: Choice | None
        if found.error and not found.points:
            choice = Choice(
                1, 1, 1, most, (f"the version takes no made-up inputs, so nothing was measured ({found.error})",)
            )
        else:
            choice = tiny_choice(_best_row_s(found, loaded), self._cores, most)
        if choice is None:
            shapes.measure(self._clock, memory, until)
            choice = choose(shapes.single, shapes.others, cores=self._cores, memory=memory)
        batchings = {1: found.batching}
        for needed in sorted({choice.threads, threads} - {1}):
            other = self._load(needed)
            left_s = max(BUDGET_S, until - self._clock.monotonic())
            batchings[needed] = self._batches(other, BUDGET_S, wall_s=left_s, in_wall=True).batching
        # A version that takes no made-up inputs can't be measured.
        solo = self._solo(loaded, choice, memory) if found.points else NO_SOLO
        return self._profile(batchings, found, choice, memory, shapes=shapes, solo=solo)

    def _solo(self, loaded: Loaded, choice: Choice, memory: Memory) -> Solo:
        """Measure runs that have the machine to themselves, where there is memory for one more copy of the version."""
        tried = solo_threads_to_try(self._cores, choice.threads)
        is_quick = useful_replicas(loaded.bench((loaded.middle,)).wall_s, self._cores) == 1 if tried else True
        if self._load_solo is None or not loaded.is_shared or is_quick or memory.own > memory.free / _SOLO_MEMORY:
            return NO_SOLO
        plain = loaded if choice.threads == 1 else self._load(choice.threads)
        engines = {0: plain.bench, **{threads: self._load_solo(threads).bench for threads in tried}}
        found: dict[int, dict[int, float]] = {threads: {} for threads in engines}
        for length in loaded.lengths:
            case = (length,)
            once_s = sum(bench(case).wall_s for bench in engines.values())
            for _ in range(int(min(9, max(3, _SOLO_S / len(loaded.lengths) / max(once_s, 1e-6))))):
                for threads, bench in engines.items():
                    found[threads][length] = min(bench(case).wall_s, found[threads].get(length, math.inf))
        seconds = {threads: [rows[length] for length in loaded.lengths] for threads, rows in found.items()}
        before = seconds.pop(0)
        threads = solo_choice(before, seconds)
        if threads == 1:
            return NO_SOLO
        at = len(before) // 2
        return Solo(threads, before[at], seconds[threads][at])

    def _batches(self, loaded: Loaded, budget_s: float, *, wall_s: float, in_wall: bool = False) -> Found:
        return measure_batching(
            loaded.bench,
            loaded.lengths,
            self._clock,
            is_batched=loaded.is_batched,
            takes_texts=loaded.takes_texts,
            budget_s=budget_s,
            wall_s=wall_s,
            in_wall=in_wall,
        )

    def _profile(
        self,
        batchings: dict[int, Batching],
        found: Found,
        choice: Choice,
        memory: Memory,
        *,
        shapes: "_Shapes | None" = None,
        solo: Solo = NO_SOLO,
    ) -> Profile:
        reasons = [*choice.reasons, *solo.in_words(), *batchings[choice.threads].in_words()]
        took_s = self._clock.monotonic() - self._begun
        # What is done in a moment is done in between whatever else runs.
        part = (self._machine.others_s() - self._others_s) / (self._cores * max(took_s, 1e-3)) if shapes else 0.0
        is_quiet = part <= _QUIET_PART
        if not is_quiet:
            reasons.append(f"others took {min(part, 1):.0%} of the machine meanwhile, so it will be measured again")
        if not found.is_complete:
            reasons.append("there was no time to measure everything; what was not measured is not used")
        return Profile(
            version=self._version,
            host=self._machine.host,
            measured=self._clock.now(),
            took_s=round(took_s, 3),
            batching=batchings,
            replicas=choice.replicas,
            threads=choice.threads,
            alone=choice.alone,
            most=choice.most,
            solo=solo.threads,
            memory_bytes=memory.own,
            is_quiet=is_quiet,
            points=found.points,
            shapes=tuple(shapes.all) if shapes else (),
            reasons=tuple(reasons),
        )


class _Shapes:
    """Ways to use the cores, measured in turns so that a busy moment meets all of them."""

    def __init__(self, loaded: Loaded, found: Found, load: Callable[[int], Loaded], cores: int) -> None:
        self._loaded = loaded
        self._load = load
        self._cores = cores
        self._rows = _allowed_rows(found.batching, loaded.middle)
        self._case: Case = (loaded.middle,) * self._rows
        self.single = Shape(replicas=1, threads=1, rows_s=0.0, row_s=found.batching.row_s)
        self.others: list[Shape] = []

    @property
    def all(self) -> list[Shape]:
        """What was measured."""
        return [self.single, *self.others] if self.single.rows_s else []

    def measure(self, clock: Clock, memory: Memory, until: float) -> None:
        """Measure one replica with one thread, and all ways for whose copies of the model there is memory."""
        alone = together([self._loaded.bench], self._case, 2)[0]
        run_s = max(_fastest(alone), 1e-6)
        ways = {
            (replicas, threads): benches
            for replicas, threads in shapes_to_try(self._cores)
            if (benches := self._benches(replicas, threads, memory)) is not None
        }
        runs = int(min(50, max(1, _SHAPES_S / _ROUNDS / run_s / (1 + 2 * len(ways)))))
        costs: dict[tuple[int, int], list[Cost]] = {(1, 1): alone, **{way: [] for way in ways}}
        rows: dict[tuple[int, int], list[Cost]] = {way: [] for way in ways}
        for _ in range(_ROUNDS):
            for way, benches in {(1, 1): [self._loaded.bench], **ways}.items():
                costs[way] += [cost for found in together(benches, self._case, runs) for cost in found]
                if way[1] > 1:
                    rows[way] += together(benches[:1], self._case[:1], runs)[0]
            if clock.monotonic() > until:
                break
        self._judge(costs, rows)

    def _benches(self, replicas: int, threads: int, memory: Memory) -> list[Bench] | None:
        if threads == 1:
            # Other versions hold the interpreter while they run; as processes they will not be in each other's way.
            return [self._loaded.bench] * replicas if self._loaded.is_shared else None
        if not self._loaded.is_shared or replicas * memory.own > memory.free / 2:
            return None
        return [self._load(threads).bench for _ in range(replicas)]

    def _judge(self, costs: dict[tuple[int, int], list[Cost]], rows: dict[tuple[int, int], list[Cost]]) -> None:
        alone_s = _fastest(costs[1, 1])
        self.single = Shape(replicas=1, threads=1, rows_s=self._rows / alone_s, row_s=self.single.row_s or alone_s)
        for (replicas, threads), found in costs.items():
            if threads == 1 and replicas > 1:
                run_s = _fastest(found)
                row_s = self.single.row_s * run_s / alone_s
                self.others.append(self._shape(replicas, threads, self._rows / run_s, row_s))
            elif threads > 1:
                # Threads of one run wait for each other, which only the clock on the wall sees.
                row_s, run_s = _fastest(rows[replicas, threads], in_wall=True), _fastest(found, in_wall=True)
                self.others.append(self._shape(replicas, threads, max(self._rows / run_s, 1 / row_s), row_s))
        if not self._loaded.is_shared and self._cores > 1:
            self.others.append(self._shape(self._cores, 1, self.single.rows_s, self.single.row_s))

    def _shape(self, replicas: int, threads: int, rows_s: float, row_s: float) -> Shape:
        return Shape(replicas=replicas, threads=threads, rows_s=replicas * rows_s, row_s=row_s)


def _allowed_rows(batching: Batching, length: int) -> int:
    """Return how many rows of this length may share a run."""
    bound = batching.max_bytes // length if batching.max_bytes and length else batching.max_batch
    return max(1, min(batching.max_batch, bound))


def _best_row_s(found: Found, loaded: Loaded) -> float:
    """Return what a row takes at best, at the middle length."""
    rows = _allowed_rows(found.batching, loaded.middle)
    points = [p for p in found.points if p.length_bytes == loaded.middle and p.rows <= rows]
    return min((p.seconds / p.rows for p in points), default=found.batching.row_s)


def _fastest(costs: Sequence[Cost], *, in_wall: bool = False) -> float:
    return max(1e-9, min(cost.wall_s if in_wall else cost.own_s for cost in costs))
