"""Measures a training before it runs: some steps in every way of training, in processes like those that would train.

No torch here: the process that calls `measure` stays small.
"""

import secrets
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from argosy.cluster.launcher import Launcher, stop_all
from argosy.core.clock import Clock
from argosy.core.errors import ArgosyError, DeadlineExceeded, Unavailable
from argosy.core.machine import usable_cores
from argosy.train.config import ModelConfig, TrainConfig
from argosy.train.measurement import RESULT, Measurement, ProbeResult, ProbeSetup, Tried
from argosy.train.rank_process import rank_process
from argosy.train.shared_memory import Segment

_POLL_S = 0.02
_TRIAL_S, _QUICK_TRIAL_S = 1.5, 0.7
_OTHERS_S = 1.0
"""When a process has failed, the others get so long to fail too: the one that knows the cause may not be the first."""
LIMIT_S = 300.0
"""A measurement that takes longer is given up: a step then takes so long that two epochs would tell as much."""


def measure(
    dataset_folder: Path,
    model: ModelConfig,
    train: TrainConfig,
    base: Path,
    key: str,
    *,
    launcher: Launcher,
    clock: Clock,
    is_quick: bool = False,
    limit_s: float = LIMIT_S,
) -> Measurement:
    """Train some steps in each way, for seconds; return what they took.

    `is_quick` tries only what `auto` chooses between: the workers that were asked for, and one process with all cores.
    Raises what a training would raise (InvalidInput for the user's mistakes), DeadlineExceeded after `limit_s`, and
    Unavailable when a process dies. Nothing is left behind.
    """
    begun, cores = clock.monotonic(), usable_cores()
    trials = plan_trials(train, cores, is_quick=is_quick)
    work = Path(tempfile.mkdtemp(prefix="argosy-measure-"))
    segments = [Segment.create(tried.workers) if tried.workers > 1 else None for tried in trials]
    try:
        setup = ProbeSetup(
            rank=0,
            trials=[
                msgspec.structs.replace(tried, segment=segment.path) if segment is not None else tried
                for tried, segment in zip(trials, segments, strict=True)
            ],
            seconds=_QUICK_TRIAL_S if is_quick else _TRIAL_S,
            launched=begun,
            dataset=str(dataset_folder.absolute()),
            model=model,
            train=train,
            base=str(base.absolute()),
            work=str(work),
        )
        _run(setup, launcher, clock, limit_s)
        found = msgspec.json.decode((work / RESULT).read_bytes(), type=ProbeResult)
    finally:
        for segment in filter(None, segments):
            segment.close()
        shutil.rmtree(work, ignore_errors=True)
    known = msgspec.structs.asdict(found)
    return Measurement(key=key, cores=cores, is_complete=not is_quick, seconds=clock.monotonic() - begun, **known)


def plan_trials(train: TrainConfig, cores: int, *, is_quick: bool) -> list[Tried]:
    """Return what is to be tried, in this order: what loads more code into a process comes last."""
    batch = train.batch_size
    most = min(max(train.workers, 1 if is_quick else cores), batch)

    def several(strategy: str, workers: int, share: int = 1) -> Tried:
        threads, own = max(1, cores // workers), max(workers, batch // share)
        return Tried(
            strategy=strategy, workers=workers, threads=threads, batch=own, may_fail=strategy != "data-parallel"
        )

    singles = [
        Tried(strategy="single", workers=1, threads=threads, batch=batch)
        for threads in ([cores] if is_quick else [*_between(1, cores), cores])
    ]
    if most == 1:
        found = singles
    elif is_quick:
        found = [several("data-parallel", most), *singles]
    else:
        found = [several("data-parallel", most), several("data-parallel", most, 2)]
        # With the workers that were asked for, or with as many as there are cores if only one was.
        usual = min(train.workers, most) if train.workers > 1 else most
        found += [several(name, usual) for name in ("parameter-server", "local-sgd")]
        found += [several("data-parallel", workers) for workers in sorted({*_between(2, most), usual} - {most})]
        found += [*singles, several("sharded", usual)]
    first = msgspec.structs.replace(found[0], with_checkpoint=not is_quick)
    return [first, *found[1:]]


def _between(least: int, most: int) -> Sequence[int]:
    """Return numbers from `least` on, each twice the one before, below `most`; the largest first."""
    found = []
    while least < most:
        found.append(least)
        least *= 2
    return found[::-1]


def _run(setup: ProbeSetup, launcher: Launcher, clock: Clock, limit_s: float) -> None:
    """Run all processes to their end; none lives any more afterwards."""
    token = secrets.token_hex(4)
    names = [f"measure-{token}-{rank}" for rank in range(max(tried.workers for tried in setup.trials))]
    try:
        for rank, name in enumerate(names):
            own = msgspec.structs.replace(setup, rank=rank)
            # Memory that nobody uses any more must be given back between two trials, but within one it is kept.
            launcher.start(rank_process(name, "argosy.train.probe:main", msgspec.to_builtins(own), 1))
        failed_at = -1.0
        while not _are_done(names, launcher, is_patient=failed_at < 0 or clock.monotonic() - failed_at < _OTHERS_S):
            now = clock.monotonic()
            if failed_at < 0 and any(info is not None and info.exit_code for info in map(launcher.get, names)):
                failed_at = now
            if now - setup.launched > limit_s:
                raise DeadlineExceeded(f"measuring this training took more than {limit_s:.0f} s", code="too_slow")
            clock.sleep(_POLL_S)
    finally:
        stop_all(launcher, names, grace_s=0.0)
        for name in names:
            launcher.forget(name)


def _are_done(names: Sequence[str], launcher: Launcher, *, is_patient: bool) -> bool:
    """Return whether all processes have ended well. Raises what one of them raised.

    `is_patient` while others than those that have failed so far may still say the cause.
    """
    found = [launcher.get(name) for name in names]
    ended = {name: info for name, info in zip(names, found, strict=True) if info is None or not info.alive}
    failed = [name for name, info in ended.items() if info is None or info.exit_code]
    errors: list[ArgosyError] = [error for name in failed if (error := launcher.error(name)) is not None]
    causes = [error for error in errors if error.code != "rank_lost"]
    if causes:
        raise causes[0]
    if failed and is_patient and len(ended) < len(names):
        return False
    if errors:
        raise errors[0]
    if failed:
        raise Unavailable(f"a process that measured this training was killed ('{failed[0]}')", code="ranks_lost")
    return len(ended) == len(names)
