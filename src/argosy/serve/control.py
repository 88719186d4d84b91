"""What the controller says to the gateway and hears from it: routes in, status and the judge's windows out.

The gateway outlives the controller: it keeps serving the last routes, counts on, and holds closed windows until a
controller acknowledges them. After a restart of the gateway the routes come from its own file, and again from here.
"""

import math
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from argosy.core.config import Config
from argosy.core.errors import ArgosyError, Unavailable, from_dict
from argosy.serve import wire
from argosy.serve.access import AccessRules


class Keeper(Config, frozen=True):
    """How the gateway starts the controller again, should that be gone while requests are served."""

    folder: str = ""
    """The launcher's folder; empty: nobody is started."""
    spec: dict[str, Any] = msgspec.field(default_factory=dict)
    """A `cluster.launcher.ProcessSpec` as plain values."""


class GatewayConfig(Config, frozen=True):
    """The `config` of a gateway process (`argosy.serve.gateway:main`)."""

    socket: str
    """Path of the Unix socket that replicas and the controller dial; at most 107 bytes."""
    state: str
    """File in which the gateway keeps its last routes, so that after a restart it serves without a controller."""
    key: str
    """Hex, 16 bytes or more: the secret that tags prediction ids; `argosy why` needs the same."""
    host: str = "127.0.0.1"
    """Address to listen on; one that others can reach needs TLS and `is_guarded`."""
    port: int = 8080
    """0 lets the system choose; the chosen one stands in the status."""
    grpc_port: int = -1
    """Port of gRPC on the same host: -1 none; 0 `grpc_before`, or the one after `port`, or any, whichever is free."""
    grpc_before: int = 0
    """The gRPC port of the gateway before this one, so that callers find it again; 0 when there was none."""
    tls_cert: str = ""
    """Path of the certificate with its chain (PEM), read again when it changes; empty: no TLS."""
    tls_key: str = ""
    """Path of its private key (PEM)."""
    hosts: tuple[str, ...] = ()
    """Names it may be called by (`Host`), beside loopback names and `host`."""
    fronts: int = 0
    """Processes that speak HTTP for the gateway on its port (serve/front.py), started by whoever starts the gateway; 0:
    it does so itself."""
    is_guarded: bool = False
    """Whether a key is needed, as far as the log says now. True: closed until the rules are known."""
    max_body_bytes: int = 64 << 20
    max_connections: int = 4096
    queue_requests: int = 2048
    """Requests that may wait per version; more are refused with Retry-After."""
    queue_bytes: int = 256 << 20
    queue_wait_s: float = 0.5
    """So many requests may wait per version as it answers in this time at its present pace, and never fewer than 64."""
    timeout_s: float = 30.0
    """A request's deadline when it names none in `argosy-timeout`."""
    receive_s: float = 8.0
    """A request's head, and then its body at 256 KiB/s or more, must have arrived by then."""
    keeper: Keeper = Keeper()
    frozen_s: float = 1.5
    """A replica silent for so long, three heartbeats, is frozen: its batch goes to another."""
    log_level: str = "info"


class FrontConfig(Config, frozen=True):
    """The `config` of a front process (`argosy.serve.front:main`); fields as in `GatewayConfig`."""

    name: str
    socket: str
    host: str
    port: int
    tls_cert: str = ""
    tls_key: str = ""
    hosts: tuple[str, ...] = ()
    max_body_bytes: int = 64 << 20
    max_connections: int = 4096
    timeout_s: float = 30.0
    receive_s: float = 8.0
    log_level: str = "info"


class ReplicaConfig(Config, frozen=True):
    """The `config` of a replica process (`argosy.serve.replica:main`)."""

    id: str
    digest: str
    ref: str
    """What people call the version, such as `digits:2`; the digest decides what is loaded."""
    socket: str
    """The gateway's Unix socket."""
    store: str
    """URL of the object store, as in `Settings.store`."""
    home: str
    """`Settings.home`: trusted keys and the cache of blobs."""
    threads: int = 1
    """Threads that compute."""
    memory_bytes: int = 0
    """Memory of its own that it may take; when loading alone takes more, it ends with that error. 0: no bound."""
    calibrate_s: float = 0.0
    """Seconds it may take for its calibration before it says hello, for one that nobody waits for. 0: it serves at once
    and is calibrated beside that."""
    record: str = ""
    """A file of the launcher; when it is gone while the gateway is too, nobody wants this replica and it ends."""
    log_level: str = "info"


