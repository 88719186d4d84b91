"""How soon what was decided holds: the judge's verdict, a return by hand, a version that fails everywhere."""

import statistics
import threading
import time
from collections.abc import Callable

from argosy.core.clock import SystemClock
from argosy.operate import desired as d
from argosy.operate.processes import gateway_socket
from argosy.registry.registry import open_registry
from argosy.serve.control import EndpointStatus, GatewayClient
from faultlab.deployment import Deployment, until
from faultlab.kills import Quiet
from faultlab.load import Heard, clients, stop_all, together
from faultlab.models import told
from faultlab.report import Line, line

_RATE = 300.0
_VERDICT_S, _RETURN_S, _FAILOVER_S = 1.0, 1.0, 2.0
_NAN = float("nan")
_BY_STEPS = '[rollout]\nsteps = [20]\ndwell = "5min"\nwindow = "1s"\njudge = ["errors"]\nmirror = 0\n'
_AT_ONCE = ""


def run(quiet: Quiet, *, repeats: int = 5) -> list[Line]:
    """Measure."""
    lines: list[Line] = []
    with Deployment() as home:
        home.shape("m", 1)
        home.deploy(home.file(told(1)))
        home.settle("m:1", 1)
        with quiet():
            for measure in (_verdicts, _returns, _failovers):
                lines += measure(home, repeats)
    return lines


def _verdicts(home: Deployment, repeats: int) -> list[Line]:
    """A canary whose answers are no numbers: from the judge's entry in the log to a share of zero at the gateway."""
    home.shape("m", 1, _BY_STEPS)
    lags, heard = [], []
    for _ in range(repeats):
        bad = home.publish(told(_NAN))
        with clients(_load(home)) as running:
            time.sleep(0.5)
            watch = Moment(home, lambda seen: seen.share == 0, after=lambda seen: seen.share)
            home("deploy", bad, "--name", "m")
            lags.append(watch.wait() - _entry_time(home))
            heard.append(stop_all(running))
    home.shape("m", 1, _AT_ONCE)
    return [_seconds("from the judge's verdict to no request for the new version", lags, _VERDICT_S), _lost(heard)]


def _returns(home: Deployment, repeats: int) -> list[Line]:
    """`argosy rollback`, from the command's start to the former version's answering."""
    times, heard = [], []
    for _ in range(repeats):
        # An undo keeps no former version, so each needs a deployment of its own before it.
        former = home.status().endpoints[0].serving
        home("deploy", home.publish(told(float(_next_number(home)))), "--name", "m")
        with clients(_load(home)) as running:
            time.sleep(0.5)
            begun = time.monotonic()
            watch = Moment(home, lambda seen, former=former: seen.serving == former)
            home("rollback", "m")
            times.append(watch.wait_monotonic() - begun)
            heard.append(stop_all(running))
    return [_seconds("a return by hand, the command's own start included", times, _RETURN_S), _lost(heard)]


def _failovers(home: Deployment, repeats: int) -> list[Line]:
    """A version that is switched to at once and fails everything: until another answers in its place."""
    times, heard = [], []
    good = home.status().endpoints[0].serving_ref
    for _ in range(repeats):
        bad = home.publish(told(_NAN))
        with clients(_load(home)) as running:
            time.sleep(0.5)
            served = Moment(home, lambda seen, bad=bad: seen.stable == bad.digest)
            left = Moment(home, lambda seen, bad=bad: seen.stable == bad.digest != seen.serving)
            home("deploy", bad, "--name", "m")
            times.append(left.wait_monotonic() - served.wait_monotonic())
            time.sleep(1.0)
            heard.append(stop_all(running))
        home("rollback", "m")
        until(lambda: home.status().endpoints[0].serving_ref == good)
    return [_seconds("a version that fails everywhere: until another one answers", times, _FAILOVER_S), _lost(heard)]


def _next_number(home: Deployment) -> int:
    """Return the number that the next version gets: clients know right answers by it."""
    registry = open_registry(home.settings, SystemClock())
    registry.log.refresh()
    return len(registry.versions.list("m")) + 1


class Moment:
    """Notes when something becomes true, looking every few milliseconds in a thread of its own."""

    def __init__(
        self,
        home: Deployment,
        holds: Callable[[EndpointStatus], object],
        after: Callable[[EndpointStatus], object] = lambda _: True,
    ) -> None:
        """`after`: something that must have been true before."""
        self._wall = self._monotonic = 0.0
        self._holds, self._after = holds, after
        # A connection of its own: one serves one thread.
        self._gateway = GatewayClient(str(gateway_socket(home.settings)))
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def wait(self) -> float:
        """Return the moment by the wall clock."""
        self._thread.join(120)
        if not self._wall:
            raise TimeoutError("it never became so")
        return self._wall

    def wait_monotonic(self) -> float:
        """Return the moment by the clock that never jumps."""
        self.wait()
        return self._monotonic

    def _watch(self) -> None:
        for condition in (self._after, self._holds):
            until(lambda condition=condition: condition(self._gateway.status().endpoints[0]), 100, every_s=0.005)
        self._wall, self._monotonic = time.time(), time.monotonic()
        self._gateway.close()


def _entry_time(home: Deployment) -> float:
    log = open_registry(home.settings, SystemClock()).log
    log.refresh()
    return next(e.time for e in reversed(list(log.entries(kind=d.STEPPED))) if e.data["phase"] == d.ROLLING_BACK)


def _load(home: Deployment) -> list[dict[str, object]]:
    return [{"kind": "json", "port": home.port, "schedule": [[3600.0, _RATE]], "seed": 1, "base": 0}]


def _seconds(promise: str, found: list[float], bound: float) -> Line:
    return line(
        promise,
        f"{statistics.median(found):.3f} s ({min(found):.3f} to {max(found):.3f}, {len(found)} times)",
        f"{bound:g} s",
        max(found) <= bound,
        seconds=[round(each, 4) for each in found],
    )


def _lost(heard: list[Heard]) -> Line:
    every = together(heard, same_groups=True)
    return line(
        "meanwhile: failed requests",
        f"{len(every.failed)} of {len(every.rows):,}",
        "0",
        len(every.failed) == 0,
        outcomes=every.outcomes(),
        failures=every.failures[:20],
    )
