"""How long a training takes and what memory it needs, in each way of training: pure functions of what was measured.

On one machine steps were timed as they would run. Between machines they are put together: the time to compute a host's
share of a batch, a line through two measured sizes of batch, and the time of the exchange, from bytes and link.
"""

from collections.abc import Sequence

import msgspec

from argosy.core.units import format_size, format_time
from argosy.train.config import TrainConfig
from argosy.train.measurement import Measurement, Trial
from argosy.train.network.links import Link, all_reduce_s
from argosy.train.network.outer import choose_interval

STRATEGIES = ("single", "data-parallel", "parameter-server", "sharded", "local-sgd")
"""The simpler first."""
_TIE = 0.05
"""What is not faster by more is as fast: measurements of seconds don't tell more."""
_WIRE = {"none": 1.0, "fp16": 0.5, "int8": 0.25}
"""Bytes of changes on the wire for each byte that they have."""


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What decides a training's length beside the measured."""

    epochs: int
    checkpoint_every_s: float = 10.0
    memory_bytes: int = 0
    """What there is of it on each host; 0: unknown, so everything fits."""
    is_stale: bool = False
    """Whether workers of the parameter server may drift apart."""
    interval: int = 8
    """Steps in a round of local SGD on one host."""
    compression: str = "none"
    """Of local SGD's changes between hosts."""

    @classmethod
    def of(cls, train: TrainConfig, measurement: Measurement, memory_bytes: int = 0) -> "Terms":
        """Return those of a training's settings."""
        return cls(
            epochs=train.epochs or measurement.usual_epochs,
            checkpoint_every_s=train.checkpoint_s,
            memory_bytes=memory_bytes,
            is_stale=train.max_staleness != 0,
            interval=train.local.steps,
            compression=train.sent_as,
        )


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """One way of training, and what would come of it."""

    strategy: str
    workers: int
    """Processes on each host."""
    threads: int
    """Of each process."""
    step_s: float
    epoch_s: float
    total_s: float
    """From the start of the processes to the last weights."""
    memory_bytes: int
    """Of the largest process: its own, and its share of what several have in common."""
    host_bytes: int
    """Of all processes of a host."""
    is_same: bool
    """Whether it learns what one process on whole batches does, up to the order of additions."""
    fits: bool = True
    hosts: int = 1
    exchange_s: float = 0.0
    """Of a step: waiting for other hosts."""
    interval: int = 1
    """Steps between two exchanges with other hosts."""
    why: str = ""
    """One sentence."""

    @property
    def named(self) -> str:
        """What it is, in a few words."""
        if self.strategy == "single":
            return f"one process with {_many(self.threads, 'thread')}"
        between = f" on each of {self.hosts} hosts" if self.hosts > 1 else ""
        return f"{self.strategy} with {_many(self.workers, 'worker')}{between}"


def predictions(
    measurement: Measurement, terms: Terms, *, hosts: int = 1, link: Link | None = None, overlap: float = 0.0
) -> list[Prediction]:
    """Return every way of training that was measured, the simpler first.

    With several `hosts`, each like this machine and joined by `link` in both directions at once, also what one host
    takes alone. `overlap`: the share of computing behind which exchanges between hosts hide.
    """
    found = [
        _on_one_host(measurement, terms, trial)
        for trial in _fastest(measurement)
        if hosts == 1 or trial.strategy in ("single", "data-parallel")
    ]
    if hosts > 1 and link is not None:
        found += _on_hosts(measurement, terms, hosts, link, overlap)
    order = {name: number for number, name in enumerate(STRATEGIES)}
    return sorted(found, key=lambda way: (way.hosts, order[way.strategy], way.workers, way.threads))


def choose(ways: Sequence[Prediction]) -> Prediction:
    """Return the fastest way that fits memory and learns the same as one process; of equally fast ones the simplest.

    When none fits, the one that needs least. `ways` stand with the simpler first, as `predictions` gives them.
    """
    same = [way for way in ways if way.is_same]
    fitting = [way for way in same if way.fits]
    if not fitting:
        return min(same, key=lambda way: way.host_bytes)
    fastest = min(way.total_s for way in fitting)
    return next(way for way in fitting if way.total_s <= fastest * (1 + _TIE))


def reasons(chosen: Prediction, ways: Sequence[Prediction], terms: Terms) -> list[str]:
    """Return in three lines what was chosen, against what, and what memory it needs."""
    # Where workers of a parameter server don't drift apart they do what data-parallel does.
    others = [way for way in ways if way.is_same and way is not chosen and way.strategy != "parameter-server"]
    return [
        f"{chosen.named}: {format_time(chosen.step_s)} a step, {format_time(chosen.total_s)} in all",
        _against(chosen, others),
        _memory(chosen, terms),
    ]


