"""Rollouts through the real controller: its log, its table of moves, its routes and its judge, one rollout at a time.

`rollout_simulation` repeats the judge's arithmetic for arrays, to afford many rollouts. Here nothing is repeated: a
version is deployed by the command's own function, `operate.controller.Reconciler` starts its replicas (in memory),
moves it from step to step, takes the gateway's windows, and ends the rollout by the log. Only requests are drawn, with
the share that the gateway's route names at that moment. In some cells the controller is killed at random moments, and
another one is elected that knows nothing but the log.
"""

import random
import time
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from rollout_simulation import Cell, factors

from argosy.cluster.memory import MemoryLauncher
from argosy.core.clock import FakeClock
from argosy.core.digest import sha256
from argosy.core.tensors import Signature, TensorSpec
from argosy.evaluate.judge import ERRORS
from argosy.operate import commands
from argosy.operate import desired as d
from argosy.operate.config import EndpointConfig, RolloutConfig
from argosy.operate.controller import Parts, Reconciler
from argosy.operate.judging import WindowJudge
from argosy.operate.memory import FakeEntry, FakeGateway, FakeLog
from argosy.registry.versions import Evaluation, Manifest, Version
from argosy.serve.control import ReplicaPart

NAME = "m"
_TENSOR = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
_SIGNATURE = Signature(inputs=(_TENSOR,), outputs=(_TENSOR,))
_SETTLE = (0.1, 0.4)
"""Seconds after a window's end at which the controller looks."""


@dataclass(frozen=True)
class Journey:
    """One kind of rollout: its requests, and how it is asked for."""

    cell: Cell
    false_alarm: float = 0.01
    dwell_s: float = 60.0
    undecided: str = "promote"
    kills: int = 0
    """How often the controller is killed during a rollout."""

    @property
    def name(self) -> str:
        killed = f", controller killed {self.kills} times" if self.kills else ""
        return f"{self.cell.name}, false_alarm {self.false_alarm:.0%}{killed}"


class Home:
    """A controller, a gateway and a launcher in memory, serving version 1."""

    def __init__(self, seed: tuple[int, ...]) -> None:
        self.random = random.Random(repr(seed))
        self.clock = FakeClock()
        self.launcher, self.gateway = MemoryLauncher(self.clock), FakeGateway()
        self.gateway.is_alive = False
        self.entries: list[FakeEntry] = []
        self.log = FakeLog(self.entries, self.clock)
        versions = {key: v for v in (_version(1), _version(2)) for key in (str(v), v.digest)}
        self.registry: Any = SimpleNamespace(log=self.log, versions=SimpleNamespace(get=versions.__getitem__))
        self.controller = self._new_controller()
        commands.deploy(self.registry, f"{NAME}:1", name=NAME, endpoint=EndpointConfig(threads=1, backup="none"))
        self.pass_time(0.5)
        while not self.state().endpoints[NAME].stable or not self.gateway.routes:
            self.pass_time(0.5)

    def _new_controller(self) -> Reconciler:
        parts = Parts(
            log=FakeLog(self.entries, self.clock, "controller"),
            launcher=self.launcher,
            gateway=self.gateway,
            clock=self.clock,
            randomness=self.random,
            gate_missed=lambda digest: "",  # noqa: ARG005 - all passed
            make_judge=WindowJudge,
            make_replica=lambda name, want: {"id": name, "digest": want.target.digest, "threads": want.threads},
            make_front=lambda desired, name, port: {"name": name, "port": port, "fronts": desired.gateway.fronts},
            make_gateway=lambda desired: {
                **desired.gateway.plain(),
                "port": desired.bound_port or desired.port,
                "is_guarded": desired.access.is_on,
            },
            report=lambda event, **fields: None,  # noqa: ARG005 - nobody listens
        )
        controller = Reconciler(parts)
        controller.elect()
        return controller

    def restart(self) -> None:
        """Let the controller be gone, and another one come that has only the log."""
        self.controller = self._new_controller()

    def state(self) -> d.Desired:
        """Return what the controller knows of the log."""
        return self.controller.desired

    def pass_time(self, seconds: float) -> None:
        """Let time pass, processes come up, and the controller look once."""
        self.clock.advance(seconds)
        gateway = self.launcher.get("gateway")
        if gateway is not None and gateway.alive and not self.gateway.is_alive:
            config = self.launcher.specs["gateway"].config
            self.gateway.asked = {
                name: config[name] for name in ("host", "port", "grpc_port", "fronts") if name in config
            }
            self.gateway.revive(gateway.pid, self.clock.monotonic())
        if self.gateway.is_alive:
            for info in self.launcher.list("replica"):
                if info.alive and info.name not in self.gateway.replicas:
                    config = self.launcher.specs[info.name].config
                    self.gateway.connect(info.name, config["digest"], threads=config["threads"])
                elif not info.alive:
                    self.gateway.disconnect(info.name)
        self.controller.tick()


def _version(number: int) -> Version:
    manifest = Manifest(
        name=NAME, created=0.0, role="original", task="tensor", signature=_SIGNATURE, files={},
        evaluation=Evaluation(kind="test-set", passed=True),
    )  # fmt: skip
    return Version(name=NAME, number=number, digest=sha256(f"{number}".encode()), manifest=manifest)


