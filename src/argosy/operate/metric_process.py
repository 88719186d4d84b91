"""The process that reads a rollout's own metrics: asks Prometheus, or calls the user's function, window by window.

What it runs is the user's code, so it runs here and not in the controller: confined, with bounded memory, and each
call with bounded time. Should it hang all the same, the controller ends it.
"""

import contextlib
import json
import math
import signal
import string
import types
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from argosy.cluster.confinement import confine
from argosy.core.clock import Clock, SystemClock
from argosy.core.errors import ArgosyError, DeadlineExceeded, InvalidInput, Unavailable
from argosy.core.files import write_atomic
from argosy.operate.config import OwnMetric
from argosy.operate.own_metrics import (
    KEPT_READINGS,
    MEMORY_BYTES,
    MetricFile,
    MetricState,
    ReaderConfig,
    Reading,
    seconds_between,
)

_LONGEST_S = (1.0, 10.0)
"""Least and greatest time of one call, else the time between two."""
_MOST_BYTES = 1 << 20
_SAID = 200

Read = Callable[[float, float], tuple[float, float]]
"""From the start and end of a stretch of time to the values of the current and the new version."""


def main(config: dict[str, Any]) -> None:
    """Read until ended."""
    settings = msgspec.convert(config, ReaderConfig)
    out = Path(settings.out)
    confine(memory_bytes=MEMORY_BYTES)
    run(settings, SystemClock(), lambda data: write_atomic(out, data, mode=0o600))


def run(
    settings: ReaderConfig, clock: Clock, write: Callable[[bytes], None], *, is_over: Callable[[], bool] = lambda: False
) -> None:
    """Read every metric whenever its time has come, and write down what came of it."""
    states = {name: MetricState() for name in settings.metrics}
    reads: dict[str, Read] = {}
    for name, own in settings.metrics.items():
        try:
            reads[name] = reader(own, settings)
        except ArgosyError as error:
            states[name] = MetricState(trouble=error.message)
    began = clock.now()
    due = dict.fromkeys(reads, clock.monotonic())
    count = 0
    while not is_over():
        for name, read in reads.items():
            if clock.monotonic() < due[name]:
                continue
            every_s = seconds_between(settings.metrics[name], settings.window_s)
            due[name] = max(due[name] + every_s, clock.monotonic())
            end = clock.now()
            with _at_most(min(max(_LONGEST_S[0], every_s), _LONGEST_S[1])):
                states[name] = after(states[name], read, max(began, end - every_s), end)
        count += 1
        write(msgspec.json.encode(MetricFile(count=count, metrics=states)))
        left_s = min(due.values(), default=math.inf) - clock.monotonic()
        clock.sleep(min(max(left_s, 0.05), 1.0))


def after(state: MetricState, read: Read, start: float, end: float) -> MetricState:
    """Return a metric's state after one more reading; whatever the reading raises is its trouble."""
    try:
        current, new = read(start, end)
        values = float(current), float(new)
    except ArgosyError as error:
        return msgspec.structs.replace(state, trouble=error.message)
    except Exception as error:  # noqa: BLE001 - the outermost point of the user's code
        return msgspec.structs.replace(state, trouble=f"{type(error).__name__}: {error}"[:_SAID])
    if not all(map(math.isfinite, values)):
        return msgspec.structs.replace(state, ignored=state.ignored + 1, trouble="")
    readings = (*state.readings, Reading(end=end, current=values[0], new=values[1]))[-KEPT_READINGS:]
    return msgspec.structs.replace(state, readings=readings, read=state.read + 1, trouble="")


def reader(own: OwnMetric, settings: ReaderConfig) -> Read:
    """Return how a metric is read. Raises InvalidInput when its code can't be loaded."""
    if own.promql:
        every_s = seconds_between(own, settings.window_s)

        def ask(start: float, end: float) -> tuple[float, float]:
            del start
            current, new = (
                query(own.prometheus, filled(own.promql, settings.endpoint, ref, every_s), at=end)
                for ref in (settings.current, settings.new)
            )
            return current, new

        return ask
    function = load(own, settings.sources)

    def call(start: float, end: float) -> tuple[float, float]:
        window = {
            "rollout": settings.rollout,
            "endpoint": settings.endpoint,
            "current": settings.current,
            "new": settings.new,
            "start": start,
            "end": end,
        }
        found = function(window)
        if not isinstance(found, Mapping) or not {"current", "new"} <= set(found):
            raise InvalidInput(f"'{own.python}' returned {str(found)[:80]!r} and not {{'current': ..., 'new': ...}}")
        return found["current"], found["new"]

    return call


def filled(promql: str, endpoint: str, version: str, every_s: float) -> str:
    """Return a query for one version.

    >>> filled('rate(s{v="$version"}[$window])', "m", "m:2", 10)
    'rate(s{v="m:2"}[10s])'
    """
    window = f"{every_s:g}s" if every_s == int(every_s) else f"{int(every_s * 1000)}ms"
    return string.Template(promql).safe_substitute(version=version, endpoint=endpoint, window=window)


def query(url: str, promql: str, *, at: float) -> float:
    """Ask Prometheus for one number. Raises Unavailable when it isn't there, InvalidInput for any other answer."""
    given = urllib.parse.urlencode({"query": promql, "time": f"{at:.3f}"})
    asked = f"{url.rstrip('/')}/api/v1/query?{given}"
    try:
        with urllib.request.urlopen(asked, timeout=5.0) as answer:  # noqa: S310 - the config allows http(s) only
            body = answer.read(_MOST_BYTES)
    except urllib.error.HTTPError as error:
        said = error.read(_SAID).decode(errors="replace")
        raise InvalidInput(f"Prometheus at '{url}' answered {error.code}: {said}") from error
    except OSError as error:
        raise Unavailable(f"Prometheus at '{url}' does not answer: {getattr(error, 'reason', error)}") from error
    except DeadlineExceeded as error:
        raise Unavailable(f"Prometheus at '{url}' does not answer: {error.message}") from error
    return number(body)


def number(body: bytes) -> float:
    """Return the one number in an answer of Prometheus. Raises InvalidInput when there is none, or several."""
    try:
        data = json.loads(body)["data"]
        kind, result = data["resultType"], data["result"]
        if kind == "scalar":
            return float(result[1])
        if kind != "vector":
            raise InvalidInput(f"the query gives a {kind}; it must give one number")
        if len(result) != 1:
            what = "nothing, so the metric is not there" if not result else f"{len(result)} series; add them up"
            raise InvalidInput(f"the query gives {what}")
        return float(result[0]["value"][1])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise InvalidInput(f"what Prometheus answered can't be read: {body[:80]!r}") from error


def load(own: OwnMetric, sources: Mapping[str, str]) -> Callable[[dict[str, Any]], Any]:
    """Return the user's function. Raises InvalidInput."""
    module_name, _, name = own.python.partition(":")
    source = sources.get(own.code)
    if source is None:
        raise InvalidInput(f"the code of '{own.python}' is not in the registry", hint="deploy again")
    module = types.ModuleType(module_name)
    try:
        exec(compile(source, f"{module_name}.py", "exec"), module.__dict__)  # noqa: S102 - what the operator deployed
    except Exception as error:
        raise InvalidInput(f"'{module_name}.py' can't be loaded: {type(error).__name__}: {error}"[:_SAID]) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise InvalidInput(f"'{module_name}.py' has no function '{name}'")
    return function  # type: ignore[no-any-return]


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """End what runs inside by DeadlineExceeded; what hangs outside of Python's reach is left to the controller."""

    def ring(*_: object) -> None:
        raise DeadlineExceeded(f"it took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
