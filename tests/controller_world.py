"""A world for the controller: fake clock, log, launcher and gateway, and a schedule of what goes wrong, from one seed.

Every durable write and every action on launcher or gateway is a pair of points, before and after. At chosen points the
controller is killed, a process dies, the store fails, an operator acts, or a rival is elected. After every point the
invariants are checked; at the end the troubles cease and the world must come to rest where it should.
"""

import random
from types import SimpleNamespace

from msgspec import structs

from argosy.cluster.memory import MemoryLauncher
from argosy.core.clock import FakeClock
from argosy.core.digest import sha256
from argosy.core.errors import ArgosyError, Conflict, Internal, NotFound, Unavailable
from argosy.core.tensors import Signature, TensorSpec
from argosy.operate import access, commands, grants
from argosy.operate import desired as d
from argosy.operate.config import EndpointConfig, OwnMetric, RolloutConfig, to_plain
from argosy.operate.controller import Deposed, Parts, Reconciler
from argosy.operate.desired import Desired
from argosy.operate.gates import gates_missed
from argosy.operate.layout import wanted_replicas
from argosy.operate.memory import FakeGateway, FakeLog
from argosy.operate.replicas import key_of, version_key
from argosy.operate.sharing import Machine
from argosy.registry.versions import Evaluation, GateResult, Manifest, Version
from argosy.security.api_keys import make_key
from argosy.serve.access import AccessRules
from argosy.serve.control import LISTENING, VersionLoad
from argosy.serve.wire import Advice

TENSOR = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
SIGNATURE = Signature(inputs=(TENSOR,), outputs=(TENSOR,))
ENDPOINT = "m"


def make_version(number, *, passed=True, name="m", signature=SIGNATURE):
    gates = [GateResult(name="accuracy", bound=">= 0.97", value=0.95, passed=False, missed_by=0.02)]
    evaluation = Evaluation(kind="test-set", passed=passed, gates=[] if passed else gates)
    manifest = Manifest(
        name=name, created=0.0, role="original", task="tensor", signature=signature, files={}, evaluation=evaluation
    )
    return Version(name=name, number=number, digest=sha256(f"{name}:{number}".encode()), manifest=manifest)


class FakeVersions:
    def __init__(self, *versions):
        self.by_ref = {key: v for v in versions for key in (str(v), v.digest)}

    def get(self, ref):
        if ref not in self.by_ref:
            raise NotFound(f"no version '{ref}'")
        return self.by_ref[ref]


class CountingJudge:
    """Three bad windows: rollback; four good ones: promote. Enough to see whether windows are lost or counted twice."""

    def __init__(self, rollout):
        self.seen = []
        self.bad = 0

    def take(self, window):
        self.seen.append(window.index)
        self.bad += any(bad for bad, _ in window.bad.values())

    def verdict(self):
        good = len(self.seen) - self.bad
        said = "rollback" if self.bad >= 3 else "promote" if good >= 4 else "wait"
        return {"verdict": said, "reason": f"{self.bad} bad of {len(self.seen)}", "seen": list(self.seen)}


class FakeReadings:
    """Reads metrics of rollouts' own as the world says: they can vanish."""

    def __init__(self, world):
        self.world = world

    def follow(self, rollouts):
        self.followed = {rollout.id for rollout in rollouts}

    def complete(self, rollout, window):
        return window

    def trouble(self, rollout):
        return "metric 'own' cannot be read: gone" if self.world.has_vanished else ""

    def state(self, rollout):
        return {"own": {"read": 1, "ignored": 0, "trouble": self.trouble(rollout)}}


class Killed(BaseException):
    """The controller's process is gone at this very point."""


class Violation(AssertionError):
    """An invariant does not hold."""


def require(holds, what):
    if not holds:
        raise Violation(what)