class EndpointRoute(Config, frozen=True):
    """Where the requests of one endpoint go."""

    name: str
    stable: str
    """Digest of the version that answers."""
    stable_ref: str
    canary: str = ""
    """Digest of the version on trial; empty when there is no rollout."""
    canary_ref: str = ""
    share: float = 0.0
    """Probability that a request is drawn for the canary."""
    mirror: float = 0.0
    """Probability that a request is copied to the other version, whose answer is compared and dropped."""
    rollout: str = ""
    """Names the rollout; windows carry it, and sticky routing hashes it."""
    window_s: float = 10.0
    sticky: bool = False
    """Draw per caller (header `argosy-caller`) instead of per request."""
    tolerate_latency: float = 1.25
    tolerance: float = 1e-3
    """Relative difference of number outputs up to which two mirrored answers agree."""
    hedge_s: float = 0.0
    """Give a request that has run for so long to a second idle replica as well, and take the first answer. 0: never."""
    backup: str = ""
    """Digest that answers while neither of the others has a ready replica."""
    backup_ref: str = ""
    failover: float = 0.5
    """Share of failed requests above which the stable version fails, and the backup answers; 0: never by errors."""
    is_on_demand: bool = False
    """Its replicas are stopped when nothing is asked and started by the next request, which is held meanwhile: so it is
    ready without any."""
    is_elastic: bool = False
    """More replicas are on the way, or can be started: its queues may grow as far as deadlines allow."""
    may_go_solo: bool = True
    """A request that comes alone may be computed by more threads than replicas have: nobody has said how many."""


class ReplicaStatus(Config, frozen=True):
    """One connected replica. A replica that is loading is not connected yet."""

    id: str
    version: str
    """Digest."""
    ref: str
    pid: int
    state: str
    """ready | draining | drained | frozen (silent) | faulty (fails while others of its version don't)."""
    in_flight: int
    """Requests of the batch in its hands."""
    answered: int
    failed: int
    max_batch: int
    run_s: float
    threads: int = 0
    """Threads it computes with; 0: it did not say."""
    advice: wire.Advice | None = None
    """What its calibration recommends; None while that is not known."""
    solo: int = 0
    """Threads of a run that has the machine to itself; 0: it has no engine of its own for such runs."""


class VersionStatus(Config, frozen=True):
    """What one version has answered at one endpoint since it was routed there."""

    ref: str
    requests: int = 0
    """Requests it answered, in any way; its copies of mirrored requests are not counted."""
    failed: int = 0
    """Answers with a 5xx among them."""
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    """Over its last 500 successes; 0 before the first."""


class EndpointStatus(Config, frozen=True):
    """One endpoint as the gateway serves it now."""

    name: str
    serving: str
    """Digest that gets what is drawn for stable now: normally `stable`, else see `note`. Empty: nothing is ready."""
    serving_ref: str
    share: float
    """The share that is drawn for the canary; while it has no ready replica, `note` says who answers instead."""
    note: str = ""
    """Why `serving` or `share` is not what the route says; empty when it is."""
    stable: str = ""
    """Digest of the version that its route calls stable."""
    failing: str = ""
    """Why the stable version counts as failing though its replicas are up; empty while it doesn't."""
    requests: int = 0
    """Requests answered since the gateway started, in any way."""
    failed: int = 0
    """Answers with a 5xx among them: failures that callers saw."""
    replayed: int = 0
    """Requests another replica or version answered after a failure."""
    waiting: int = 0
    """Requests in its versions' queues."""
    stable_p50_ms: float = 0.0
    stable_p95_ms: float = 0.0
    """Over stable's last 500 answers; 0 before the first."""
    arrived: int = 0
    """Requests that came since the gateway started, refused ones included."""
    held: int = 0
    """Requests that wait because none of its versions has a ready replica."""
    is_known: bool = True
    """Whether it is known what the version takes; if not, requests are refused until a replica has told."""
    versions: tuple[VersionStatus, ...] = ()
    """Each version that has answered."""


