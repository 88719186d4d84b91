"""One training from data to weights: starts its ranks, watches them, starts them again when one is lost.

No torch here: the process that calls `run_training` stays small.
"""

import os
import secrets
from pathlib import Path
from typing import Any

import msgspec

from argosy.cluster.launcher import Launcher, ProcessSpec, stop_all
from argosy.cluster.local import LocalLauncher
from argosy.core.clock import Clock, SystemClock
from argosy.core.digest import digest_of, sha256_file
from argosy.core.errors import ArgosyError, Conflict, NotFound, Unavailable
from argosy.core.files import FileLock
from argosy.core.progress import Progress, Reporter, silent
from argosy.train.choosing import Asked, Choice, Chooser, read_choice
from argosy.train.config import FEWER, REPLACING, ModelConfig, TrainConfig
from argosy.train.hosts import Hosts
from argosy.train.initial import init_digest
from argosy.train.measurement import MeasurementStore
from argosy.train.network.rendezvous import Rendezvous
from argosy.train.outcome import CHECKPOINTS, NEWS, RESULT, WEIGHTS, Outcome, RankSetup, code_digest
from argosy.train.rank_process import rank_process
from argosy.train.shared_memory import Segment

_POLL_S = 0.05
_SILENCE_S = 10.0
"""A rank without a sign of life for so long is frozen or cut off."""
_JOIN_S = 180.0
"""A rank that has not joined by then never will; importing torch takes 2 s on an idle machine."""
_OTHERS_S = 1.0
"""When a rank has failed, the others get so long to end too: the one that knows the cause may not be the first."""
_RESTARTS = 3
"""Restarts without a new checkpoint in between; then something is wrong that restarting doesn't cure."""
_KILLED = "was ended by signal 9"
_REPLACEMENTS, _REPLACEMENTS_S = 3, 60.0
"""Ranks replaced within so many seconds; if there are more, all start again from the checkpoint."""


class TrainResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a training gave. `history` has one entry per epoch; `seconds` counts all starts."""

    weights: Path
    history: list[dict[str, Any]]
    epochs: int
    steps: int
    metric: str
    best_metric: float
    seconds: float
    restarts: int = 0
    """How often all ranks began again from a checkpoint."""
    replaced: int = 0
    """How many ranks were lost and replaced while the others waited."""
    choice: list[str] = []
    """What `auto` chose and why, in a few lines; empty if there was nothing to choose."""


def run_training(  # noqa: PLR0917 - what, how, from where, to where: the order of the words
    dataset_folder: Path,
    model: ModelConfig,
    train: TrainConfig,
    base: Path,
    work: Path,
    report: Reporter = silent,
    *,
    launcher: Launcher | None = None,
    clock: Clock | None = None,
    threads: int = 0,
    measurements: MeasurementStore | None = None,
    hosts: Hosts | None = None,
) -> TrainResult:
    """Train with `train.workers` rank processes and return where the weights are.

    `work` belongs to this training: checkpoints in it are resumed, to the same bits as without a break, and a
    finished training is not run again. `threads` is per rank; 0 shares out the cores. `measurements` are what `auto`
    chooses by, and where it keeps new ones. With `hosts` each of them calls this, with the same data and settings, and
    each ends with the same weights. Blocks until the end; a reporter that raises stops it. Raises what a rank
    raised (InvalidInput for the user's mistakes), Conflict if `work` is in use or another training's, Unavailable when
    ranks die again and again.
    """
    hosts = hosts or Hosts()
    model.check()
    train.check()
    hosts.check(train)
    work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work / "lock")
    if not lock.acquire():
        raise Conflict(f"another process is training in '{work}'", hint="wait for it, or use another folder")
    try:
        clock = clock or SystemClock()
        made_by = _made_by(dataset_folder, model, train, base)
        found = _outcome(work, made_by)
        if found is not None:
            return _result(work, found)
        launcher = launcher or LocalLauncher(work / "processes", clock)

        def carry_out(choice: Choice, listener: Reporter) -> TrainResult:
            chosen = choice.applied(train)
            setup = RankSetup(
                rank=0,
                segment="",
                threads=threads or choice.threads or max(1, len(os.sched_getaffinity(0)) // chosen.workers),
                dataset=str(dataset_folder.absolute()),
                model=model,
                train=chosen,
                base=str(base.absolute()),
                work=str(work.absolute()),
                made_by=made_by,
                hosts=hosts,
                code=code_digest(model, base),
            )
            with hosts.open(made_by) as rendezvous:
                return _Job(setup, launcher, clock, listener, rendezvous).run()

        if hosts.count > 1:
            # How is chosen by the ranks, when they see the network.
            usual = Choice(made_by=made_by, strategy=train.strategy, workers=train.workers, threads=0, reasons=[])
            return carry_out(usual, report)

        asked = Asked(
            dataset=dataset_folder,
            data=sha256_file(dataset_folder / "dataset.json"),
            model=model,
            train=train,
            base=base,
            work=work,
            made_by=made_by,
        )
        return Chooser(asked, measurements, launcher=launcher, clock=clock, report=report).run(carry_out)
    finally:
        lock.release()


def _made_by(dataset_folder: Path, model: ModelConfig, train: TrainConfig, base: Path) -> str:
    """Return one digest over all that decides the weights."""
    description = dataset_folder / "dataset.json"
    if not description.is_file():
        raise NotFound(f"'{dataset_folder}' holds no data set")
    deciding = msgspec.structs.replace(train, checkpoint_s=1.0)
    return digest_of(
        {
            "data": sha256_file(description),
            "model": model,
            "init": init_digest(model, base),
            "train": deciding,
            "code": code_digest(model, base),
        }
    )


def _outcome(work: Path, made_by: str) -> Outcome | None:
    """Return the outcome of a finished training whose weights are whole."""
    try:
        found = msgspec.json.decode((work / RESULT).read_bytes(), type=Outcome)
        if found.made_by == made_by and sha256_file(work / WEIGHTS) == found.digest:
            return found
    except (OSError, msgspec.DecodeError):
        return None
    return None


def _result(work: Path, found: Outcome, *, restarts: int = 0, replaced: int = 0) -> TrainResult:
    choice = read_choice(work, found.made_by)
    return TrainResult(
        weights=work / WEIGHTS,
        history=found.history,
        epochs=found.epochs,
        steps=found.steps,
        metric=found.metric,
        best_metric=found.best_metric,
        seconds=found.seconds,
        restarts=restarts,
        replaced=replaced,
        choice=choice.reasons if choice is not None else [],
    )


class _Job:
    def __init__(
        self,
        setup: RankSetup,
        launcher: Launcher,
        clock: Clock,
        report: Reporter,
        rendezvous: Rendezvous | None = None,
    ) -> None:
        self._setup = setup
        self._rendezvous = rendezvous
        self._launcher = launcher
        self._clock = clock
        self._report = report
        self._work = Path(setup.work)
        self._read = 0
        self._replaced = 0

    def run(self) -> TrainResult:
        in_vain = restarts = 0
        while True:
            checkpoint = self._newest_checkpoint()
            lost = self._attempt()
            found = _outcome(self._work, self._setup.made_by)
            if found is not None:
                return _result(self._work, found, restarts=restarts, replaced=self._replaced)
            lost = lost or "the ranks ended without a result"
            in_vain = 1 if self._newest_checkpoint() != checkpoint else in_vain + 1
            if in_vain > _RESTARTS and self._has_fewer(lost):
                in_vain = _RESTARTS
                lost += f", again and again; going on with {self._setup.train.workers} of them"
            elif in_vain > _RESTARTS:
                raise Unavailable(
                    f"{lost}, for the {in_vain}th time without any progress",
                    hint=f"the ranks' logs are in '{self._work / 'processes'}'; too little memory is a usual cause",
                    code="ranks_lost",
                )
            restarts += 1
            self._say(f"{lost}; all ranks start again from the last checkpoint")

    def _has_fewer(self, lost: str) -> bool:
        """Take one worker less, if that can be, and may help: a system short of memory kills what takes most of it."""
        train = self._setup.train
        if not lost.endswith(_KILLED) or self._setup.hosts.count > 1:
            return False
        if train.workers == 1 or train.strategy_name not in FEWER:
            return False
        self._setup = msgspec.structs.replace(
            self._setup, train=msgspec.structs.replace(train, workers=train.workers - 1)
        )
        return True

    def _attempt(self) -> str:
        """Start all ranks and watch them to their end; return which one was lost and how, or an empty text.

        Raises what a rank raised. No rank lives any more afterwards.
        """
        (self._work / NEWS).unlink(missing_ok=True)
        self._read = 0
        segment = Segment.create(self._setup.train.workers)
        # Over several hosts a lost rank may be in the middle of what the other hosts can't do again.
        is_alone = self._setup.hosts.count == 1
        segment.is_replacing = is_alone and segment.world_size > 1 and self._setup.train.strategy_name in REPLACING
        ranks = _Ranks(segment)
        if self._rendezvous is not None:
            ranks.generation = self._rendezvous.generation
        try:
            for rank in range(segment.world_size):
                self._start(rank, ranks)
            return self._watch(ranks)
        finally:
            # The transport lets the others go when one is gone, but a frozen or confused one needs the signal.
            segment.is_replacing = False
            stop_all(self._launcher, ranks.started, grace_s=0.0)
            segment.close()

    def _start(self, rank: int, ranks: "_Ranks") -> None:
        name = f"rank-{secrets.token_hex(4)}-{rank}"
        ranks.names[rank] = name
        ranks.started.append(name)
        self._launcher.start(self._spec(rank, name, ranks.segment.path))

    def _spec(self, rank: int, name: str, segment: str) -> ProcessSpec:
        setup = msgspec.structs.replace(self._setup, rank=rank, segment=segment)
        return rank_process(name, "argosy.train.rank:main", msgspec.to_builtins(setup), setup.threads)

    def _watch(self, ranks: "_Ranks") -> str:
        segment = ranks.segment
        started = self._clock.monotonic()
        failed_at = left_at = -1.0
        while True:
            self._pass_news()
            now = self._clock.monotonic()
            names = [ranks.names[rank] for rank in range(segment.world_size)]
            ended = self._ended(names)
            if all(ended.get(name) == 0 for name in names):
                self._pass_news()
                return ""
            if ranks.awaited and ended.get(ranks.names[0]) == 0:
                self._pass_news()
                return ""  # rank 0 ends so when the outcome is written: nobody is left to tell a new rank anything
            if any(ended.values()) and not self._replace(ranks, ended):
                failed_at = now if failed_at < 0 else failed_at
                if len(ended) == len(names) or now - failed_at > _OTHERS_S:
                    return self._judge(names, ended)
            lost = self._stop_silent(ranks, ended)
            if lost:
                return lost
            back = self._left_out(ranks)
            if back:
                return f"host {back[0]} has come back"
            if now - started > _JOIN_S and not segment.is_joined():
                return f"not all ranks came up within {_JOIN_S:.0f} s"
            for rank, at in list(ranks.awaited.items()):
                if segment.silent_s(rank, self._clock) >= 0:
                    del ranks.awaited[rank]
                elif now - at > _JOIN_S:
                    return f"no other process has taken the place of rank {rank} within {_JOIN_S:.0f} s"
            if segment.is_left():
                left_at = now if left_at < 0 else left_at
                if now - left_at > _SILENCE_S:
                    return ""  # all is written; something of the user's keeps a process from ending
            self._clock.sleep(_POLL_S)

    def _left_out(self, ranks: "_Ranks") -> list[int]:
        """Return the hosts that wait while these ranks train without them."""
        rendezvous = self._rendezvous
        is_training = rendezvous is not None and rendezvous.generation > ranks.generation
        return rendezvous.left_out() if rendezvous is not None and is_training else []

    def _stop_silent(self, ranks: "_Ranks", ended: dict[str, int]) -> str:
        """Kill ranks that give no sign of life; return which, unless another can take its place."""
        for rank, name in ranks.names.items():
            silent_s = ranks.segment.silent_s(rank, self._clock)
            if silent_s > _SILENCE_S and name not in ended:
                why = f"rank {rank} gave no sign of life for {silent_s:.0f} s"
                if not ranks.segment.is_replacing:
                    return why
                ranks.silent[name] = why
                self._launcher.stop(name, grace_s=0.0)
        return ""

    def _replace(self, ranks: "_Ranks", ended: dict[str, int]) -> bool:
        """Start others in the place of ranks that were killed, if somebody is left who knows the state.

        Returns whether that was done; if not, this attempt is over and the others are told so.
        """
        segment, now = ranks.segment, self._clock.monotonic()
        killed = [rank for rank, name in ranks.names.items() if ended.get(name)]
        causes = [self._launcher.error(ranks.names[rank]) for rank in killed]
        for rank in killed:
            segment.lose(rank)
        recent = [at for at in ranks.replaced if now - at < _REPLACEMENTS_S]
        others = any(segment.silent_s(rank, self._clock) >= 0 for rank in ranks.names) and segment.is_joined()
        if not (segment.is_replacing and others) or any(causes) or len(recent) + len(killed) > _REPLACEMENTS:
            segment.is_replacing = False
            return False
        segment.begin_generation()
        for rank in killed:
            name = ranks.names[rank]
            ranks.replaced.append(now)
            ranks.awaited[rank] = now
            self._replaced += 1
            how = ranks.silent.get(name) or _how_ended(rank, ended[name])
            self._say(f"{how}; another takes its place, and no step is lost")
            self._start(rank, ranks)
        return True

    def _ended(self, names: list[str]) -> dict[str, int]:
        """Return the exit codes of the ranks that have ended; one that nobody saw end counts as killed."""
        found = {}
        for name in names:
            info = self._launcher.get(name)
            if info is None or not info.alive:
                code = info.exit_code if info is not None else None
                found[name] = -9 if code is None else code
        return found

    def _judge(self, names: list[str], ended: dict[str, int]) -> str:
        """Raise the error that a rank ended by, or return which rank was lost without one."""
        errors: list[ArgosyError] = []
        lost = ""
        for rank, name in enumerate(names):
            code = ended.get(name, 0)
            error = self._launcher.error(name) if code else None
            if error is not None:
                errors.append(error)
            elif code and not lost:
                lost = _how_ended(rank, code)
        causes = [error for error in errors if error.code != "rank_lost"]
        if causes:
            raise causes[0]
        return lost or str(errors[0])

    def _pass_news(self) -> None:
        """Hand on what rank 0 has written since the last time; a line that isn't whole yet waits."""
        try:
            with (self._work / NEWS).open("rb") as stream:
                stream.seek(self._read)
                whole, newline, _ = stream.read().rpartition(b"\n")
        except FileNotFoundError:
            return
        self._read += len(whole) + len(newline)
        for line in whole.splitlines():
            self._report(msgspec.json.decode(line, type=Progress))

    def _newest_checkpoint(self) -> str:
        return max((path.name for path in (self._work / CHECKPOINTS).glob("step-*.json")), default="")

    def _say(self, message: str) -> None:
        self._report(Progress(stage="train", message=message))


class _Ranks:
    """The processes of one attempt."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.names: dict[int, str] = {}
        """By rank, the process that has it now."""
        self.started: list[str] = []
        self.replaced: list[float] = []
        """When ranks were replaced."""
        self.awaited: dict[int, float] = {}
        """Those whose new process is not there yet, with the moment when it was started."""
        self.generation = 0
        """That of the hosts before these ranks were started."""
        self.silent: dict[str, str] = {}
        """Those that were killed because they gave no sign of life."""


def _how_ended(rank: int, code: int) -> str:
    return f"rank {rank} " + (f"was ended by signal {-code}" if code < 0 else f"ended with code {code}")