class Hooked:
    """Passes calls on to `inner`, with a point before and after those that act."""

    def __init__(self, inner, acting, point):
        self._inner = inner
        for name in acting:
            setattr(self, name, self._wrap(name, getattr(inner, name), point))

    def __getattr__(self, name):
        return getattr(self._inner, name)

    @staticmethod
    def _wrap(name, call, point):
        def wrapped(*args, **kwargs):
            given = args[0] if args and isinstance(args[0], str) else getattr(args[0], "name", "") if args else ""
            point(f"before {name}", given)
            found = call(*args, **kwargs)
            point(f"after {name}", given)
            return found

        return wrapped


class Controller:
    """One life of a controller in the world."""

    def __init__(self, world, number):
        self.world = world
        self.number = number
        self.epoch = 0
        self.ticking_since = 0
        self.is_blind = False
        log = FakeLog(world.entries, world.clock, f"controller-{number}", self._log_point)
        self.reconciler = Reconciler(
            Parts(
                log=log,
                launcher=Hooked(world.launcher, ("start", "stop", "forget"), self._act_point),
                gateway=Hooked(world.gateway, ("set_access", "set_routes", "drain", "windows"), self._act_point),
                clock=world.clock,
                randomness=world.random,
                gate_missed=lambda digest: gates_missed(world.versions.get(digest)),
                make_judge=CountingJudge,
                make_replica=lambda name, want: {"id": name, "digest": want.target.digest, "threads": want.threads},
                advised=world.stored.get,
                make_front=lambda desired, name, port: {"name": name, "port": port, "fronts": desired.gateway.fronts},
                make_gateway=lambda desired: {
                    **desired.gateway.plain(),
                    "port": desired.bound_port or desired.port,
                    "is_guarded": desired.access.is_on,
                },
                machine=lambda: world.machine,
                replica_memory=lambda digest: world.replica_bytes.get(digest, 0),
                publish_scaling=world.scaling.update,
                report=lambda event, **fields: None,
                readings=FakeReadings(world),
            )
        )
        self.reconciler.elect()
        self.epoch = self.reconciler._epoch

    def tick(self):
        self.ticking_since = len(self.world.entries)
        self.is_blind = False
        return self.reconciler.tick()

    def _log_point(self, what, kind):
        world = self.world
        if what == "refresh":
            self.is_blind = True
            world.fail_if_planned()
            self.is_blind = False
            return
        if what == "after append" and kind.startswith("rollout."):
            elected = [e for e in world.entries[:-1] if e.kind == d.ELECTED]
            require(elected[-1].seq == self.epoch, f"controller {self.number} wrote {kind} after being deposed")
        world.point(f"{what} {kind}", self)
        if what == "before append":
            world.fail_if_planned()
        elif world.lost_answers and not world.is_calm:
            world.lost_answers -= 1
            raise Unavailable("the entry was written, but nobody heard of it")

    def _act_point(self, what, name):
        world = self.world
        # One that can't read the log goes on keeping processes alive: the lock of its home guards those, and this world
        # leaves it out. It must not write, see above.
        if what.startswith("before") and not self.is_blind:
            former = [e for e in world.entries[: self.ticking_since] if e.kind == d.ELECTED]
            require(former[-1].seq == self.epoch, f"controller {self.number} did {what} {name} after being deposed")
        if what == "before stop":
            world.check_stop(name)
        if what == "before windows":
            world.held = world.gateway.held()
        if what == "after windows":
            world.check_forgotten(world.held - world.gateway.held())
        if what == "after set_routes":
            world.check_routes()
        world.point(f"{what} {name}", self)