def _against(chosen: Prediction, others: Sequence[Prediction]) -> str:
    if not others:
        return "nothing else was measured"
    too_large = [way for way in others if not way.fits and way.total_s < chosen.total_s]
    if too_large:
        way = min(too_large, key=lambda other: other.total_s)
        return f"{way.named} would take {format_time(way.total_s)}, but needs {format_size(way.host_bytes)}"
    # What is to be said of ranks is what they are against threads, if that is the question.
    faster = min(others, key=lambda other: other.total_s)
    if faster.fits and chosen.total_s > faster.total_s * (1 + _TIE):
        return f"faster here: {faster.named}, {format_time(faster.step_s)} a step, {format_time(faster.total_s)} in all"
    kinds = [way for way in others if (way.strategy == "single") != (chosen.strategy == "single")]
    way = min(kinds or others, key=lambda other: other.total_s)
    ratio = way.step_s / chosen.step_s
    if ratio <= 1 + _TIE:
        return f"{way.named}: {format_time(way.step_s)} a step, no faster by more than 5 %, and the simpler counts"
    beats = "threads beat ranks here" if chosen.strategy == "single" else "ranks beat threads here"
    if way not in kinds:
        beats = "slower here"
    return f"{way.named}: {format_time(way.step_s)} a step, {ratio:.2f} times as long: {beats}"


def _memory(chosen: Prediction, terms: Terms) -> str:
    text = f"memory: {format_size(chosen.memory_bytes)} in the largest process, {format_size(chosen.host_bytes)} in all"
    if not terms.memory_bytes:
        return text
    free = format_size(terms.memory_bytes)
    return f"{text}, of {free} that are free" if chosen.fits else f"{text}: more than the {free} that are free"


def total_s(measurement: Measurement, terms: Terms, epoch_s: float) -> float:
    """Return how long the whole training takes, checkpoints included."""
    training_s = terms.epochs * epoch_s
    # A training that ends before its first checkpoint writes none.
    written = int(training_s / terms.checkpoint_every_s)
    return measurement.start_s + training_s + written * measurement.checkpoint_s


def compute_s(measurement: Measurement, trial: Trial, share: float) -> float:
    """Return how long a step of `trial` takes with a share of its batch, from 0 to 1.

    Some of a step doesn't depend on the batch: the optimizer, and whatever each layer costs. With a second measured
    size it is a line through both, without one all of it counts as depending.
    """
    return _at(trial.step_s, _half(measurement, trial, "step_s"), share)


def _at(whole: float, half: float | None, share: float) -> float:
    """Return where the line through the values at 1 and at 0.5 is at `share`; it never falls below 0 at 0."""
    if half is None:
        return whole * share
    fixed = max(0.0, min(whole, 2 * half - whole))
    return fixed + (whole - fixed) * share


