"""What the sections `[endpoint]` and `[rollout]` of argosy.toml may say, checked strictly."""

import math
import re

import msgspec

from argosy.core.config import Config, from_plain
from argosy.core.errors import InvalidInput
from argosy.core.units import parse_size, parse_time

METRICS_JUDGED = ("errors", "latency", "agreement", "mirrored_errors", "constant")
"""What the judge can look at; the last three need mirrored requests."""
_MIRRORED = ("agreement", "mirrored_errors", "constant")

KINDS = ("canary", "shadow", "blue-green", "all-at-once")
"""How a new version can take over."""


AUTO = "auto"
"""What a calibration on this machine decides."""

BACKUPS = ("previous", "sibling", "none")
_LEAST_MEMORY = 50_000_000
_MOST_REPLICAS = 64
_MOST_PRIORITY = 100
_LONGEST_S = 7 * 86400.0
_USUAL_DISAGREEMENT = 0.05
"""Two trainings of one model on the same data differ on a few answers in a hundred."""


class EndpointConfig(Config, frozen=True):
    """How an endpoint is kept: `[endpoint]`."""

    replicas: int | str = "auto"
    """Processes that serve the current version: `"auto"`, as many as a short calibration finds best for the version on
    this machine; a number; or a range such as `"1..4"`, within which the number follows the load. `"0..4"`: nothing
    runs while nothing is asked, and the next request is held until a replica has been started for it."""
    target_concurrency: float | str = "auto"
    """With a range: requests at the same time, waiting or running, that one replica is for. `"auto"`: 0.7 of what it
    runs together by its calibration."""
    idle: str = "5min"
    """With a range from 0: time without any request until the last replica is stopped."""
    scale_down: str = "5min"
    """With a range: time for which the load must have been low before replicas are stopped."""
    priority: int = 0
    """Who comes first when the machine has no room for all: endpoints of higher priority, from -100 to 100. Those of
    the same share what is left."""
    backup: str = "previous"
    """Which version is kept warm beside the current one, to answer when that fails: `"previous"` (one replica);
    `"sibling"`, the smallest other version of the same training, beside the previous one; or `"none"`."""
    failover: float = 0.5
    """Share of requests that fail on the current version above which the version kept warm answers instead, until the
    current one works again. 0: only when no replica of it is left."""
    threads: int | str = "auto"
    """Threads of each replica: `"auto"`, as calibration finds best for so many replicas, or a number."""
    memory: str = ""
    """Memory that each replica may take, such as `"2GB"`; one that outgrows it is replaced, and no request is lost. Not
    given: half of the machine's, or of the container's."""

    hedge: str = ""
    """Give a request that has run for so long, such as `"80ms"`, to a second idle replica as well, and take the answer
    that comes first. Not given: never."""

    latency_p99: str = ""
    """Objective: 99 of 100 answers come within this time, such as `"250ms"`. `argosy monitor` alerts when they do not.
    Not given: no alert."""

    @property
    def latency_p99_s(self) -> float:
        """The objective in seconds; 0 when none is given."""
        return parse_time(self.latency_p99) if self.latency_p99 else 0.0

    @property
    def hedge_s(self) -> float:
        """Seconds until a request is hedged; 0: never."""
        return parse_time(self.hedge) if self.hedge else 0.0

    @property
    def memory_bytes(self) -> int:
        """The bound in bytes; 0 when none is given."""
        return parse_size(self.memory) if self.memory else 0

    def check(self) -> None:
        """Raise InvalidInput when a value is impossible."""
        self.replica_range()
        if self.backup not in BACKUPS:
            raise InvalidInput(f"endpoint.backup is {self.backup!r}; it can be 'previous', 'sibling' or 'none'")
        if not (self.failover == 0 or 0.01 <= self.failover <= 1):
            raise InvalidInput(f"endpoint.failover is {self.failover:g}; it can be 0 (off), or from 0.01 to 1")
        if self.threads != AUTO and not (isinstance(self.threads, int) and 1 <= self.threads <= 256):
            raise InvalidInput(f"endpoint.threads is {self.threads!r}; it can be 'auto', or a number from 1 to 256")
        if self.target_concurrency != AUTO and not (
            isinstance(self.target_concurrency, int | float) and 0.01 <= self.target_concurrency <= 10_000
        ):
            raise InvalidInput(
                f"endpoint.target_concurrency is {self.target_concurrency!r}; it can be 'auto', or a number from 0.01 "
                "to 10000"
            )
        for name, least in (("idle", 1.0), ("scale_down", 10.0)):
            if not least <= parse_time(getattr(self, name)) <= _LONGEST_S:
                raise InvalidInput(f"endpoint.{name} is {getattr(self, name)!r}; it must be between {least:g}s and 7d")
        if not -_MOST_PRIORITY <= self.priority <= _MOST_PRIORITY:
            raise InvalidInput(
                f"endpoint.priority is {self.priority}; it must be between -{_MOST_PRIORITY} and {_MOST_PRIORITY}"
            )
        if self.hedge and not 0.0 < self.hedge_s <= 600.0:
            raise InvalidInput(f"endpoint.hedge is {self.hedge!r}; it must be above 0s and at most 10min")
        if self.latency_p99 and not 0.0 < self.latency_p99_s <= 600.0:
            raise InvalidInput(f"endpoint.latency_p99 is {self.latency_p99!r}; it must be above 0s and at most 10min")
        if self.memory and self.memory_bytes < _LEAST_MEMORY:
            raise InvalidInput(
                f"endpoint.memory is {self.memory!r}; any replica takes more than {_LEAST_MEMORY // 10**6} MB"
            )

    def replica_range(self) -> tuple[int, int]:
        """Return the least and the greatest number of replicas; raise InvalidInput when they make no sense."""
        if self.replicas == AUTO:
            return 1, _MOST_REPLICAS
        low, dots, high = str(self.replicas).partition("..")
        try:
            found = int(low), int(high if dots else low)
        except ValueError as error:
            raise InvalidInput(
                f"endpoint.replicas is {self.replicas!r}; write 'auto', a number such as 2, or a range such as '1..4'"
            ) from error
        if not 0 <= found[0] <= found[1] <= _MOST_REPLICAS or not found[1]:
            raise InvalidInput(
                f"endpoint.replicas is {self.replicas!r}; it needs 0 <= lowest <= highest <= {_MOST_REPLICAS}, and a "
                "highest of 1 or more",
                hint="'0..2' runs nothing while nothing is asked; argosy down stops everything",
            )
        return found

    @property
    def is_scaled(self) -> bool:
        """Whether the number of replicas follows the load."""
        low, high = self.replica_range()
        return self.replicas != AUTO and low < high

    @property
    def is_on_demand(self) -> bool:
        """Whether nothing runs while nothing is asked."""
        return self.is_scaled and self.replica_range()[0] == 0

    @property
    def idle_s(self) -> float:
        """Seconds without a request until nothing runs."""
        return parse_time(self.idle)

    @property
    def scale_down_s(self) -> float:
        """Seconds of low load before replicas are stopped."""
        return parse_time(self.scale_down)