class World:
    """One schedule. `story` says how the versions behave and what is deployed; all else comes from the seed."""

    def __init__(self, seed, *, troubles=True):
        self.seed = seed
        self.random = random.Random(seed)
        self.clock = FakeClock()
        self.launcher = MemoryLauncher(self.clock)
        self.gateway = FakeGateway()
        self.gateway.is_alive = False
        self.entries = []
        self.controllers = []
        self.lives = 0
        self.points = 0
        self.trace = []
        self.failures_left = 0
        self.lost_answers = 0
        self.ever_ready = set()
        self.ready_at = {}
        self.gateway_at = None
        self.window_at = 0.0
        self.is_calm = not troubles
        self.behaviour = {}
        self.found = {}
        """What calibrating each version will find out, by digest, and after how many seconds of a replica's life."""
        self.stored = {}
        self.machine = Machine()
        self.replica_bytes = {}
        self.scaling = {}
        """What the controller said last of scaling, by endpoint."""
        self.at_once = {}
        """Requests at the same time that each version has, by digest; its gateway's counters follow."""
        self.versions = FakeVersions(make_version(1), make_version(2), make_version(3), make_version(9, passed=False))
        self.registry = SimpleNamespace(log=FakeLog(self.entries, self.clock), versions=self.versions)
        self.plan = self._plan_troubles() if troubles else {}
        self.shares_seen = {}
        self.has_vanished = False
        self.held = set()
        self.closed_by = 0
        self._state = Desired()

    # ---- the schedule

    def _plan_troubles(self):
        rnd = self.random
        kinds = ["kill"] * 6 + ["replica", "replica", "gateway", "store", "answer", "operator", "rival"]
        return {rnd.randrange(4, 150): rnd.choice(kinds) for _ in range(rnd.randrange(1, 6))}

    def point(self, what, controller):
        self.points += 1
        trouble = None if self.is_calm else self.plan.pop(self.points, None)
        if trouble is None:
            return
        self.note(f"{trouble} at {what}")
        if trouble == "kill":
            self.controllers.remove(controller) if controller in self.controllers else None
            raise Killed
        getattr(self, f"_trouble_{trouble}")()

    def note(self, what):
        self.trace.append(f"{self.clock.monotonic():8.2f} {len(self.entries):3d} {what}")

    def _trouble_replica(self):
        living = [info.name for info in self.launcher.list("replica") if info.alive]
        if living:
            name = self.random.choice(living)
            self.launcher.end(name, -9)
            self.gateway.disconnect(name)

    def _trouble_gateway(self):
        info = self.launcher.get("gateway")
        if info is not None and info.alive:
            self.launcher.end("gateway", -9)
            self.gateway.die()
            self.gateway_at = None
            if self.random.random() < 0.3:
                self.gateway.routes = {}  # its files were lost with it
                self.gateway.rules = None

    def _trouble_store(self):
        self.failures_left = self.random.randrange(1, 4)

    def _trouble_answer(self):
        self.lost_answers = 1

    def fail_if_planned(self):
        if self.failures_left and not self.is_calm:
            self.failures_left -= 1
            raise Unavailable("the store answers 500")

    def _trouble_operator(self):
        wishes = ["rollback", "rollback", "promote", "deploy", "remove", "stop", "forge", "grant", "grant", "revoke"]
        wishes += ["pause", "pause", "resume", "abort"]
        self.operate(self.random.choice([*wishes, "lift"]))

    def operate(self, what):
        self.note(f"operator: {what}")
        try:
            if what == "rollback":
                commands.rollback(self.registry, ENDPOINT)
            elif what == "promote":
                commands.promote(self.registry, ENDPOINT)
            elif what in ("pause", "resume", "abort"):
                getattr(commands, what)(self.registry, ENDPOINT)
            elif what == "remove":
                commands.remove(self.registry, ENDPOINT)
            elif what == "stop":
                commands.stop_all(self.registry)
            elif what == "deploy":
                commands.deploy(self.registry, f"m:{self.random.randrange(1, 4)}", name=ENDPOINT, rollout=self.rollout)
            elif what in ("grant", "revoke", "lift"):
                self._rule(what)
            elif what == "forge":  # an entry that went around the commands
                bad = self.versions.get("m:9")
                plain = {"digest": bad.digest, "ref": "m:9"}
                data = {"action": "deploy", "version": plain, "endpoint": {}, "rollout": to_plain(RolloutConfig())}
                self.registry.log.append(d.ENDPOINT, ENDPOINT, data)
        except (Conflict, NotFound) as refused:
            self.note(f"refused: {refused}")

    def _rule(self, what):
        name = self.random.choice(["ada", "bob"])
        if what == "grant":
            access.grant(self.registry, name, clock=self.clock, key=make_key(self.random.randbytes))
        elif what == "revoke":
            access.revoke(self.registry, name)
        else:
            access.lift(self.registry)

    def _trouble_rival(self):
        self._new_controller()

    # ---- time

    def _new_controller(self):
        self.lives += 1
        try:
            self.controllers.append(Controller(self, self.lives))
        except (Killed, Unavailable):
            self.note("controller did not get elected")

    def step(self, dt):
        """Let `dt` seconds pass, and every living controller look once."""
        self.clock.advance(dt)
        self._processes()
        self._traffic()
        self._load(dt)
        if not self.controllers and (self.is_calm or self.random.random() < 0.5):
            self._new_controller()
        for controller in list(self.controllers):
            try:
                controller.tick()
            except Killed:
                continue
            except Deposed:
                self.controllers.remove(controller)
                self.note(f"controller {controller.number} deposed")
            except ArgosyError as error:
                raise Violation(f"tick raised {error!r}") from error
        self.check()

    def load(self, version, at_once, seconds, dt=0.5, *, waiting=0, oldest_s=0.0, pace_s=0.0):
        """Let a version have so many requests at once for some time."""
        self.at_once[self.versions.get(version).digest] = (at_once, waiting, oldest_s, pace_s)
        for _ in range(round(seconds / dt)):
            self.step(dt)

    def _load(self, dt):
        if not self.gateway.is_alive:
            return
        for digest, (at_once, waiting, oldest_s, pace_s) in self.at_once.items():
            former = self.gateway.loads.get(digest)
            load_s = (former.load_s if former else 0.0) + at_once * dt
            self.gateway.loads[digest] = VersionLoad(
                digest=digest, waiting=waiting, in_flight=0, oldest_wait_s=oldest_s, load_s=load_s, pace_s=pace_s,
                rows=1.0,
            )  # fmt: skip
            for route in self.gateway.routes.values():
                if route.stable == digest:
                    came = self.gateway.arrived.get(route.name, 0) + int(at_once > 0)
                    self.gateway.arrived[route.name] = came
                    self.gateway.waiting[route.name] = waiting

    def _processes(self):
        now = self.clock.monotonic()
        gateway = self.launcher.get("gateway")
        if gateway is not None and gateway.alive and not self.gateway.is_alive:
            self.gateway_at = now if self.gateway_at is None else self.gateway_at
            if now - self.gateway_at >= 0.2:
                config = self.launcher.specs["gateway"].config
                if self.gateway.rules is None and not config["is_guarded"]:
                    self.gateway.rules = AccessRules(is_on=False)
                elif config["is_guarded"] and self.gateway.rules is not None and not self.gateway.rules.is_on:
                    self.gateway.rules = None
                self.gateway.asked = {name: config[name] for name in LISTENING}
                self.gateway.revive(gateway.pid, now)
                self.check_access()
        elif (gateway is None or not gateway.alive) and self.gateway.is_alive:
            self.gateway.die()
            self.gateway_at = None
        living = {info.name: info for info in self.launcher.list("replica") if info.alive}
        for name in [name for name in self.gateway.replicas if name not in living]:
            self.gateway.disconnect(name)
        for name, info in living.items():
            self._replica(name, info, now)

    def _replica(self, name, info, now):
        digest = self.launcher.specs[name].config["digest"]
        how = self.behaviour.get(digest, "good")
        require(self.versions.get(digest).manifest.evaluation.passed, f"{name} of a version that missed its gate runs")
        status = self.gateway.replicas.get(name)
        if status is not None and status.state == "draining":
            self.gateway.set_state(name, "drained")
        if status is not None and status.state == "ready" and digest in self.found:
            self._calibrate(name, status, self.clock.now() - info.started)
        if status is not None or self.clock.now() - info.started < 0.3:
            return
        if how == "crash":
            self.launcher.end(name, 1, Internal("it cannot load"))
        elif how != "stuck" and self.gateway.is_alive:
            config = self.launcher.specs[name].config
            self.gateway.connect(name, digest, threads=config["threads"], advice=self.stored.get(digest))
            self.ever_ready.add(digest)

    def _calibrate(self, name, status, age_s):
        advice, after_s = self.found[status.version]
        if age_s >= after_s:
            self.stored.setdefault(status.version, advice)
        if self.stored.get(status.version) != status.advice:
            found = {"threads": status.threads, "advice": self.stored[status.version]}
            self.gateway.connect(name, status.version, **found)

    def _traffic(self):
        now = self.clock.now()
        if now - self.window_at < 1.0 or not self.gateway.is_alive:
            return
        self.window_at = now
        for route in list(self.gateway.routes.values()):
            if route.rollout and self.gateway.ready(route.canary):
                how = self.behaviour.get(route.canary, "good")
                if how != "quiet":
                    # A version that gets copies only shows what it is by the answers to those.
                    metric, all_ = ("errors", 0.0) if route.share else ("agreement", 3.0)
                    bad = (1.0, all_ or 1.0) if how == "bad" else (0.0, all_)
                    self.gateway.close_window(route.name, now - 1.0, 1.0, bad={metric: bad})

    # ---- invariants

    def state(self):
        self.registry.log.head = len(self.entries)
        self._state.catch_up(self.registry.log)
        return self._state

    def check_stop(self, name):
        if not name.startswith("replica") or not self.gateway.is_alive:
            return
        key = key_of(name)
        for route in self.gateway.routes.values():
            for digest in (route.stable, route.canary, route.backup):
                if digest and version_key(digest) == key:
                    status = self.gateway.replicas.get(name)
                    is_only = status is not None and status.state == "ready" and self.gateway.ready(digest) == 1
                    require(not is_only, f"{name} is stopped, the last ready one of a routed version")

    def check_forgotten(self, windows):
        written = {(e.data["rollout"], w["index"]) for e in self.entries for w in e.data.get("windows", ())}
        running = {e.rollout.id for e in self.state().endpoints.values() if e.rollout}
        lost = {pair for pair in windows - written if pair[0] in running}
        require(not lost, f"windows {lost} were acknowledged before they were written")

    def check_routes(self):
        for route in self.gateway.routes.values():
            require(0.0 <= route.share <= 1.0, f"share is {route.share}")
            require(not route.share or route.canary, "a share for nobody")
            for digest in (route.stable, route.canary):
                require(not digest or digest in self.ever_ready, f"{digest} is routed and never was ready")
                require(not digest or self.versions.get(digest).manifest.evaluation.passed, "a failed version routed")
            if route.rollout:
                allowed = [round(s, 9) for s in self.rollout.shares]
                allowed += [0.0] if self.rollout.has_shadow else []
                require(round(route.share, 9) in allowed, f"share {route.share} is not of {allowed}")
                require(not route.share or self.rollout.style != "shadow", "a version in shadow gets requests")
                require(route.share or route.mirror, "a version in shadow without copies")
                rollout = self.state().endpoints[route.name].rollout if route.name in self.state().endpoints else None
                if rollout and rollout.id == route.rollout and rollout.paused and route.share:
                    require(round(route.share, 9) <= round(rollout.share, 9), "the share grew during a pause")
                former = self.shares_seen.setdefault(route.rollout, 0.0)
                require(route.share >= former, "the share went down without a rollback")
                self.shares_seen[route.rollout] = route.share

    def check(self):
        self.check_access()
        if not self.gateway.is_alive or not self.gateway.routes:
            return
        for endpoint in self.state().endpoints.values():
            route = self.gateway.routes.get(endpoint.name)
            if not endpoint.is_active or route is None or endpoint.stable is None:
                continue
            versions = {v.digest for v in (endpoint.stable, endpoint.backup) if v}
            ready = {v for v in versions if self.gateway.ready(v)}
            routed = {v for v in (route.stable, route.canary, route.backup) if v and self.gateway.ready(v)}
            require(routed or not ready, f"{ready} could serve, but the route names {route}")

    def check_access(self):
        """A gateway that was closed by a grant opens only when access control was lifted after it."""
        rules = self.gateway.rules
        if rules is None:
            return
        if rules.is_on:
            known = {key.id for key in rules.keys}
            granted = [e.seq for e in self.entries if e.kind == grants.GRANTED and e.data["id"] in known]
            self.closed_by = max([self.closed_by, *granted])
        else:
            lifted = max((e.seq for e in self.entries if e.kind == grants.LIFTED), default=0)
            require(lifted >= self.closed_by, "the gateway is open again though nobody has lifted access control")

    def check_log(self):
        """What must hold of the whole log: rollouts one after the other, windows once, wishes obeyed."""
        state = Desired()
        open_, indexes, seen, aborted = {}, {}, set(), set()
        for entry in self.entries:
            before = {name: e.rollout for name, e in state.endpoints.items()}
            if entry.data.get("action") == "abort":
                aborted.add(entry.data["rollout"])
            if entry.kind == d.ENDED and entry.data.get("rollout"):
                rollout = before.get(entry.subject)
                require(rollout and rollout.id == entry.data["rollout"], f"entry {entry.seq} ends what is not running")
                outcome = entry.data["outcome"]
                if rollout.rollback_asked or rollout.id in aborted:
                    require(outcome == d.ROLLED_BACK, f"{rollout.id} {outcome} though rollback was asked")
                require(outcome != d.LEFT or rollout.kind == d.SHADOW_ONLY, f"{rollout.id} of {rollout.kind} was left")
                if outcome == d.PROMOTED and rollout.kind == d.SHADOW_ONLY and not rollout.promote_asked:
                    require(rollout.config.after_shadow == "promote", f"{rollout.id} in shadow was promoted")
                if outcome == d.PROMOTED and rollout.config.shadow_pairs and not rollout.promote_asked:
                    self._check_pairs(rollout)
            if entry.kind == d.STEPPED and before.get(entry.subject) and before[entry.subject].paused:
                moved = entry.data["phase"]
                require(
                    moved in (d.ROLLING_BACK, d.ROLLED_BACK), f"entry {entry.seq} moves a paused rollout to {moved}"
                )
            for window in entry.data.get("windows", ()):
                rollout = entry.data["rollout"]
                require(window["index"] > indexes.get(rollout, -1), f"window {window['index']} is in the log twice")
                indexes[rollout] = window["index"]
                seen.add((rollout, window["index"]))
            verdict = entry.data.get("verdict")
            if verdict:
                rollout = entry.data["rollout"]
                judged = {(rollout, index) for index in verdict["seen"]}
                logged = {pair for pair in seen if pair[0] == rollout}
                require(judged == logged, f"entry {entry.seq} judges {judged} but the log has {logged}")
            if entry.kind == d.STARTED:
                require(entry.subject not in open_, "two rollouts of one endpoint")
                open_[entry.subject] = entry.data["rollout"]
            state.apply(entry)
            for name in [n for n in open_ if n not in state.endpoints or state.endpoints[n].rollout is None]:
                del open_[name]

    def _check_pairs(self, rollout):
        """No canary before both versions have answered as many requests as were asked for, if both could."""
        if rollout.kind == d.STEPWISE and rollout.first_step:
            shadowed = [w for w in rollout.windows if not w["share"]]
            pairs = sum(w["bad"].get("agreement", (0, 0))[1] for w in shadowed)
            require(pairs >= rollout.config.shadow_pairs, f"{rollout.id} got requests after {pairs} pairs")

    # ---- the story

    def run(self):
        """First version, then a second one by a rollout, with troubles; then rest. Raise Violation."""
        rnd = self.random
        how = rnd.choice(["good", "good", "bad", "bad", "crash", "stuck", "quiet", "vanish"])
        self.behaviour = {self.versions.get("m:2").digest: how}
        undecided = rnd.choice(["rollback", "rollback", "promote"])
        self.rollout = RolloutConfig(
            steps=rnd.choice([(10,), (5, 50), (5, 25, 50)]),
            dwell="2s",
            window="1s",
            time_limit="20s",
            undecided=undecided,
            **self._kind(),
        )
        if how == "vanish":
            kind = "canary" if self.rollout.kind == "shadow" else self.rollout.kind
            own = {"own": OwnMetric(python="a:b", code="sha256:c")}
            self.rollout = structs.replace(self.rollout, kind=kind, metrics=own)
        config = EndpointConfig(replicas=rnd.choice([1, 1, 2, 3]), backup=rnd.choice(["previous", "none"]))
        config = self._scaled(self._calibrated(config))
        self.note(f"version 2 is {how}, undecided={undecided}, {self.rollout.kind}, {config}")
        commands.deploy(self.registry, "m:1", name=ENDPOINT, endpoint=config)
        dt = rnd.choice([0.3, 0.5, 1.0])
        for _ in range(rnd.randrange(4, 9)):
            self.step(dt)
        stepwise = rnd.random() < 0.7
        expected = self.right_end(how, stepwise=stepwise)
        try:
            second = commands.deploy(self.registry, "m:2", name=ENDPOINT, rollout=self.rollout if stepwise else None)
        except Conflict:
            self.note("second deployment refused")
            expected = ""
        self.has_vanished = how == "vanish"
        steps = rnd.randrange(6, 26)
        pauses = self._pauses(steps)
        for number in range(steps):
            self._swing()
            if number in pauses:
                self._pause_or_resume(pauses[number])
            self.step(dt)
        self.at_once = {}
        self.settle()
        if expected and not any("operator" in line for line in self.trace):
            last = self.state().endpoints[ENDPOINT].last
            require(last and last.rollout == second.rollout, "another rollout came last")
            require(last.outcome == expected, f"{how} version ended {last.outcome}: {last.reason}")
        return how

    def _calibrated(self, config):
        """Let calibration find something out about the versions, and decide the numbers in some of the schedules."""
        rnd = random.Random(f"calibration {self.seed}")
        for version in ("m:1", "m:2", "m:3"):
            best = rnd.choice([(1, 1), (2, 1), (3, 1), (1, 2), (2, 2)])
            if rnd.random() < 0.8:
                advice = Advice(*best, alone=rnd.choice([1, 2, 4]), most=8)
                self.found[self.versions.get(version).digest] = (advice, rnd.choice([0.0, 0.5, 3.0]))
        if rnd.random() < 0.5:
            return EndpointConfig(backup=config.backup)
        return (
            config if rnd.random() < 0.5 else EndpointConfig(replicas=config.replicas, backup=config.backup, threads=1)
        )

    def _kind(self):
        """Let some of the schedules have other rollouts than by steps alone."""
        rnd = random.Random(f"kind {self.seed}")
        return rnd.choice([
            {}, {}, {},
            {"shadow": "2s"},
            {"shadow": "1s", "shadow_pairs": 5},
            {"kind": "shadow", "shadow": "2s"},
            {"kind": "shadow", "after_shadow": "promote"},
            {"kind": "blue-green", "keep": "12s"},
        ])  # fmt: skip

    def _pauses(self, steps):
        """Pause some of the schedules in mid-rollout, which does not change how they end, and abort a few others."""
        rnd = random.Random(f"pauses {self.seed}")
        first, second = rnd.randrange(steps), rnd.randrange(2 * steps)
        luck = rnd.random()
        if luck < 0.3:
            return {first: commands.pause, second: commands.resume}
        return {first: commands.abort} if luck < 0.38 else {}

    def _pause_or_resume(self, command):
        try:
            command(self.registry, ENDPOINT)
            self.note(f"operator: {command.__name__}" if command is commands.abort else command.__name__)
        except (Conflict, NotFound) as refused:
            self.note(f"{command.__name__} refused: {refused}")

    def _scaled(self, config):
        """Have the replicas follow a load in some of the schedules."""
        self.swings = random.Random(f"scaling {self.seed}")
        replicas = self.swings.choice(["0..2", "1..3", "1..4", "", "", "", "", ""])
        if not replicas:
            self.swings = None
            return config
        found = {"replicas": replicas, "backup": config.backup, "threads": config.threads}
        return EndpointConfig(**found, target_concurrency=1.0, idle="2s", scale_down="10s")

    def _swing(self):
        if self.swings is not None and self.swings.random() < 0.3:
            for endpoint in self.state().endpoints.values():
                if endpoint.stable:
                    at_once = self.swings.choice([0.0, 0.0, 0.5, 3.0, 40.0])
                    self.at_once = {endpoint.stable.digest: (at_once, 2 if at_once else 0, 0.1, 0.0)}

    def right_end(self, how, *, stepwise):
        """How the second rollout must end if no operator meddles, whatever is killed."""
        if how in ("crash", "stuck"):
            return d.ROLLED_BACK
        if not stepwise:
            return d.PROMOTED
        style, limit = self.rollout.style, d.ROLLED_BACK
        if style == "shadow":
            good = d.PROMOTED if self.rollout.after_shadow == "promote" else d.LEFT
            return {"good": good, "bad": d.ROLLED_BACK}.get(how, d.LEFT)
        if how == "good":
            return d.PROMOTED
        if how == "vanish":
            return limit
        if how == "quiet" and style == "blue-green":
            return d.PROMOTED
        if how == "quiet" and self.rollout.shadow_pairs:
            return limit
        undecided = {"rollback": d.ROLLED_BACK, "promote": d.PROMOTED}[self.rollout.undecided]
        return undecided if how == "quiet" else d.ROLLED_BACK

    def settle(self):
        self.is_calm = True
        for endpoint in list(self.state().endpoints.values()):
            rollout = endpoint.rollout
            if not rollout or not rollout.paused:
                continue
            is_seen = rollout.phase in (d.SHADOW, d.CANARY, d.SWITCHED)
            if is_seen and self.behaviour.get(rollout.to.digest) == "bad":
                for _ in range(40):
                    self.step(1.0)
                require(self.state().endpoints[endpoint.name].rollout is None, f"{rollout.id} is bad, but paused")
            elif self.state().endpoints[endpoint.name].rollout:
                commands.resume(self.registry, endpoint.name)
        for dt, count in ((0.5, 4), (2.0, 14), (15.0, 24), (1.0, 6)):
            for _ in range(count):
                self.step(dt)
                if dt > 1.0 and self._is_at_rest():
                    break
        self.check_log()
        self.check_rest()

    def _is_at_rest(self):
        return all(endpoint.rollout is None for endpoint in self.state().endpoints.values())

    def check_rest(self):
        state = self.state()
        for endpoint in state.endpoints.values():
            require(endpoint.rollout is None, f"{endpoint.rollout} never ends")
        counts = self.controllers[-1].reconciler._scalers.counts
        wanted = wanted_replicas(state.endpoints.values(), self.stored.get, counts)
        living = [info.name for info in self.launcher.list("replica") if info.alive]
        for digest, want in wanted.items():
            if self.behaviour.get(digest, "good") not in ("crash", "stuck"):
                ready = self.gateway.ready(digest)
                # Where it is not known yet how many do best, what was there before stays.
                is_right = ready >= want.replicas if want.is_open else ready == want.replicas
                require(is_right, f"{want} but {living} run")
                threads = {r.threads for r in self.gateway.replicas.values() if r.version == digest}
                require(threads <= {want.threads}, f"{want} but some have {threads} threads")
        keys = {version_key(digest) for digest in wanted}
        require({key_of(name) for name in living} <= keys, f"{living} run, wanted are {wanted}")
        gateway = self.launcher.get("gateway")
        runs = gateway is not None and gateway.alive
        require(runs == state.is_running, f"gateway runs: {runs}, wanted: {state.is_running}")
        active = {e.name: e for e in state.endpoints.values() if e.is_active and e.stable}
        if state.is_running:
            require(self.gateway.rules == state.access.rules(), f"rules {self.gateway.rules} are in force")
            routes = self.gateway.routes
            require(set(routes) == set(active), f"routes {set(routes)}, endpoints {set(active)}")
            for name, endpoint in active.items():
                require(routes[name].stable == endpoint.stable.digest, "the route is not to the current version")
                require(not routes[name].rollout, "a share without a rollout")