def _half(measurement: Measurement, trial: Trial, name: str) -> float | None:
    half = measurement.trial(trial.strategy, trial.workers, batch=max(trial.workers, trial.batch // 2))
    return None if half is None or half is trial else float(getattr(half, name))


def _fastest(measurement: Measurement) -> list[Trial]:
    """Return the fastest trial of each strategy and number of workers; of one process each number of threads."""
    kinds = dict.fromkeys((trial.strategy, trial.workers) for trial in measurement.trials if trial.workers > 1)
    several = [trial for strategy, workers in kinds if (trial := measurement.trial(strategy, workers)) is not None]
    return several + [trial for trial in measurement.trials if trial.workers == 1 and not trial.error]


def _on_one_host(measurement: Measurement, terms: Terms, trial: Trial) -> Prediction:
    way = _predicted(measurement, terms, trial, trial.step_s, trial.validation_s)
    return msgspec.structs.replace(way, why=_sentence(measurement, terms, way))


def _on_hosts(measurement: Measurement, terms: Terms, hosts: int, link: Link, overlap: float) -> list[Prediction]:
    trials = [trial for trial in _fastest(measurement) if trial.strategy in ("data-parallel", "single")]
    several = [trial for trial in trials if trial.strategy == "data-parallel"] or trials
    best = min(several, key=lambda trial: trial.step_s)
    own_s = compute_s(measurement, best, 1 / hosts)
    size = measurement.parameter_bytes
    found = []
    for strategy in STRATEGIES[1:]:
        interval, exchange_s = 1, exchange_between(strategy, size, link, hosts)
        if strategy == "local-sgd":
            wire = size * _WIRE.get(terms.compression, _WIRE["int8"])
            interval = choose_interval(own_s, wire, link, world_size=hosts)
            exchange_s = all_reduce_s(link, wire, hosts) / interval
        hidden = own_s if strategy == "parameter-server" and terms.is_stale else overlap * own_s
        waiting_s = exchange_s if strategy == "local-sgd" else max(0.0, exchange_s - hidden)
        trial = msgspec.structs.replace(
            best,
            strategy=strategy,
            memory_bytes=_share_of_memory(measurement, best, hosts, "memory_bytes") + size,
            host_bytes=_share_of_memory(measurement, best, hosts, "host_bytes") + size,
        )
        way = _predicted(measurement, terms, trial, own_s + waiting_s, best.validation_s / hosts)
        way = msgspec.structs.replace(way, hosts=hosts, exchange_s=waiting_s, interval=interval)
        found.append(msgspec.structs.replace(way, why=_sentence(measurement, terms, way)))
    return found


def exchange_between(strategy: str, size_bytes: float, link: Link, hosts: int) -> float:
    """Return how long all exchanges of a step take between hosts, for parameters of `size_bytes`.

    Data parallel sums gradients. A parameter server is pushed and pulled a shard from and to each other host. Sharded
    gathers parameters before the forward and before the backward pass, and scatters gradients after it.
    """
    if strategy in ("data-parallel", "local-sgd"):
        return all_reduce_s(link, size_bytes, hosts)
    parts = {"parameter-server": 2, "sharded": 3}[strategy]
    return parts * ((hosts - 1) / hosts * size_bytes / link.bytes_s + link.round_trip_s / 2)


def _share_of_memory(measurement: Measurement, trial: Trial, hosts: int, name: str) -> int:
    whole = float(getattr(trial, name))
    half = _half(measurement, trial, name)
    # Without a second size nothing is known of what depends on the batch: as much as for all of it, to be safe.
    return round(whole if half is None else _at(whole, half, 1 / hosts))


def _predicted(measurement: Measurement, terms: Terms, trial: Trial, step_s: float, validation_s: float) -> Prediction:
    epoch_s = measurement.steps_per_epoch * step_s + validation_s
    in_all_s = total_s(measurement, terms, epoch_s)
    writes = terms.epochs * epoch_s > terms.checkpoint_every_s
    # At the end every process takes the parameters out of what they had in common.
    own = measurement.parameter_bytes
    more = measurement.checkpoint_memory_bytes if writes else 0
    host_bytes = trial.host_bytes + max(more, own * trial.workers)
    return Prediction(
        strategy=trial.strategy,
        workers=trial.workers,
        threads=trial.threads,
        step_s=step_s,
        epoch_s=epoch_s,
        total_s=in_all_s,
        memory_bytes=trial.memory_bytes + max(more, own),
        host_bytes=host_bytes,
        is_same=trial.strategy != "local-sgd" and not (trial.strategy == "parameter-server" and terms.is_stale),
        fits=not terms.memory_bytes or host_bytes <= terms.memory_bytes,
    )


def _sentence(measurement: Measurement, terms: Terms, way: Prediction) -> str:
    if way.strategy == "single":
        one = next((t for t in measurement.trials if (t.strategy, t.threads) == ("single", 1) and not t.error), None)
        if one is None or way.threads == 1:
            return "nothing is exchanged"
        return f"threads share every operation: {one.step_s / way.step_s:.2f} times as fast as one thread"
    if way.hosts > 1:
        return _between_hosts(measurement, terms, way)
    size = format_size(measurement.parameter_bytes)
    return {
        "data-parallel": f"each worker has a part of every batch; {size} of gradients are summed in shared memory",
        "parameter-server": (
            "workers push when they have finished and don't wait for each other; it learns a little differently"
            if terms.is_stale
            else "with max_staleness = 0 the same as data-parallel"
        ),
        "sharded": f"each worker keeps 1/{way.workers} of parameters, gradients and optimizer state, for less memory",
        "local-sgd": f"combines every {_many(terms.interval, 'step')}: made for slow networks; it learns differently",
    }[way.strategy]


def _between_hosts(measurement: Measurement, terms: Terms, way: Prediction) -> str:
    share = way.exchange_s / way.step_s
    size = format_size(measurement.parameter_bytes)
    if way.strategy == "local-sgd":
        sent = f" as {terms.compression}" if terms.compression != "none" else ""
        return f"exchanging {size}{sent} every {_many(way.interval, 'step')} takes {share:.0%}; it learns differently"
    if way.strategy == "sharded":
        return f"parameters travel thrice a step, {share:.0%} of its time, for less memory on each host"
    if way.strategy == "parameter-server" and terms.is_stale:
        return f"{size} are pushed and pulled behind the computing, {share:.0%} of a step is left to wait"
    return f"exchanging {size} between hosts takes {share:.0%} of a step"


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
