"""Inference, whatever the transport: check, draw, queue, try again where that is right, count once.

The life of a request: `infer` checks it against the signature, draws its version and queues it. The batcher hands it to
a replica, which calls `answered` or `failed`; the wheel calls `expire`. `_finish` is reached exactly once.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import NamedTuple, Protocol

from argosy.core.clock import Clock
from argosy.core.errors import ArgosyError, DeadlineExceeded, Internal, InvalidInput, NotFound, Unavailable
from argosy.core.logs import get_logger
from argosy.core.tensors import Signature
from argosy.serve.batcher import OVER, RUNNING, Trouble, VersionQueue, Work
from argosy.serve.control import EndpointRoute, EndpointStatus, GatewayConfig
from argosy.serve.counters import Cell, Counters, Histogram
from argosy.serve.deadlines import Wheel
from argosy.serve.endpoint import Answers, Endpoint, Tally
from argosy.serve.hedging import Hedge, HedgeTimer
from argosy.serve.lanes import WAITING
from argosy.serve.mirror import Copy, Pair, preload
from argosy.serve.pool import DRAINING, Pool, replicas_of
from argosy.serve.prediction_id import Namer
from argosy.serve.probe import Probe
from argosy.serve.requests import Inputs, check_inputs
from argosy.serve.router import CANARY, STABLE, UNCOUNTED, Choice, choose
from argosy.serve.windows import Segment, Windows
from argosy.serve.wire import TOO_LATE, Tensor

log = get_logger()

# A canary's failure is answered by stable, and that attempt may lose its replica too.
_MAX_ATTEMPTS = {CANARY: 3, STABLE: 2, UNCOUNTED: 2}
_LOAD = frozenset(("queue_full", "too_late", TOO_LATE, "deadline_exceeded"))
"""Failures that say more about how much is asked than about the version."""
_PROBE_S = 5.0
"""A copy for a failing version that is not answered within this time has failed."""


class Call(Work):
    """One request for an inference, until it is answered. Read `outputs` or `error` when `on_done` is called."""

    __slots__ = (
        "arm", "arrived", "attempts", "caller", "charged", "culprit", "digest", "endpoint", "error", "failover",
        "first", "hedge",
        "is_pinned", "is_timed", "on_done", "outputs", "pair", "plane", "prediction", "ref", "segment", "signature",
        "suspected",
    )  # fmt: skip

    def __init__(
        self, plane: "DataPlane", endpoint: Endpoint, signature: Signature, inputs: Inputs, choice: Choice
    ) -> None:
        # What `Work.__init__` does, without the call: this is made for every request.
        self.inputs = inputs
        self.state = WAITING
        self.is_alone = False
        self.key = ""
        self.weight = 1.0
        self.lane = None
        self.batch = None
        self.plane = plane
        self.endpoint = endpoint
        self.digest = choice.digest
        self.ref = choice.ref
        self.arm = choice.arm
        self.arrived = self.queued = plane.clock.monotonic()
        self.is_timed = False
        """In the wheel: only who is still there at the next tick gets a place in it."""
        self.on_done: Callable[[Call], None] = _ignore
        self.attempts = 1
        self.signature = signature
        self.is_pinned = False
        self.caller = ""
        self.failover = ""
        """Name of the version that answered in place of the one that was drawn."""
        self.first: Trouble | None = None
        """Why the first attempt failed, if it did."""
        self.charged = ""
        """Digest of the version that failed it."""
        self.culprit = ""
        """The replica at which it did; empty if none had been handed the request."""
        self.suspected = False
        """The drawn version took the input for wrong; if another takes it, that was a failure."""
        self.segment: Segment | None = None
        self.pair: Pair | None = None
        self.hedge: Hedge | None = None
        """A second copy under way at another replica, because this one takes long."""
        self.outputs: Sequence[Tensor] = ()
        self.error: ArgosyError | None = None
        self.prediction = ""

    def answered(self, outputs: Sequence[Tensor]) -> None:
        """Take the outputs."""
        self.outputs = outputs
        self.plane.finish(self)

    def failed(self, trouble: Trouble) -> None:
        """Try again where that can help, else pass the failure on."""
        self.plane.attempt_failed(self, trouble)

    def expire(self, now: float) -> None:
        """Take the news that the first attempt's time, or all of it, has passed."""
        self.plane.expired(self, now)

    def start_hedge(self, now: float) -> None:
        """Give the request to a second replica as well."""
        self.plane.hedge(self, now)

    def hedge_won(self, outputs: Sequence[Tensor]) -> None:
        """Take the outputs of the second copy."""
        self.plane.hedge_won(self, outputs)

    def cancel(self) -> None:
        """Forget the request: nobody waits for it any more. Its batch, if it runs, is not disturbed."""
        if self.state != OVER:
            self.plane.cancelled(self)


