"""What ranks of several hosts agree on before they begin: how they exchange, chosen by what computing and sending take.

The first host decides and tells the others. What was decided stands in its folder of the training, so that a resumed
training goes on with it.
"""

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from argosy.core.clock import Clock
from argosy.core.digest import canonical
from argosy.core.files import write_atomic
from argosy.core.units import format_size, format_time
from argosy.data.dataset import share_of_batch
from argosy.train.between import told
from argosy.train.config import AUTO, LocalConfig, TrainConfig
from argosy.train.network.codec import CODECS
from argosy.train.network.codecs import coding_s
from argosy.train.network.hierarchy import HierarchicalTransport
from argosy.train.network.links import Link, all_reduce_s, measure_links
from argosy.train.network.outer import choose_delay
from argosy.train.optimizers import Optimizer
from argosy.train.randomness import own_randomness, seed_step

_PASSES = 3
_SAMPLE = 1 << 18
"""Numbers that the optimizer is timed with."""
_BITS = {"none": 32, "fp16": 16, "int8": 8}
_BUSY = 0.5
"""Of the time of a round, the most that its exchange may take when training goes on meanwhile: hosts differ, and the
network has other users."""
_WAITED = 0.05
"""Of the time of a round, the most that its exchange may take when all wait for it."""
_LEAST_INTERVAL, _MOST_INTERVAL = 8, 1000
_WORTH = 2.0
"""Hosts stop exchanging in every step where that makes steps so many times as fast."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What the choice depends on."""

    hosts: int
    step_s: float
    """Computing one step, on the slowest host."""
    parameters: int
    link: Link
    coding_s: dict[str, float]
    """Seconds per number to encode and decode it, by codec."""

    def exchange_s(self, compression: str) -> float:
        """Return how long hosts take to sum all parameters."""
        wire_s = all_reduce_s(self.link, self.parameters * _BITS.get(compression, 1) / 8, self.hosts)
        # Chunks are coded while others travel.
        return max(wire_s, self.parameters * self.coding_s.get(compression, 0.0))


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """How a training over several hosts is carried out."""

    made_by: str
    train: TrainConfig
    reasons: list[str]


def agree(train: TrainConfig, found: Measured) -> tuple[TrainConfig, list[str]]:
    """Return the settings with nothing left open, and why in three lines."""
    every_step = _every_step(train, found)
    rounds = _rounds(train, found)
    sync_s = found.step_s + found.exchange_s(every_step.compression)
    waits = 0.0 if rounds.local.late else found.exchange_s(rounds.compression)
    round_s = found.step_s + waits / rounds.local.steps
    if train.strategy == AUTO:
        is_worth = sync_s > _WORTH * round_s
        chosen = rounds if is_worth else every_step
    else:
        chosen = rounds if train.strategy == "local-sgd" else every_step
    size, mbit = format_size(found.parameters * 4), found.link.bytes_s * 8e-6
    network = f"{size} of parameters at {mbit:.0f} Mbit/s, {format_time(found.link.round_trip_s)} there and back"
    each = f"exchanging in every step ({every_step.compression}): {format_time(sync_s)} a step"
    seldom = f"in rounds of {rounds.local.steps} ({rounds.compression}): {format_time(round_s)}, and learning differs"
    return chosen, [
        f"{chosen.strategy} over {found.hosts} hosts: {_how(chosen)}",
        f"computing a step takes {format_time(found.step_s)}; the network carries {network}",
        f"{each}; {seldom}",
    ]


def _how(train: TrainConfig) -> str:
    sent = "" if train.compression == "none" else f" as {train.compression}"
    if train.strategy != "local-sgd":
        return f"gradients are exchanged{sent} in every step"
    late = f", used {train.local.late} steps later" if train.local.late else ""
    return f"what {train.local.steps} steps have changed is exchanged{sent}{late}"


def _every_step(train: TrainConfig, found: Measured) -> TrainConfig:
    strategy = train.strategy if train.strategy in ("data-parallel", "parameter-server") else "data-parallel"
    compression = train.compression
    if compression == AUTO:
        known = ("none", "fp16") if train.dtype == "float32" else ("none",)
        compression = min(known, key=found.exchange_s)
    return msgspec.structs.replace(train, strategy=strategy, compression=compression)