def once(journey: Journey, seed: tuple[int, ...]) -> tuple[str, str, float, int]:
    """Deploy version 2 and return how it ended, why, after how many minutes of requests, and how many had failed."""
    cell = journey.cell
    rng = np.random.default_rng(seed)
    home = Home(seed)
    config = RolloutConfig(
        steps=tuple(100 * share for share in cell.shares), dwell=f"{journey.dwell_s:g}s", window=f"{cell.window_s:g}s",
        time_limit=f"{cell.minutes:g}min", undecided=journey.undecided, false_alarm=journey.false_alarm,
        judge=("errors",), mirror=0,
    )  # fmt: skip
    rollout = commands.deploy(home.registry, f"{NAME}:2", name=NAME, rollout=config).rollout
    while not (home.gateway.routes[NAME].share and home.gateway.ready(home.gateway.routes[NAME].canary)):
        home.pass_time(0.5)
    rate = np.minimum(1.0, factors(cell, rng, 1)[0] * cell.base)
    killed_at = {home.random.randrange(cell.windows) for _ in range(journey.kills)}
    failed = 0
    for number in range(cell.windows + 10):
        endpoint = home.state().endpoints[NAME]
        if endpoint.rollout is None:
            break
        home.clock.advance(cell.window_s - sum(_SETTLE))
        failed += _window(home, cell, rng, float(rate[min(number, cell.windows - 1)]))
        if number in killed_at:
            home.restart()
        for seconds in _SETTLE:
            home.pass_time(seconds)
    last = home.state().endpoints[NAME].last
    if last is None or last.rollout != rollout:
        raise AssertionError(f"the rollout did not end: {home.state().endpoints[NAME].rollout}")
    return last.outcome, last.reason, number * cell.window_s / 60, failed


def _window(home: Home, cell: Cell, rng: np.random.Generator, p: float) -> int:
    """Close a window of requests; return how many of the canary's failed."""
    route = home.gateway.routes[NAME]
    if not route.rollout or not route.share:
        return 0
    n = int(rng.poisson(cell.requests_per_min * cell.window_s / 60))
    n_c = int(rng.binomial(n, route.share))
    bad_c = int(rng.binomial(n_c, min(1.0, p * cell.ratio)))
    bad_s = int(rng.binomial(n - n_c, p))
    replicas = sorted(r.id for r in home.gateway.replicas.values() if r.version == route.canary)
    home.gateway.close_window(
        NAME, home.clock.now() - cell.window_s, cell.window_s,
        bad={ERRORS: (float(bad_c), float(bad_c + bad_s))}, requests_canary=n_c, requests_stable=n - n_c,
        failed_canary=bad_c, failed_stable=bad_s,
        replicas={replicas[0]: ReplicaPart(handled=n_c, bad={ERRORS: (float(bad_c), float(bad_c))})},
    )  # fmt: skip
    return bad_c


def run(journey: Journey, repeats: int, seed: int = 2025) -> dict[str, object]:
    """Repeat one kind of rollout and sum it up."""
    before = time.perf_counter()
    found = [once(journey, (seed, *journey.name.encode(), number)) for number in range(repeats)]
    back = [one for one in found if one[0] == d.ROLLED_BACK]
    return {
        "name": journey.name,
        "repeats": repeats,
        "rolled_back": len(back) / repeats,
        "promoted": sum(one[0] == d.PROMOTED for one in found) / repeats,
        "median_min": float(np.median([one[2] for one in back])) if back else None,
        "failed_canary_median": float(np.median([one[3] for one in back])) if back else None,
        "promoted_median_min": float(np.median([one[2] for one in found if one[0] == d.PROMOTED] or [0])) or None,
        "seconds": round(time.perf_counter() - before, 2),
        "journey": asdict(journey),
    }


def journeys() -> list[Journey]:
    """Good versions at both rates of false alarms, with kills and without; bad ones that must be found."""
    good = [
        Cell("good, 0.5%, 60/min, 30 min", 60, 0.005),
        Cell("good, 0.5%, 600/min, 30 min", 600, 0.005),
        Cell("good, bad minutes, 5%, 600/min, 30 min", 600, 0.05, pattern="bad minutes"),
        Cell("good, autocorrelated, 0.5%, 6000/min, 30 min", 6000, 0.005, pattern="autocorrelated"),
    ]
    bad = [
        Cell("5x, 1%, 60 canary requests/min, 10 min", 600, 0.01, ratio=5, shares=(0.1,), minutes=10),
        Cell("5x, 0.5%, 60 canary requests/min, 15 min", 600, 0.005, ratio=5, shares=(0.1,), minutes=15),
        Cell("5x, 0.5%, 600 canary requests/min, 10 min", 6000, 0.005, ratio=5, shares=(0.1,), minutes=10),
    ]
    found = [Journey(cell, false_alarm=alpha) for cell in good for alpha in (0.01, 0.05)]
    found += [Journey(good[1], false_alarm=0.05, kills=3)]
    return [*found, *(Journey(cell) for cell in bad), Journey(bad[0], kills=3)]