class Client(Protocol):
    """Whose share of a busy queue a request takes."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def weight(self) -> float: ...  # noqa: D102


class _Series(NamedTuple):
    """What is counted for each batch of one version."""

    queue_seconds: Histogram
    run_seconds: Histogram
    batch_requests: Histogram
    batch_rows: Histogram
    text_bytes: Cell
    padding_bytes: Cell


def _ignore(call: Call) -> None:
    del call


class DataPlane:
    """Endpoints, and what happens to their requests. Lives on one event loop; nothing here blocks or awaits."""

    is_traced = False
    """Whether it is of interest what callers say of their traces."""

    def __init__(
        self, config: GatewayConfig, clock: Clock, random: Random, later: Callable[[Callable[[], None]], object]
    ) -> None:
        """`later` runs a function at the end of this turn of the loop, so that requests read together run together."""
        self.clock = clock
        self.carrier: dict[str, str] = {}
        """What the caller of the request that is being handled says of its trace, see `carriers`."""
        self.pool = Pool(config, clock, self)
        self.windows = Windows(clock)
        self.counters = Counters()
        self.wheel = Wheel(clock.monotonic())
        self.endpoints: dict[str, Endpoint] = {}
        self.signatures: dict[str, Signature] = {}
        """Of every version that is routed to, also while no replica of it is connected."""
        self.on_routes: Callable[[], None] = lambda: None
        """Called when routes or signatures have changed, to write them down."""
        self.on_held: Callable[[], None] = lambda: None
        """Called when a request came that waits until a replica is started for it."""
        self._config = config
        self._random = random
        self._namer = Namer(bytes.fromhex(config.key), random)
        self._young: list[Call] = []
        """Calls since the last tick: most are over before their deadline needs to be watched."""
        self._series: dict[str, _Series] = {}
        self._later = later
        self._dirty: list[VersionQueue] = []
        self._settled_at: float | None = None
        self.counters.gauges(self._gauges)

    # What transports call ------------------------------------------------------------------------------------------

    def endpoint(self, name: str) -> Endpoint:
        """Return an endpoint, or raise NotFound; the others' names are not for everybody, so none is told here."""
        found = self.endpoints.get(name)
        if found is None:
            raise NotFound(
                f"there is no endpoint '{name[:100]}'",
                hint="list those you may use: GET /, or RepositoryIndex",
                code="unknown_endpoint",
            )
        return found

    def signature(self, endpoint: Endpoint, number: str = "") -> Signature:
        """Return what callers of an endpoint, or of one of its versions by number, must send."""
        digest = endpoint.plan.serving if not number else self._pinned(endpoint, number)[0]
        found = self.signatures.get(digest)
        if found is None:
            if endpoint.route.is_on_demand:
                self.on_held()
            raise Unavailable(
                f"no replica of '{endpoint.route.stable_ref}' has been ready yet",
                hint="it is being loaded; retry",
                code="not_ready",
                retry_after_s=1.0,
            )
        return found

    def infer(
        self,
        endpoint: Endpoint,
        tensors: Mapping[str, Tensor],
        on_done: Callable[[Call], None],
        *,
        timeout_s: float = 0.0,
        caller: str = "",
        number: str = "",
        client: Client | None = None,
    ) -> Call:
        """Start an inference; `on_done` is called once with the call, from a later turn of the loop, unless cancelled.

        `number` asks for one version of the endpoint; `caller` is who sticky routing keeps on one version; `client` is
        whose share of a busy queue it takes. Raises InvalidInput for inputs that don't fit the signature, before any
        version is drawn; every later refusal comes through `on_done`.
        """
        signature = None if number else self.signatures.get(endpoint.plan.serving)
        if signature is None:
            signature = self.signature(endpoint, number)
        inputs = check_inputs(signature, tensors)
        if number:
            choice = Choice(*self._pinned(endpoint, number), UNCOUNTED, "")
        elif endpoint.choice is not None:
            choice = endpoint.choice
        else:
            copy_draw = self._random.random() if endpoint.plan.mirror else 1.0
            choice = choose(endpoint.plan, self._random.random(), copy_draw, caller)
        call = Call(self, endpoint, signature, inputs, choice)
        call.is_pinned = bool(number)
        call.on_done = on_done
        now = call.arrived
        if endpoint.stand_in:
            self._stood_in(endpoint, call, now)
        call.due = call.deadline = now + (timeout_s or self._config.timeout_s)
        if client is not None:
            call.key, call.weight = client.name, client.weight
        endpoint.budget.requests += 1
        if choice.arm != UNCOUNTED:
            # Half of the time for the first attempt of either version, so that stable can answer for a canary that
            # hangs.
            call.due = (now + call.deadline) / 2
            if endpoint.rollout is not None:
                call.segment = endpoint.rollout.drawn()
                call.caller = caller if endpoint.plan.sticky else ""
        queue = self.pool.queues.get(choice.digest) or self._queue(choice.digest)
        try:
            queue.submit(call, now)
        except Unavailable as error:
            # Its traceback names this frame, which names the call, which keeps the error: a circle, for each refusal.
            self._refused(call, error.with_traceback(None))
            return call
        self._young.append(call)
        if endpoint.plan.is_held and endpoint.route.is_on_demand:
            self.on_held()
        if choice.mirror and call.segment is not None:
            self._mirror(call, choice.mirror)
        if endpoint.route.hedge_s:
            self.wheel.add(HedgeTimer(call, now + endpoint.route.hedge_s))
        if not queue.is_due:
            self._schedule(queue)
        return call

    @property
    def holds(self) -> bool:
        """Whether a request waits until a replica is started for it."""
        return any(e.route.is_on_demand and e.plan.is_held and self._waiting(e) for e in self.endpoints.values())

    def is_version_ready(self, endpoint: Endpoint, digest: str) -> bool:
        """Return whether a version of an endpoint can answer, if need be after a replica of it was started."""
        if digest in self.pool.ready:
            return True
        return endpoint.route.is_on_demand and endpoint.plan.is_held and digest in self.signatures

    def set_routes(self, routes: Sequence[EndpointRoute]) -> None:
        """Follow these routes from now on, all at once."""
        named = {route.name: route for route in routes}
        if len(named) != len(routes):
            raise InvalidInput("an endpoint is named twice in the routes", code="repeated_endpoint")
        for name in [name for name in self.endpoints if name not in named]:
            self.windows.forget(name)
            del self.endpoints[name]
        for route in routes:
            if route.name in self.endpoints:
                self.endpoints[route.name].set_route(route)
            else:
                self.endpoints[route.name] = Endpoint(route)
            for ref in filter(None, (route.stable_ref, route.canary_ref)):
                self.counters.cell("argosy_first_failures_total", route.name, ref)  # it stands there from 0 on
        if any(route.mirror for route in routes):
            preload()
        elastic = [route for route in routes if route.is_elastic]
        self.pool.set_elastic(frozenset(d for r in elastic for d in (r.stable, r.canary, r.backup) if d))
        # While two versions are compared, both run as they do under load.
        self.pool.set_solo(frozenset(r.stable for r in routes if r.may_go_solo and not r.canary))
        self.ready_changed()
        self.on_routes()

    def settle(self, seconds: float) -> None:
        """For so long from now, hold requests of a version that is not ready, instead of turning to another version.

        Call it after a restart, before `set_routes`: replicas that still live take a moment to find the new gateway.
        """
        self._settled_at = self.clock.monotonic() + seconds

    def tick(self) -> None:
        """Look at everything that depends on time; called every few milliseconds."""
        if self._settled_at is not None and self.clock.monotonic() >= self._settled_at:
            self._settled_at = None
            self.ready_changed()
        young, self._young = self._young, []
        for call in young:
            if call.state != OVER and not call.is_timed:
                self._time(call)
        now = self.clock.monotonic()
        self.wheel.turn(now)
        self.pool.check()
        self.pool.measure()
        for endpoint in self.endpoints.values():
            if endpoint.health.turn(now, last_request=endpoint.last_request):
                log.warning("failover_ended", endpoint=endpoint.route.name, version=endpoint.route.stable_ref)
                self._health_changed(endpoint)
        self.windows.tick()

    def statuses(self) -> list[EndpointStatus]:
        """Return every endpoint as the controller sees it."""
        known = self.signatures
        return [
            endpoint.status(self._waiting(endpoint), is_known=endpoint.plan.serving in known)
            for endpoint in self.endpoints.values()
        ]

    # What the pool calls -------------------------------------------------------------------------------------------

    def ready_changed(self) -> None:
        """Follow the routes anew, and take requests along that wait for a version that has nobody left."""
        routed = set()
        for endpoint in self.endpoints.values():
            route = endpoint.route
            routed |= {route.stable, route.canary, route.backup, endpoint.previous[0]}
        learned = False
        for digest, queue in self.pool.queues.items():
            learned |= digest in routed and self.signatures.get(digest) != queue.signature
            self.signatures[digest] = queue.signature
        for endpoint in self.endpoints.values():
            is_settling = self._settled_at is not None
            was_failing = endpoint.health.failing
            now = self.clock.monotonic()
            endpoint.refresh(self.pool.ready, self.signatures, self.windows, now=now, is_settling=is_settling)
            if endpoint.health.failing and not was_failing:
                self._tell_failing(endpoint)
        for digest in list(self.pool.queues):
            self._move_orphans(digest)
        self.pool.keep_queues(routed)
        self.signatures = {d: s for d, s in self.signatures.items() if d in routed or d in self.pool.queues}
        if learned:
            self.on_routes()

    def dispatched(self, ref: str, works: list[Work], now: float) -> None:
        """Count a batch."""
        series = self._series.get(ref) or self._new_series(ref)
        series.queue_seconds.observe_all([now - work.queued for work in works])
        rows = sum([work.inputs.rows for work in works])
        series.batch_requests.observe(len(works))
        series.batch_rows.observe(rows)
        if works[0].inputs.length:
            total = sum([work.inputs.length * work.inputs.rows for work in works])
            series.text_bytes.value += total
            series.padding_bytes.value += max([work.inputs.length for work in works]) * rows - total

    def ran(self, ref: str, run_s: float) -> None:
        """Count a run."""
        (self._series.get(ref) or self._new_series(ref)).run_seconds.observe(run_s)

    # What calls do -------------------------------------------------------------------------------------------------

    def attempt_failed(self, call: Call, trouble: Trouble) -> None:
        """Charge the version that failed, and try again once where that may help, within deadline and budget."""
        call.state = WAITING
        endpoint = call.endpoint
        if call.attempts == 1:
            call.culprit = call.culprit or _handed_to(call)
        if trouble.is_callers:
            call.suspected |= call.attempts == 1
        elif call.attempts == 1 and call.first is None:
            self._charge(call, trouble)
        target = self._target(call, trouble)
        # What stable answers for a canary it answered alone before the rollout: that is no load it has not had.
        is_free = call.arm == CANARY and call.attempts == 1 and target is not None and target[0] != call.digest
        is_last = call.attempts >= _MAX_ATTEMPTS[call.arm]
        if target is None or is_last or not (is_free or endpoint.budget.spend()):
            call.error = _as_error(trouble)
            if trouble.code == TOO_LATE and self.clock.monotonic() >= call.deadline:
                # The replica noticed before the wheel did.
                self.counters.count("argosy_expired_total", endpoint.route.name, "run")
                call.error = _expired(call)
            self.finish(call)
            return
        call.attempts += 1
        endpoint.replayed += 1
        self.counters.count("argosy_replays_total", endpoint.route.name, trouble.code)
        self._move(call, *target)

    def expired(self, call: Call, now: float) -> None:
        """End a call whose time is over; let stable answer a canary's call of which only half is over."""
        if call.state == OVER:
            return
        if call.is_timed:
            call.is_timed = False
            self.wheel.remove(call)
        if now < call.deadline:
            is_new = call.first is None and call.attempts == 1
            call.due = call.deadline
            self._time(call)
            if not is_new:
                return
            trouble = Trouble(TOO_LATE, f"'{call.ref}' did not answer within half of the request's time")
            self._charge(call, trouble)
            if call.arm == CANARY:
                if call.state == WAITING:
                    self.pool.queues[call.digest].take_back(call)
                else:
                    self._abandon(call)
                self.attempt_failed(call, trouble)
            return
        if call.first is None:
            self._charge(call, Trouble("deadline_exceeded", ""))
        stage = "queue" if call.state == WAITING else "run"
        self.counters.count("argosy_expired_total", call.endpoint.route.name, stage)
        self._abandon(call)
        is_held = stage == "queue" and call.endpoint.route.is_on_demand and call.digest not in self.pool.ready
        call.error = _nobody_came(call) if is_held else _expired(call)
        self.finish(call)

    def hedge(self, call: Call, now: float) -> None:
        """Give a slow request to a second replica as well, if one is idle."""
        queue = self.pool.queues.get(call.digest)
        if queue is None or not queue.idle or queue.requests or not call.endpoint.budget.spend():
            return
        call.hedge = Hedge(call, queue)
        queue.resubmit(call.hedge, now)
        self._schedule(queue)

    def hedge_won(self, call: Call, outputs: Sequence[Tensor]) -> None:
        """Answer with what the second copy gave; the first one's answer is dropped when it comes."""
        call.hedge = None
        if call.state == OVER:
            return
        self.counters.count("argosy_hedges_total", call.endpoint.route.name, "won")
        self._abandon(call)
        call.outputs = outputs
        self.finish(call)

    def cancelled(self, call: Call) -> None:
        """Forget a call."""
        self._untime(call)
        self._abandon(call)
        call.state = OVER
        if call.segment is not None:
            call.segment.rollout.dropped(call.segment)
        self.counters.count("argosy_requests_total", call.endpoint.route.name, call.ref, "cancelled")

    def finish(self, call: Call) -> None:
        """Count the call, name its prediction and tell whoever waits. Reached once per call."""
        call.state = OVER
        if call.is_timed or call.hedge is not None:
            self._untime(call)
        endpoint = call.endpoint
        seconds = self.clock.monotonic() - call.arrived
        endpoint.requests += 1
        tally = endpoint.tallies.get(call.ref) or self._tally(endpoint, call.ref)
        tally.seconds.observe(seconds)
        answers = tally.answers
        answers.requests += 1
        if call.error is None:
            tally.ok.value += 1.0
            answers.recent.append(seconds)
            call.prediction = self._namer.name(call.digest, self.clock.now())
            if call.first is None and call.digest == endpoint.route.stable:
                endpoint.answers.append(seconds)
                endpoint.health.good += 1
            if call.pair is not None and not call.failover:
                call.pair.put(is_canary=call.arm == CANARY, outputs=call.outputs, replica=_handed_to(call))
        else:
            self.counters.count("argosy_requests_total", endpoint.route.name, call.ref, call.error.code)
            if not isinstance(call.error, InvalidInput):
                endpoint.failed += 1
                answers.failed += 1
        if call.segment is not None:
            self._judge(call, call.segment, seconds)
        if call.first is not None:
            self._diagnose(call, call.first)
        try:
            call.on_done(call)
        except Exception:
            # The outermost point of one request: its neighbours in the batch are answered whatever it does.
            log.exception("answer_not_delivered", endpoint=endpoint.route.name)

    # Inside --------------------------------------------------------------------------------------------------------

    def _judge(self, call: Call, segment: Segment, seconds: float) -> None:
        rollout = segment.rollout
        refused = call.suspected and call.error is None
        # Of a request that was moved while it waited for a version that has gone, nothing can be said either.
        was_moved = bool(call.failover) and call.first is None and not refused
        if isinstance(call.error, InvalidInput) or was_moved:
            rollout.dropped(segment)
            return
        clean = call.first is None and not refused and call.error is None
        rollout.finished(
            segment,
            call.arm,
            seconds if clean else None,
            failed=call.first is not None or refused,
            batch=call.first.batch if call.first is not None else 0,
            caller=call.caller,
            replica=_handed_to(call) if clean else call.culprit,
        )

    def _diagnose(self, call: Call, first: Trouble) -> None:
        """Learn from a failed first attempt whether the endpoint's version fails, and not the request or the load."""
        endpoint = call.endpoint
        if call.charged != endpoint.route.stable or call.is_pinned or first.code in _LOAD:
            return
        if call.error is not None and call.digest != call.charged:
            return  # another version failed on it too: it may be the input
        if endpoint.health.bad(self.clock.monotonic(), first.message, first.batch):
            self._health_changed(endpoint)
            self._tell_failing(endpoint)

    def _tell_failing(self, endpoint: Endpoint) -> None:
        route, health = endpoint.route, endpoint.health
        self.counters.count("argosy_failovers_total", route.name, health.cause)
        log.warning(
            "failover_started",
            endpoint=route.name,
            version=route.stable_ref,
            answers=endpoint.stand_in or route.stable_ref,
            reason=health.failing,
        )

    def _health_changed(self, endpoint: Endpoint) -> None:
        is_settling = self._settled_at is not None
        now = self.clock.monotonic()
        endpoint.refresh(self.pool.ready, self.signatures, self.windows, now=now, is_settling=is_settling)

    def _stood_in(self, endpoint: Endpoint, call: Call, now: float) -> None:
        """Say of a call that its version stands in for another, and see with a copy how the other one does."""
        if call.digest == endpoint.plan.serving and not call.is_pinned:
            call.failover = call.ref
        endpoint.last_request = now
        health, stable = endpoint.health, endpoint.route.stable
        if health.failing and self._accepts(stable, call) and health.wants_probe(now):
            queue = self._queue(stable)
            probe = Probe(self.wheel, queue, call.inputs, now + _PROBE_S, health)
            with contextlib.suppress(Unavailable):
                queue.submit(probe, now)
                self.wheel.add(probe)
                self._schedule(queue)

    def _charge(self, call: Call, trouble: Trouble) -> None:
        call.first = trouble
        call.charged = call.digest
        self.counters.count("argosy_first_failures_total", call.endpoint.route.name, call.ref)
        call.culprit = call.culprit or _handed_to(call)
        if call.pair is not None:
            call.pair.put(is_canary=call.arm == CANARY, outputs=None, batch=trouble.batch, replica=call.culprit)

    def _target(self, call: Call, trouble: Trouble) -> tuple[str, str] | None:
        """Return digest and name of the version that may answer instead."""
        plan = call.endpoint.plan
        if call.digest != plan.serving and not call.is_pinned and self._accepts(plan.serving, call):
            return plan.serving, plan.serving_ref
        if trouble.is_replayable:
            return call.digest, call.ref
        route = call.endpoint.route
        # What the version itself got wrong, the backup may get right.
        is_own = not call.is_pinned and not trouble.is_callers and trouble.code not in _LOAD
        if is_own and route.backup not in ("", call.digest) and self._accepts(route.backup, call):
            return route.backup, route.backup_ref
        return None

    def _accepts(self, digest: str, call: Call) -> bool:
        found = self.signatures.get(digest)
        return digest in self.pool.ready and found is not None and found.inputs == call.signature.inputs

    def _move(self, call: Call, digest: str, ref: str) -> None:
        if digest != call.digest:
            call.digest, call.ref, call.failover = digest, ref, ref
        queue = self.pool.queue(digest, self.signatures.get(digest, call.signature))
        queue.resubmit(call, self.clock.monotonic())
        self._schedule(queue)

    def _move_orphans(self, digest: str) -> None:
        """Give what waits for a version without any replica to the version that serves now, if one does."""
        queue = self.pool.queues[digest]
        if digest in self.pool.ready or not queue.requests:
            return
        if any(replica.state == DRAINING for replica in replicas_of(self.pool, digest)):
            return
        for work in reversed(queue.take_all()):
            plan = work.endpoint.plan if isinstance(work, Call) else None
            if not isinstance(work, Call):
                # The copy's version has nobody left: the pair says nothing.
                work.state = OVER
            elif plan is not None and not work.is_pinned and self._accepts(plan.serving, work):
                self._move(work, plan.serving, plan.serving_ref)
            else:
                queue.resubmit(work, work.queued)

    def _abandon(self, call: Call) -> None:
        """Take a call out of its queue; if it runs, its answer will be dropped."""
        if call.state == WAITING:
            self.pool.queues[call.digest].withdraw(call)
        elif call.batch is not None:
            call.batch.let_go(call)

    def _refused(self, call: Call, error: Unavailable) -> None:
        self.counters.count("argosy_refused_total", error.code)
        self._charge(call, Trouble(error.code, error.message))
        target = self._target(call, Trouble(error.code, error.message)) if call.arm == CANARY else None
        if target is not None:
            stable = self._queue(target[0])
            with contextlib.suppress(Unavailable):
                stable.check_room(call, call.arrived)
                call.attempts += 1
                self._young.append(call)
                self._move(call, *target)
                return
        call.error = error
        call.state = RUNNING  # in no queue, so that cancelling it takes it out of none
        self._later(lambda: self.finish(call) if call.state != OVER else None)

    def _mirror(self, call: Call, digest: str) -> None:
        queue = self._queue(digest)
        # Copies must never crowd out requests somebody waits for.
        if call.endpoint.rollout is None or queue.requests * 4 > self._config.queue_requests:
            return
        call.pair = Pair(call.endpoint.rollout, call.endpoint.route.tolerance, call.inputs)
        copy = Copy(self.wheel, queue, call.inputs, call.deadline, call.pair, is_canary=call.arm != CANARY)
        try:
            queue.submit(copy, call.arrived)
        except Unavailable:
            call.pair = None
            return
        self.counters.count("argosy_mirrored_pairs_total", call.endpoint.route.name)
        self.wheel.add(copy)
        self._schedule(queue)

    def _queue(self, digest: str) -> VersionQueue:
        return self.pool.queue(digest, self.signatures[digest])

    def _schedule(self, queue: VersionQueue) -> None:
        if not queue.is_due:
            queue.is_due = True
            if not self._dirty:
                self._later(self._dispatch)
            self._dirty.append(queue)

    def _dispatch(self) -> None:
        queues, self._dirty = self._dirty, []
        now = self.clock.monotonic()
        for queue in queues:
            queue.is_due = False
            queue.dispatch(now)

    def _pinned(self, endpoint: Endpoint, number: str) -> tuple[str, str]:
        found = endpoint.digest_of(number)
        if found is None or found[0] not in self.signatures:
            known = ", ".join(endpoint.numbers())
            raise NotFound(
                f"endpoint '{endpoint.route.name}' does not serve version '{number[:40]}'; it serves: {known}",
                code="unknown_version",
            )
        return found

    def _time(self, call: Call) -> None:
        call.is_timed = True
        self.wheel.add(call)

    def _untime(self, call: Call) -> None:
        if call.is_timed:
            call.is_timed = False
            self.wheel.remove(call)
        if call.hedge is not None:
            self.counters.count("argosy_hedges_total", call.endpoint.route.name, "lost")
            call.hedge.drop()

    def _tally(self, endpoint: Endpoint, ref: str) -> Tally:
        name = endpoint.route.name
        found = endpoint.tallies[ref] = Tally(
            self.counters.cell("argosy_requests_total", name, ref, "ok"),
            self.counters.histogram("argosy_request_seconds", name, ref),
            endpoint.by_version.setdefault(ref, Answers()),
        )
        return found

    def _new_series(self, ref: str) -> "_Series":
        counters = self.counters
        found = self._series[ref] = _Series(
            counters.histogram("argosy_queue_seconds", ref),
            counters.histogram("argosy_run_seconds", ref),
            counters.histogram("argosy_batch_requests", ref),
            counters.histogram("argosy_batch_rows", ref),
            counters.cell("argosy_text_bytes_total", ref),
            counters.cell("argosy_padding_bytes_total", ref),
        )
        return found

    def _waiting(self, endpoint: Endpoint) -> int:
        digests = {endpoint.route.stable, endpoint.route.canary, endpoint.route.backup} - {""}
        return sum(self.pool.queues[d].requests for d in digests if d in self.pool.queues)

    def _gauges(self) -> list[tuple[str, tuple[str, ...], float]]:
        found: list[tuple[str, tuple[str, ...], float]] = []
        states: dict[tuple[str, str], int] = {}
        for replica in self.pool.replicas.values():
            key = (replica.hello.ref, replica.state)
            states[key] = states.get(key, 0) + 1
        found.extend(("argosy_replicas", labels, float(count)) for labels, count in states.items())
        for digest, ref in {r.hello.digest: r.hello.ref for r in self.pool.replicas.values()}.items():
            queue = self.pool.queues[digest]
            found.append(("argosy_queue_requests", (ref,), float(queue.requests)))
            found.append(("argosy_queue_limit", (ref,), float(queue.limit)))
        for name, endpoint in self.endpoints.items():
            found.append(("argosy_rollout_share", (name,), endpoint.plan.share))
            found.append(("argosy_failover_active", (name,), float(bool(endpoint.stand_in))))
            found.append(("argosy_failed_total", (name,), float(endpoint.failed)))
        return found


def _handed_to(call: Call) -> str:
    return call.batch.replica if call.batch is not None else ""


def _expired(call: Call) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"'{call.ref}' did not answer within {call.deadline - call.arrived:.3g} s",
        hint="give more time in the header argosy-timeout, or add replicas",
    )


def _nobody_came(call: Call) -> Unavailable:
    return Unavailable(
        f"no replica of '{call.ref}' was ready within {call.deadline - call.arrived:.3g} s of the request that was to "
        "start one",
        hint="retry after the time in Retry-After; argosy watch shows whether one is being started",
        code="not_ready",
        retry_after_s=5.0,
    )


def _as_error(trouble: Trouble) -> ArgosyError:
    if trouble.is_callers:
        return InvalidInput(trouble.message, code=trouble.code)
    if trouble.is_replayable or trouble.code == TOO_LATE:
        return Unavailable(trouble.message, hint="it may be sent again", code=trouble.code, retry_after_s=1.0)
    return Internal(trouble.message, hint="the version failed on this input; see its replica's log", code=trouble.code)