class Tolerate(Config, frozen=True):
    """How much worse a new version may be and still count as no worse: `[rollout.tolerate]`."""

    errors: float = 1.0
    """Ratio of failed requests, new to current. 1 means: not one bit more."""
    latency: float = 1.25
    """Ratio of times to answer, new to current."""
    agreement: float | None = None
    """Share of mirrored requests on which the two versions may answer differently. Not given: what `[evaluate] parity`
    leaves, such as 0.02 for `>= 0.98`, or 0.05."""


class OwnMetric(Config, frozen=True):
    """A metric of your own that the judge looks at too: `[rollout.metrics.NAME]`."""

    promql: str = ""
    """Query that gives one number for one version, a mean over its requests; `$version`, `$endpoint` and `$window` are
    replaced. It is asked once for each of the two versions in every window."""
    prometheus: str = "http://127.0.0.1:9090"
    """Where the query is asked."""
    python: str = ""
    """`module:function` instead of a query: `module.py` stands beside argosy.toml, and the function gets one window as
    a dict and returns `{"current": number, "new": number}`. It runs in a process of its own."""
    code: str = ""
    """Digest of that file, filled in by `argosy deploy`, so that a later edit changes no rollout under way."""
    low: float = 0.0
    """The best value the metric can have. Values beyond the two bounds count as the bound."""
    high: float = 1.0
    """The worst value. Below `low` where higher is better."""
    tolerate: float = 1.0
    """Ratio of badness, new to current, that still counts as no worse."""
    every: str = ""
    """Time between two readings, and what `$window` stands for; at least one window, which is the default. Prometheus
    needs several scrapes in it. Stretches that overlap would count the same requests twice."""

    def badness(self, value: float) -> float:
        """Return how bad a value is, in [0, 1].

        >>> OwnMetric(low=100, high=0).badness(75)
        0.25
        """
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def check(self, name: str) -> None:
        """Raise InvalidInput when a value is impossible."""
        where = f"rollout.metrics.{name}"
        if not _NAME.fullmatch(name) or name in METRICS_JUDGED:
            raise InvalidInput(
                f"{where}: a metric's name has up to 40 small letters, digits and _, and is none of "
                f"{', '.join(METRICS_JUDGED)}"
            )
        if bool(self.promql) == bool(self.python):
            raise InvalidInput(f"{where} needs either promql or python", hint='such as python = "scores:satisfaction"')
        if self.promql and not self.prometheus.startswith(("http://", "https://")):
            raise InvalidInput(f"{where}.prometheus is {self.prometheus!r}; it must begin with http:// or https://")
        if self.promql and "$version" not in self.promql:
            raise InvalidInput(
                f"{where}.promql does not say $version, so it would give the same number for both versions",
                hint='select by it, as in rate(score_sum{version="$version"}[$window])',
            )
        module, colon, function = self.python.partition(":")
        if self.python and not (colon and module.isidentifier() and function.isidentifier()):
            raise InvalidInput(f"{where}.python is {self.python!r}; write it as module:function")
        if self.low == self.high or not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise InvalidInput(f"{where} has low {self.low:g} and high {self.high:g}; they must be two finite numbers")
        _within(f"{where}.tolerate", self.tolerate, 1, 100)
        if self.every and not 0 < parse_time(self.every) <= 3600:
            raise InvalidInput(f"{where}.every is {self.every!r}; it must be above 0s and at most 1h")