class VersionLoad(Config, frozen=True):
    """The load of one version, over all endpoints that route to it."""

    digest: str
    waiting: int
    in_flight: int
    """Requests that replicas have in their hands."""
    oldest_wait_s: float
    load_s: float
    """Seconds that requests have spent here since the gateway started, waiting or running: its growth over some time,
    divided by that time, is the mean number of requests at once."""
    pace_s: float
    """Seconds of a replica that a request takes, of late; 0 before the first."""
    rows: float
    """Rows of a request, of late; 0 before the first."""


LISTENING = ("host", "port", "grpc_port", "tls_cert", "tls_key", "hosts", "fronts")
"""The fields of `GatewayConfig` that say how the gateway is reached."""


class GatewayStatus(Config, frozen=True):
    """What the gateway sees."""

    pid: int
    host: str
    port: int
    started: float
    grpc_port: int = -1
    """Where gRPC is served: -1 nowhere, 0 not yet."""
    asked: dict[str, Any] = msgspec.field(default_factory=dict)
    """The settings it was started with (`LISTENING`); with others it has to be started anew."""
    access: str = ""
    """Digest of the access rules in force; empty while they are not known."""
    replicas: tuple[ReplicaStatus, ...] = ()
    endpoints: tuple[EndpointStatus, ...] = ()
    versions: tuple[VersionLoad, ...] = ()
    fronts: tuple[str, ...] = ()
    """Names of the fronts that are connected."""
    windows_waiting: int = 0
    windows_dropped: int = 0
    """Closed windows thrown away because no controller took them in time."""


class ReplicaPart(Config, frozen=True):
    """One process's part of a window, of the canary only."""

    handled: int
    """Requests drawn for the canary, and halves of mirrored pairs, that it was the first to be handed."""
    bad: dict[str, tuple[float, float]] = msgspec.field(default_factory=dict)
    """Its part of the window's `bad`."""


class Window(Config, frozen=True):
    """What the judge needs of one stretch of a rollout with a constant share.

    Everything is counted when the request *finishes*, in the window that is open then for the share it was drawn with.
    A change of the share closes the window; requests then still under way are counted in a last window of the former
    share. What was drawn for a canary without a ready replica is answered by stable and not counted.

    Units: with random routing a request; with sticky routing a caller counts once per metric and rollout (and after a
    restart of the gateway again, because who has been counted is kept in memory). Requests that a batch's common
    failure took down count as one. Requests refused before the draw, pinned to a version number, redirected because a
    version was not ready, and copies are not counted.
    """

    rollout: str
    index: int
    """Strictly increasing inside a rollout, also over restarts of the gateway; not contiguous."""
    start: float
    """Wall clock, seconds; `epoch` of the judge is (start - start of the rollout) // 600."""
    seconds: float
    share: float
    requests_stable: int = 0
    """Requests drawn for stable that finished here."""
    requests_canary: int = 0
    failed_stable: int = 0
    """Of these, how many failed at first: every request counts (for the nearly error-free promotion, see canary)."""
    failed_canary: int = 0
    bad: dict[str, tuple[float, float]] = msgspec.field(default_factory=dict)
    """For each metric that had its say: (bad_canary, bad_all) as JUDGE section 2 defines them.

    `errors`: always. `latency`: when stable had 200 answers at the window's start; slow ones of both versions,
    `tolerate_latency` applied to the canary, halves for p50 and p95. `agreement`: (differing pairs, pairs).
    `mirrored_errors`: (pairs where only the canary failed, pairs where exactly one failed). `constant`: (pairs where
    only the canary answered as it had answered another input before, pairs where exactly one of them did).
    """
    latency_stable: dict[int, int] = msgspec.field(default_factory=dict)
    """How many of stable's answers fell into each bucket of latency, see `latency_bucket`; for the latency warm-up,
    merge the windows of a block with `merge_latency` and compare `median_latency`."""
    latency_canary: dict[int, int] = msgspec.field(default_factory=dict)
    replicas: dict[str, ReplicaPart] = msgspec.field(default_factory=dict)
    """Which of the canary's processes handled how much, so that a sick one is not taken for the version."""


