"""Inference, whatever the transport: check, draw, queue, try again where that is right, count once.

The life of a request: `infer` checks it against the signature, draws its version and queues it. The batcher hands it to
a replica, which calls `answered` or `failed`; the wheel calls `expire`. `_finish` is reached exactly once.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from random import Random

from argosy.core.clock import Clock
from argosy.core.errors import ArgosyError, DeadlineExceeded, Internal, InvalidInput, NotFound, Unavailable
from argosy.core.logs import get_logger
from argosy.core.tensors import Signature
from argosy.serve import prediction_id
from argosy.serve.batcher import OVER, RUNNING, WAITING, Trouble, VersionQueue, Work
from argosy.serve.control import EndpointRoute, EndpointStatus, GatewayConfig
from argosy.serve.counters import Counters
from argosy.serve.deadlines import Wheel
from argosy.serve.endpoint import Endpoint
from argosy.serve.mirror import Copy, Pair, preload
from argosy.serve.pool import DRAINING, Pool, replicas_of
from argosy.serve.requests import Inputs, check_inputs
from argosy.serve.router import CANARY, STABLE, UNCOUNTED, Choice, choose
from argosy.serve.windows import Segment, Windows
from argosy.serve.wire import Tensor

log = get_logger()

# A canary's failure is answered by stable, and that attempt may lose its replica too.
_MAX_ATTEMPTS = {CANARY: 3, STABLE: 2, UNCOUNTED: 2}


class Call(Work):
    """One request for an inference, until it is answered. Read `outputs` or `error` when `on_done` is called."""

    __slots__ = (
        "arm", "arrived", "attempts", "caller", "deadline", "digest", "due", "endpoint", "error", "failover", "first",
        "is_pinned", "on_done", "outputs", "pair", "plane", "prediction", "ref", "segment", "signature", "suspected",
    )  # fmt: skip

    def __init__(
        self, plane: "DataPlane", endpoint: Endpoint, signature: Signature, inputs: Inputs, choice: Choice
    ) -> None:
        super().__init__(inputs)
        self.plane = plane
        self.endpoint = endpoint
        self.digest = choice.digest
        self.ref = choice.ref
        self.arm = choice.arm
        self.arrived = plane.clock.monotonic()
        self.deadline = self.due = self.arrived
        self.on_done: Callable[[Call], None] = _ignore
        self.attempts = 1
        self.signature = signature
        self.is_pinned = False
        self.caller = ""
        self.failover = ""
        """Name of the version that answered in place of the one that was drawn."""
        self.first: Trouble | None = None
        """Why the first attempt failed, if it did."""
        self.suspected = False
        """The drawn version took the input for wrong; if another takes it, that was a failure."""
        self.segment: Segment | None = None
        self.pair: Pair | None = None
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

    def cancel(self) -> None:
        """Forget the request: nobody waits for it any more. Its batch, if it runs, is not disturbed."""
        if self.state != OVER:
            self.plane.cancelled(self)


def _ignore(call: Call) -> None:
    del call


class DataPlane:
    """Endpoints, and what happens to their requests. Lives on one event loop; nothing here blocks or awaits."""

    def __init__(
        self, config: GatewayConfig, clock: Clock, random: Random, later: Callable[[Callable[[], None]], object]
    ) -> None:
        """`later` runs a function at the end of this turn of the loop, so that requests read together run together."""
        self.clock = clock
        self.pool = Pool(config, clock, self)
        self.windows = Windows(clock)
        self.counters = Counters()
        self.wheel = Wheel(clock.monotonic())
        self.endpoints: dict[str, Endpoint] = {}
        self.signatures: dict[str, Signature] = {}
        """Of every version that is routed to, also while no replica of it is connected."""
        self.on_routes: Callable[[], None] = lambda: None
        """Called when routes or signatures have changed, to write them down."""
        self._config = config
        self._random = random
        self._key = bytes.fromhex(config.key)
        self._later = later
        self._dirty: set[VersionQueue] = set()
        self._settled_at: float | None = None
        self.counters.gauges(self._gauges)

    # What transports call ------------------------------------------------------------------------------------------

    def endpoint(self, name: str) -> Endpoint:
        """Return an endpoint; NotFound lists the known ones."""
        found = self.endpoints.get(name)
        if found is None:
            known = ", ".join(sorted(self.endpoints)[:20]) or "none"
            raise NotFound(f"there is no endpoint '{name[:100]}'; the endpoints are: {known}", code="unknown_endpoint")
        return found

    def signature(self, endpoint: Endpoint, number: str = "") -> Signature:
        """Return what callers of an endpoint, or of one of its versions by number, must send."""
        digest = endpoint.plan.serving if not number else self._pinned(endpoint, number)[0]
        found = self.signatures.get(digest)
        if found is None:
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
    ) -> Call:
        """Start an inference; `on_done` is called once with the call, from a later turn of the loop, unless cancelled.

        `number` asks for one version of the endpoint. Raises InvalidInput for inputs that don't fit the signature,
        before any version is drawn; every later refusal comes through `on_done`.
        """
        signature = self.signature(endpoint, number)
        inputs = check_inputs(signature, tensors)
        if number:
            choice = Choice(*self._pinned(endpoint, number), UNCOUNTED, "")
        else:
            copy_draw = self._random.random() if endpoint.plan.mirror else 1.0
            choice = choose(endpoint.plan, self._random.random(), copy_draw, caller)
        call = Call(self, endpoint, signature, inputs, choice)
        call.is_pinned = bool(number)
        call.on_done = on_done
        call.deadline = call.arrived + (timeout_s or self._config.timeout_s)
        # Half of the time for the first attempt of either version, so that stable can answer for a canary that hangs.
        call.due = call.deadline if choice.arm == UNCOUNTED else (call.arrived + call.deadline) / 2
        endpoint.budget.earn()
        if choice.arm != UNCOUNTED and endpoint.rollout is not None:
            call.segment = endpoint.rollout.drawn()
            call.caller = caller if endpoint.plan.sticky else ""
        queue = self._queue(choice.digest)
        try:
            queue.submit(call, call.arrived)
        except Unavailable as error:
            self._refused(call, error)
            return call
        self.wheel.add(call)
        if choice.mirror and call.segment is not None:
            self._mirror(call, choice.mirror)
        self._schedule(queue)
        return call

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
        if any(route.mirror for route in routes):
            preload()
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
        self.wheel.turn(self.clock.monotonic())
        self.pool.check()
        self.windows.tick()

    def statuses(self) -> list[EndpointStatus]:
        """Return every endpoint as the controller sees it."""
        return [endpoint.status(self._waiting(endpoint)) for endpoint in self.endpoints.values()]

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
            endpoint.refresh(self.pool.ready, self.signatures, self.windows, is_settling=is_settling)
        for digest in list(self.pool.queues):
            self._move_orphans(digest)
        self.pool.keep_queues(routed)
        self.signatures = {d: s for d, s in self.signatures.items() if d in routed or d in self.pool.queues}
        if learned:
            self.on_routes()

    def dispatched(self, works: list[Work], now: float) -> None:
        """Count a batch."""
        name = ""
        for work in works:
            if isinstance(work, Call):
                name = work.endpoint.route.name
                self.counters.observe("argosy_queue_seconds", now - work.queued, name)
        if name:
            self.counters.observe("argosy_batch_requests", len(works), name)

    # What calls do -------------------------------------------------------------------------------------------------

    def attempt_failed(self, call: Call, trouble: Trouble) -> None:
        """Charge the version that failed, and try again once where that may help, within deadline and budget."""
        call.state = WAITING
        endpoint = call.endpoint
        if trouble.is_callers:
            call.suspected |= call.attempts == 1
        elif call.attempts == 1 and call.first is None:
            self._charge(call, trouble)
        target = self._target(call, trouble)
        if not target or call.attempts >= _MAX_ATTEMPTS[call.arm] or not endpoint.budget.spend():
            call.error = _as_error(trouble)
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
        if now < call.deadline:
            is_new = call.first is None and call.attempts == 1
            call.due = call.deadline
            self.wheel.add(call)
            if not is_new:
                return
            trouble = Trouble("attempt_timeout", f"'{call.ref}' did not answer within half of the request's time")
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
        self._abandon(call)
        call.error = DeadlineExceeded(
            f"'{call.ref}' did not answer within {call.deadline - call.arrived:.3g} s",
            hint="give more time in the header argosy-timeout, or add replicas",
        )
        self.finish(call)

    def cancelled(self, call: Call) -> None:
        """Forget a call."""
        self.wheel.remove(call)
        self._abandon(call)
        call.state = OVER
        if call.segment is not None:
            call.segment.rollout.dropped(call.segment)
        self.counters.count("argosy_requests_total", call.endpoint.route.name, call.ref, "cancelled")

    def finish(self, call: Call) -> None:
        """Count the call, name its prediction and tell whoever waits. Reached once per call."""
        call.state = OVER
        self.wheel.remove(call)
        now = self.clock.monotonic()
        endpoint = call.endpoint
        seconds = now - call.arrived
        endpoint.requests += 1
        if call.error is None:
            call.prediction = prediction_id.encode(call.digest, self.clock.now(), self._random, self._key)
            if call.digest == endpoint.route.stable and call.first is None:
                endpoint.answers.append(seconds)
            if call.pair is not None and not call.failover:
                call.pair.put(is_canary=call.arm == CANARY, outputs=call.outputs)
        elif not isinstance(call.error, InvalidInput):
            endpoint.failed += 1
        self._judge(call, seconds)
        code = "ok" if call.error is None else call.error.code
        self.counters.count("argosy_requests_total", endpoint.route.name, call.ref, code)
        self.counters.observe("argosy_request_seconds", seconds, endpoint.route.name, call.ref)
        try:
            call.on_done(call)
        except Exception:
            # The outermost point of one request: its neighbours in the batch are answered whatever it does.
            log.exception("answer_not_delivered", endpoint=endpoint.route.name)

    # Inside --------------------------------------------------------------------------------------------------------

    def _judge(self, call: Call, seconds: float) -> None:
        if call.segment is None:
            return
        rollout = call.segment.rollout
        refused = call.suspected and call.error is None
        # Of a request that was moved while it waited for a version that has gone, nothing can be said either.
        was_moved = bool(call.failover) and call.first is None and not refused
        if isinstance(call.error, InvalidInput) or was_moved:
            rollout.dropped(call.segment)
            return
        clean = call.first is None and not refused and call.error is None
        rollout.finished(
            call.segment,
            call.arm,
            seconds if clean else None,
            failed=call.first is not None or refused,
            batch=call.first.batch if call.first is not None else 0,
            caller=call.caller,
        )

    def _charge(self, call: Call, trouble: Trouble) -> None:
        call.first = trouble
        if call.pair is not None:
            call.pair.put(is_canary=call.arm == CANARY, outputs=None, batch=trouble.batch)

    def _target(self, call: Call, trouble: Trouble) -> tuple[str, str] | None:
        """Return digest and name of the version that may answer instead."""
        plan = call.endpoint.plan
        if call.digest != plan.serving and not call.is_pinned and self._accepts(plan.serving, call):
            return plan.serving, plan.serving_ref
        return (call.digest, call.ref) if trouble.is_replayable else None

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
        if target is not None and call.endpoint.budget.spend():
            stable = self._queue(target[0])
            with contextlib.suppress(Unavailable):
                stable.check_room(call.inputs)
                call.attempts += 1
                self.wheel.add(call)
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
        call.pair = Pair(call.endpoint.rollout, call.endpoint.route.tolerance)
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
        if not self._dirty:
            self._later(self._dispatch)
        self._dirty.add(queue)

    def _dispatch(self) -> None:
        queues, self._dirty = self._dirty, set()
        for queue in queues:
            queue.dispatch()

    def _pinned(self, endpoint: Endpoint, number: str) -> tuple[str, str]:
        found = endpoint.digest_of(number)
        if found is None or found[0] not in self.signatures:
            known = ", ".join(endpoint.numbers())
            raise NotFound(
                f"endpoint '{endpoint.route.name}' does not serve version '{number[:40]}'; it serves: {known}",
                code="unknown_version",
            )
        return found

    def _waiting(self, endpoint: Endpoint) -> int:
        digests = {endpoint.route.stable, endpoint.route.canary, endpoint.route.backup} - {""}
        return sum(self.pool.queues[d].requests for d in digests if d in self.pool.queues)

    def _gauges(self) -> list[tuple[str, tuple[str, ...], float]]:
        found: list[tuple[str, tuple[str, ...], float]] = []
        refs = {replica.hello.digest: replica.hello.ref for replica in self.pool.replicas.values()}
        for digest, ref in refs.items():
            found.append(("argosy_replicas", (ref,), sum(1.0 for _ in replicas_of(self.pool, digest))))
            found.append(("argosy_queue_requests", (ref,), float(self.pool.queues[digest].requests)))
        found.extend(("argosy_rollout_share", (name,), e.plan.share) for name, e in self.endpoints.items())
        return found


def _as_error(trouble: Trouble) -> ArgosyError:
    if trouble.is_callers:
        return InvalidInput(trouble.message, code=trouble.code)
    if trouble.is_replayable or trouble.code == "attempt_timeout":
        return Unavailable(trouble.message, hint="it may be sent again", code=trouble.code, retry_after_s=1.0)
    return Internal(trouble.message, hint="the version failed on this input; see its replica's log", code=trouble.code)