_MOST_OWN = 8
_LEAST_WATCH = 12
"""Windows until mirrored failures that are all the new version's reach the usual threshold: each at most doubles the
evidence, which begins with an eighth of the money."""
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


class RolloutConfig(Config, frozen=True):
    """How a new version takes over from the current one: `[rollout]`."""

    kind: str = "canary"
    """`"canary"`: by steps of requests. `"shadow"`: it only gets copies, and is judged by its answers to them.
    `"blue-green"`: all requests but `held_back` at once, when as many replicas as the current version has are ready.
    `"all-at-once"`: all requests, unjudged."""
    steps: tuple[float, ...] = (5, 25, 50)
    """Percent of the requests that the new version answers, step by step. Empty: switch at once when it is ready.
    After the last step it is promoted to all requests when the evidence suffices; 100 at the end says the same."""
    shadow: str = ""
    """Least time in which the new version only gets copies of requests (`mirror` percent of them) before the first
    step; with kind `"shadow"` before its verdict. Not given: no such phase before a canary."""
    shadow_pairs: int = 0
    """Least number of requests that both versions have answered before that phase ends."""
    after_shadow: str = "leave"
    """What a good verdict of kind `"shadow"` leads to: `"leave"` the endpoint as it is, or `"promote"`."""
    held_back: float = 5.0
    """With kind `"blue-green"`: percent of the requests that the former version goes on answering, to compare with."""
    keep: str = "10min"
    """With kind `"blue-green"`: time in which the former version stays with all its replicas, and the judge may
    switch back."""
    dwell: str = "60s"
    """Least time at each step."""
    false_alarm: float = 0.01
    """Greatest probability that a version that is no worse is ever rolled back, over all steps and metrics."""
    judge: tuple[str, ...] = ("errors", "latency", "agreement")
    """What is judged."""
    tolerate: Tolerate = Tolerate()
    """How much worse still counts as no worse."""
    window: str = "10s"
    """Length of the time windows that evidence is counted in. Shorter only where traffic is dense."""
    time_limit: str = "30min"
    """Time from the first step after which an undecided rollout ends."""
    undecided: str = "rollback"
    """What happens then: `"rollback"`, `"promote"`, or `"ask"` (stay at the step until somebody says)."""
    mirror: float = 10.0
    """Percent of the requests that are also answered by the other version, to compare answers. 0: none."""
    sticky: bool = False
    """Whether a caller stays with one version during the rollout."""
    metrics: dict[str, OwnMetric] = msgspec.field(default_factory=dict)
    """Metrics of your own, by name."""

    def __post_init__(self) -> None:
        """Take a last step of 100 for what it is: the promotion."""
        if self.steps and self.steps[-1] == 100:
            msgspec.structs.force_setattr(self, "steps", self.steps[:-1])

    @property
    def style(self) -> str:
        """What kind of rollout follows: `canary`, `shadow`, `blue-green`, or `switch`."""
        if self.kind == "all-at-once" or (self.kind == "canary" and not self.steps):
            return "switch"
        return self.kind

    @property
    def has_shadow(self) -> bool:
        """Whether the new version gets copies only before it gets requests."""
        return self.style == "shadow" or (self.style == "canary" and bool(self.shadow or self.shadow_pairs))

    @property
    def shares(self) -> tuple[float, ...]:
        """The steps as shares of one."""
        if self.style == "blue-green":
            return (round(1 - self.held_back / 100, 9),)
        return tuple(step / 100 for step in self.steps) if self.style == "canary" else ()

    @property
    def shadow_s(self) -> float:
        """Seconds of copies only."""
        return parse_time(self.shadow) if self.shadow else 0.0

    @property
    def keep_s(self) -> float:
        """Seconds for which the former version is kept whole after a switch."""
        return parse_time(self.keep)

    @property
    def dwell_s(self) -> float:
        """Seconds at each step."""
        return parse_time(self.dwell)

    @property
    def window_s(self) -> float:
        """Seconds of one window."""
        return parse_time(self.window)

    @property
    def time_limit_s(self) -> float:
        """Seconds from the first step to the end."""
        return parse_time(self.time_limit)

    @property
    def tolerated_disagreement(self) -> float:
        """Share of mirrored requests on which the versions may differ."""
        return _USUAL_DISAGREEMENT if self.tolerate.agreement is None else self.tolerate.agreement

    def with_parity(self, parity: float | None) -> "RolloutConfig":
        """Return the same rollout; what a parity gate leaves is the tolerated disagreement, unless it states one."""
        if parity is None or not 0.1 <= parity < 1 or self.tolerate.agreement is not None:
            return self
        tolerate = msgspec.structs.replace(self.tolerate, agreement=round(1 - parity, 6))
        return msgspec.structs.replace(self, tolerate=tolerate)

    @property
    def judged(self) -> tuple[str, ...]:
        """What is judged.

        Without mirroring nothing can be compared. With it, errors that only one of the versions makes are errors too,
        and so is an answer that never changes. A version that gets copies only can be judged by those alone.
        """
        named = tuple(m for m in self.judge if self.mirror > 0 or m not in _MIRRORED)
        if "errors" in named and self.mirror > 0:
            named = (*named, *(m for m in ("mirrored_errors", "constant") if m not in named))
        if self.style == "shadow":
            return tuple(m for m in named if m in _MIRRORED)
        return (*named, *self.metrics)

    def check(self) -> None:
        """Raise InvalidInput when a value is impossible or two contradict each other."""
        if self.kind not in KINDS:
            raise InvalidInput(f"rollout.kind is {self.kind!r}; it can be {', '.join(map(repr, KINDS))}")
        self._check_steps()
        self._check_judge()
        _within("rollout.mirror", self.mirror, 0, 100)
        self._check_shadow()
        self._check_own()
        times = {name: parse_time(getattr(self, name)) for name in ("dwell", "window", "time_limit")}
        if not 0.1 <= times["window"] <= 600:
            raise InvalidInput(f"rollout.window is {self.window!r}; it must be between 0.1s and 10min")
        if not 0 < times["dwell"] <= 7 * 86400:
            raise InvalidInput(f"rollout.dwell is {self.dwell!r}; it must be above 0s and at most 7d")
        least, what = {
            "canary": (times["dwell"] * len(self.steps), f"{len(self.steps)} steps of {self.dwell!r}"),
            "shadow": (self.shadow_s, f"a shadow of {self.shadow!r}"),
            "blue-green": (self.keep_s, f"keep = {self.keep!r}"),
        }.get(self.style, (0.0, ""))
        if what and not least < times["time_limit"] <= 30 * 86400:
            raise InvalidInput(
                f"rollout.time_limit is {self.time_limit!r}, but {what} need{'s' * (self.style != 'canary')} more than "
                f"{least:g}s",
                hint=f"raise time_limit (at most 30d), or shorten {_SHORTEN[self.style]}",
            )

    def _check_shadow(self) -> None:
        if not 0 <= self.shadow_s <= 7 * 86400:
            raise InvalidInput(f"rollout.shadow is {self.shadow!r}; it can be at most 7d")
        if not 0 <= self.shadow_pairs <= 10**9:
            raise InvalidInput(f"rollout.shadow_pairs is {self.shadow_pairs}; it must be between 0 and a billion")
        if self.after_shadow not in ("leave", "promote"):
            raise InvalidInput(f"rollout.after_shadow is {self.after_shadow!r}; it can be 'leave' or 'promote'")
        if self.has_shadow and not self.mirror:
            raise InvalidInput(
                "rollout.mirror is 0, but a version in shadow gets nothing else than mirrored requests",
                hint="mirror some percent of the requests; where there are few, all of them: mirror = 100",
            )
        if self.style == "blue-green":
            _within("rollout.held_back", self.held_back, 0.1, 50)
            if not _LEAST_WATCH * self.window_s <= self.keep_s <= 7 * 86400:
                raise InvalidInput(
                    f"rollout.keep is {self.keep!r}; it must be at most 7d, and at least {_LEAST_WATCH} windows of "
                    f"{self.window!r}, because no evidence can switch back sooner",
                    hint="raise keep; or shorten window where traffic is dense",
                )
            if not self.mirror:
                raise InvalidInput(
                    f"rollout.mirror is 0, but with {self.held_back:g} % held back a fault shows soon only in requests "
                    "that both versions answer",
                    hint="mirror some percent of the requests",
                )

    def _check_own(self) -> None:
        if len(self.metrics) > _MOST_OWN:
            raise InvalidInput(f"rollout.metrics has {len(self.metrics)} metrics; at most {_MOST_OWN} are possible")
        for name, metric in self.metrics.items():
            metric.check(name)
        if self.metrics and self.style == "shadow":
            raise InvalidInput(
                "rollout.metrics needs answers that reach callers, and a rollout of kind 'shadow' has none",
                hint="use them in a canary; it can have a shadow phase first",
            )

    def _check_steps(self) -> None:
        if any(not 0 < step < 100 for step in self.steps):
            raise InvalidInput(
                f"rollout.steps is {list(self.steps)}; each step is a percentage above 0 and below 100",
                hint="only the last may be 100, which says what happens anyway: promotion to all requests by evidence",
            )
        if any(later <= former for former, later in zip(self.steps, self.steps[1:], strict=False)):
            raise InvalidInput(f"rollout.steps is {list(self.steps)}; each step must be greater than the one before")
        if len(self.steps) > 50:
            raise InvalidInput(f"rollout.steps has {len(self.steps)} steps; at most 50 are possible")

    def _check_judge(self) -> None:
        unknown = [name for name in self.judge if name not in METRICS_JUDGED]
        if unknown:
            raise InvalidInput(
                f"rollout.judge names {unknown[0]!r}; what can be judged is: {', '.join(METRICS_JUDGED)}"
            )
        if len(set(self.judge)) < len(self.judge):
            raise InvalidInput(f"rollout.judge is {list(self.judge)}; it names something twice")
        if self.style != "switch" and not self.judged:
            raise InvalidInput(
                f"rollout.judge is {list(self.judge)} and rollout.mirror is {self.mirror:g}: nothing would be judged",
                hint="judge at least 'errors', or mirror some requests",
            )
        if self.undecided not in ("rollback", "promote", "ask"):
            raise InvalidInput(f"rollout.undecided is {self.undecided!r}; it can be 'rollback', 'promote' or 'ask'")
        _within("rollout.false_alarm", self.false_alarm, 1e-6, 0.5)
        _within("rollout.tolerate.errors", self.tolerate.errors, 1, 10)
        _within("rollout.tolerate.latency", self.tolerate.latency, 1, 10)
        _within("rollout.tolerate.agreement", self.tolerated_disagreement, 0.0001, 0.9)


_SHORTEN = {"canary": "dwell", "shadow": "shadow", "blue-green": "keep"}


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InvalidInput(f"{name} is {value:g}; it must be between {low:g} and {high:g}")


def endpoint_config(found: object, *, where: str) -> EndpointConfig:
    """Read and check an `[endpoint]` section given as plain values."""
    config = from_plain(found, EndpointConfig, where=where)
    config.check()
    return config


def rollout_config(found: object, *, where: str) -> RolloutConfig:
    """Read and check a `[rollout]` section given as plain values."""
    config = from_plain(found, RolloutConfig, where=where)
    config.check()
    return config


def to_plain(config: Config) -> dict[str, object]:
    """Return a config as plain values, defaults left out: the form in which the log keeps it."""
    found: dict[str, object] = msgspec.json.decode(msgspec.json.encode(config))
    return found