def _rounds(train: TrainConfig, found: Measured) -> TrainConfig:
    compression = train.compression
    if compression in (AUTO, "powersgd"):
        known = ("none", "fp16", "int8") if train.dtype == "float32" else ("none",)
        compression = min(known, key=found.exchange_s)
    local, takes_s = train.local, found.exchange_s(compression)
    steps, late = local.interval, local.delay
    if late == AUTO:
        wire_bytes = takes_s * found.link.bytes_s
        late = choose_delay(found.step_s, wire_bytes, found.link) if takes_s > _WAITED * found.step_s else 0
    if steps == AUTO:
        share = _BUSY if late else _WAITED
        wanted = max(_LEAST_INTERVAL, int(late), round(takes_s / (share * found.step_s) + 0.5))
        steps = min(_MOST_INTERVAL, wanted)
    late = min(int(late), int(steps))
    settled = LocalConfig(interval=int(steps), delay=late, outer=local.outer)
    return msgspec.structs.replace(train, strategy="local-sgd", compression=compression, local=settled)


def agreed(
    path: Path, made_by: str, everyone: HierarchicalTransport, train: TrainConfig, measure: Callable[[], Measured]
) -> Agreement:
    """Return what all hosts do; all ranks call it. Rank 0 reads it from `path`, or has all measure and writes it."""
    known = _read(path, made_by) if everyone.rank == 0 else None
    is_known = np.array([known is not None], np.int64)
    everyone.all_reduce(is_known)
    if not is_known[0]:
        found = measure()
        if everyone.rank == 0:
            chosen, reasons = agree(train, found)
            known = Agreement(made_by=made_by, train=chosen, reasons=reasons)
            write_atomic(path, canonical(known))
    data = told(everyone, 0, lambda: msgspec.json.encode(known))
    return msgspec.json.decode(data, type=Agreement)


def _read(path: Path, made_by: str) -> Agreement | None:
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Agreement)
    except (OSError, msgspec.DecodeError):
        return None
    return found if found.made_by == made_by else None


def measured(
    everyone: HierarchicalTransport,
    model: nn.Module,
    train: TrainConfig,
    *,
    rows: int,
    losses: Callable[[Tensor], Tensor],
    clock: Clock,
) -> Measured:
    """Measure what a step takes on every rank, and the links between hosts; all ranks call it. A second or two.

    `rows`: how many samples the training part has. `losses` runs the model forward over some of them. The model is
    afterwards what it was.
    """
    share = share_of_batch(rows, train.batch_size, 0, everyone.rank, everyone.world_size)
    own = torch.arange(share.start, max(share.stop, share.start + 1))
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    numbers = np.zeros((everyone.world_size, 5))
    numbers[everyone.rank, 0] = _pass_s(model, own, losses, train.seed, clock) + _update_s(train, count, clock)
    numbers[everyone.rank, 1] = _coding_s("fp16", clock)
    numbers[everyone.rank, 2] = _coding_s("int8", clock)
    if everyone.network is not None:
        link = measure_links(everyone.network, clock=clock).worst()
        numbers[everyone.rank, 3:] = 1.0 / link.bytes_s, link.round_trip_s
    everyone.all_reduce(numbers)
    step_s, half_s, int8_s, byte_s, round_trip_s = numbers.max(axis=0).tolist()
    return Measured(
        hosts=everyone.hosts,
        step_s=step_s,
        parameters=count,
        link=Link(bytes_s=1.0 / byte_s, round_trip_s=round_trip_s),
        coding_s={"fp16": half_s, "int8": int8_s},
    )


def _pass_s(model: nn.Module, rows: Tensor, losses: Callable[[Tensor], Tensor], seed: int, clock: Clock) -> float:
    """Return the seconds of a forward and a backward pass: the least of some, after one that warms up."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    model.train()
    taken_s = []
    with own_randomness():
        for number in range(1 + _PASSES):
            seed_step(seed, number, 0)
            begun = clock.monotonic()
            losses(rows).mean().backward()  # type: ignore[no-untyped-call]
            taken_s.append(clock.monotonic() - begun)
            model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, former in buffers:
            buffer.copy_(former)
    return min(taken_s[1:])


def _update_s(train: TrainConfig, count: int, clock: Clock) -> float:
    """Return the seconds that the optimizer takes, from a part of the parameters."""
    optimizer = Optimizer(train)
    size = min(count, _SAMPLE)
    values, gradient = torch.zeros(size), torch.ones(size)
    state = {name: torch.zeros(size) for name in optimizer.state_names}
    taken_s = []
    for number in range(1 + _PASSES):
        begun = clock.monotonic()
        optimizer.update(values, gradient, state, 1e-3, number + 1)
        taken_s.append(clock.monotonic() - begun)
    return min(taken_s[1:]) * count / size


def _coding_s(name: str, clock: Clock) -> float:
    return coding_s(CODECS.load(name)(), clock=clock)