_GROWTH = math.log(1.02)


def latency_bucket(seconds: float) -> int:
    """Return the bucket of a latency: bucket b holds 10 us * 1.02**b up to the next, so medians are right to 1 %."""
    return max(0, int(math.log(seconds * 1e5) / _GROWTH)) if seconds > 1e-5 else 0


def merge_latency(histograms: Iterable[Mapping[int, int]]) -> dict[int, int]:
    """Add histograms of latency."""
    total: dict[int, int] = {}
    for histogram in histograms:
        for bucket, count in histogram.items():
            total[bucket] = total.get(bucket, 0) + count
    return total


def median_latency(histogram: Mapping[int, int]) -> float:
    """Return the median in seconds, 0 for an empty histogram."""
    half = sum(histogram.values()) / 2
    seen = 0
    for bucket in sorted(histogram):
        seen += histogram[bucket]
        if seen >= half:
            return 1e-5 * math.exp((bucket + 0.5) * _GROWTH)
    return 0.0


class GatewayClient:
    """The controller's blocking connection to the gateway; dials when first used and again after a break.

    Every call raises Unavailable (code `gateway_unreachable`) when nobody answers within `timeout_s`.
    """

    def __init__(self, path: Path | str, *, timeout_s: float = 5.0, role: str = "") -> None:
        """`role`: "controller" for the one whose silence means that it is gone."""
        self._role = role
        self._path = str(path)
        self._timeout_s = timeout_s
        self._connection: socket.socket | None = None

    def status(self) -> GatewayStatus:
        """Return what the gateway sees now."""
        return msgspec.convert(self._ask("status", self._role or None), GatewayStatus)

    def set_routes(self, routes: Iterable[EndpointRoute]) -> None:
        """Replace all routes at once; endpoints that are not named are gone. Repeating it changes nothing."""
        self._ask("set_routes", [msgspec.to_builtins(route) for route in routes])

    def set_access(self, rules: AccessRules) -> None:
        """Put these rules in force at once, in place of any others."""
        self._ask("set_access", msgspec.to_builtins(rules))

    def windows(self, ack: Mapping[str, int] | None = None) -> list[Window]:
        """Return the closed windows, oldest first, after forgetting those up to `ack[rollout]` of each rollout."""
        return msgspec.convert(self._ask("windows", dict(ack or {})), list[Window])

    def drain(self, replica: str) -> None:
        """Hand the replica nothing new; its state turns to `drained` when it and its version's queue are done.

        It goes on with requests that were queued for its version as long as no other replica is there for them.
        Harmless for a replica that is not connected.
        """
        self._ask("drain", replica)

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, what: str, given: Any = None) -> Any:
        # A connection that the gateway's restart has broken shows only when it is used, so one fresh try follows.
        fresh = self._connection is None
        try:
            answer = self._exchange(wire.Ask(what, given))
        except (OSError, ArgosyError) as error:
            self.close()
            if fresh:
                raise self._unreachable(error) from error
            return self._ask(what, given)
        if answer.error is not None:
            raise from_dict(answer.error)
        return answer.result

    def _exchange(self, ask: wire.Ask) -> wire.Answer:
        if self._connection is None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(self._timeout_s)
            try:
                connection.connect(self._path)
            except OSError:
                connection.close()
                raise
            self._connection = connection
        wire.send(self._connection, ask)
        frame, _ = wire.receive(self._connection)
        if not isinstance(frame, wire.Answer):
            raise Unavailable("the gateway answered something else than was asked", code="bad_frame")
        return frame

    def _unreachable(self, error: Exception) -> Unavailable:
        return Unavailable(
            f"the gateway at '{self._path}' does not answer: {error}",
            hint="see its log; the controller starts it again",
            code="gateway_unreachable",
        )
