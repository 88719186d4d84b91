"""The controller is killed, raced, misled and starved by thousands of schedules, and always comes to the right end.

A schedule is one seed: `World(seed).run()` repeats it exactly. Planted bugs show that the invariants can fail.
"""

import itertools

import pytest
from msgspec import structs

from argosy.core.errors import Conflict
from argosy.operate import controller, layout, replicas, rollout
from argosy.operate import desired as d
from argosy.operate.controller import Deposed, Reconciler
from argosy.operate.evidence import Evidence
from argosy.operate.gateway_process import GatewayProcess
from argosy.operate.replicas import Replicas
from controller_world import World


def run(seeds):
    for seed in seeds:
        world = World(seed)
        try:
            world.run()
        except BaseException as error:
            trace = "\n".join(world.trace)
            raise AssertionError(f"seed {seed}: {error!r}; repeat it with World({seed}).run()\n{trace}") from error


@pytest.mark.capability("R7")
@pytest.mark.parametrize("part", range(4))
def test_two_thousand_crash_schedules_break_no_invariant(part):
    run(range(part * 500, part * 500 + 500))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(10))
def test_a_hundred_thousand_crash_schedules_break_no_invariant(part):
    run(range(1_000_000 + part * 10_000, 1_000_000 + (part + 1) * 10_000))


def test_a_schedule_is_repeated_exactly_from_its_seed():
    first, second = World(7), World(7)
    first.run()
    second.run()
    assert first.trace == second.trace
    assert [(e.time, e.kind, e.data) for e in first.entries] == [(e.time, e.kind, e.data) for e in second.entries]
    assert first.launcher.started == second.launcher.started


def test_troubles_of_every_kind_do_happen_in_the_schedules():
    seen = set()
    for seed in range(150):
        world = World(seed)
        world.run()
        seen |= {line.split()[2] for line in world.trace if " at " in line}
    assert seen == {"kill", "replica", "gateway", "store", "answer", "operator", "rival"}


@pytest.mark.parametrize("seed", range(12))
def test_a_clock_that_jumps_two_days_ends_no_rollout(seed, monkeypatch):
    """Neither the time limit nor a step's time is over because the wall clock says so."""

    def step(self, dt):
        self.stepped = self.__dict__.get("stepped", 0) + 1
        if self.stepped == 8 + seed:
            self.clock._now += 2 * 86400
        original(self, dt)

    original = World.step
    monkeypatch.setattr(World, "step", step)
    World(seed, troubles=False).run()


# ---- planted bugs: each breaks one thing, and the schedules must notice


def without_rows(when):
    kept = tuple(row for row in rollout.TABLE if not row.when.startswith(when))
    assert len(kept) < len(rollout.TABLE)
    return kept


def stops_before_routing(monkeypatch):
    original = Reconciler._lay_out

    def lay_out(self):
        self._replicas.stop_extras(layout.wanted_replicas(self.desired.endpoints.values()), set(), None)
        return original(self)

    monkeypatch.setattr(Reconciler, "_lay_out", lay_out)


def runs_in_shadow_without_copies(monkeypatch):
    monkeypatch.setattr(d.Rollout, "is_mirrored", property(lambda rollout: rollout.share > 0))


def sends_requests_to_a_version_in_shadow(monkeypatch):
    def share(rollout):
        return 0.05 if rollout.phase == d.SHADOW else original(rollout)

    original = d.Rollout.share.fget
    monkeypatch.setattr(d.Rollout, "share", property(share))


def leaves_the_shadow_without_its_pairs(monkeypatch):
    monkeypatch.setattr(rollout, "_is_shadowed", lambda state, facts: facts.phase_s >= state.config.shadow_s)


def promotes_what_was_to_be_judged_only(monkeypatch):
    rows = [row._replace(to=d.PROMOTING) if row.to == d.LEAVING else row for row in rollout.TABLE]
    monkeypatch.setattr(rollout, "TABLE", tuple(rows))


def forgets_to_leave(monkeypatch):
    monkeypatch.setattr(rollout, "TABLE", tuple(row for row in rollout.TABLE if row.phase != d.LEAVING))


def never_ends_watching(monkeypatch):
    monkeypatch.setattr(rollout, "TABLE", without_rows("kept long enough"))


def moves_on_while_paused(monkeypatch):
    every = (d.WARMING, d.SHADOW, d.CANARY, d.SWITCHED, d.PROMOTING, d.PROMOTED, d.LEAVING, d.LEFT)
    monkeypatch.setattr(rollout, "WHILE_PAUSED", (*rollout.WHILE_PAUSED, *every))


def cannot_go_back_while_paused(monkeypatch):
    monkeypatch.setattr(rollout, "WHILE_PAUSED", ())


def never_goes_on_after_a_pause(monkeypatch):
    monkeypatch.setattr(d.Rollout, "go_on", lambda rollout, now: None)


def promotes_without_a_metric(monkeypatch):
    monkeypatch.setattr(rollout, "TABLE", tuple(
        row._replace(holds=lambda state, facts, holds=row.holds: holds(state, structs.replace(facts, held="")))
        for row in rollout.TABLE
    ))  # fmt: skip


def overlooks_an_abort(monkeypatch):
    def endpoint(self, entry):
        if entry.data.get("action") != "abort":
            original(self, entry)

    original = d.Desired._endpoint
    monkeypatch.setattr(d.Desired, "_endpoint", endpoint)


def writes_without_fencing(monkeypatch):
    def append(self, kind, subject, data):
        self._log.append(kind, subject, data)
        self.desired.catch_up(self._log)

    monkeypatch.setattr(Reconciler, "_append", append)


def acts_when_deposed(monkeypatch):
    def read_log(self):
        try:
            return original(self)
        except Deposed:
            return True

    original = Reconciler._read_log
    monkeypatch.setattr(Reconciler, "_read_log", read_log)


def overlooks_wishes_that_came_first(monkeypatch):
    def append(self, kind, subject, data):
        def check(log):
            if any(entry.kind == d.ELECTED for entry in log.entries(after=self.desired.head)):
                raise Deposed("deposed")

        self._log.append(kind, subject, data, check=check)
        self.desired.catch_up(self._log)

    monkeypatch.setattr(Reconciler, "_append", append)


def routes_before_ready(monkeypatch):
    monkeypatch.setattr(controller, "needed_replicas", lambda rollout, full: 0)


def forgets_the_gate(monkeypatch):
    monkeypatch.setattr(rollout, "TABLE", without_rows("the version missed a gate"))


def knows_no_time_limit(monkeypatch):
    monkeypatch.setattr(rollout, "TABLE", without_rows("time limit"))


def waits_for_ever_for_replicas(monkeypatch):
    monkeypatch.setattr(rollout, "TABLE", without_rows("not ready in time"))


def forgets_written_evidence(monkeypatch):
    original = Evidence.__init__

    def init(self, rollout, judge, now):
        windows, rollout.windows = rollout.windows, []
        original(self, rollout, judge, now)
        rollout.windows = windows

    monkeypatch.setattr(Evidence, "__init__", init)


def counts_windows_twice(monkeypatch):
    def take(self, windows, complete=None):
        fresh = list(windows)
        for window in fresh:
            self._take(window)
        self.unwritten.extend(fresh)
        if fresh:
            self.verdict = self._judge.verdict()

    monkeypatch.setattr(Evidence, "take", take)


def acknowledges_before_writing(monkeypatch):
    original = Evidence.take

    def take(self, windows, complete=None):
        original(self, windows)
        self.written_index = self._last_index

    monkeypatch.setattr(Evidence, "take", take)


def takes_percent_for_shares(monkeypatch):
    def replace(route, **given):
        return original(route, **{**given, "share": given["share"] * 100})

    original = layout.msgspec.structs.replace
    monkeypatch.setattr(
        layout, "msgspec", type("M", (), {"structs": type("S", (), {"replace": staticmethod(replace)})})
    )


def never_replaces_the_dead(monkeypatch):
    original = Replicas.start_missing

    def start_missing(self, wanted):
        known = self.__dict__.setdefault("known_", set())
        original(self, {digest: want for digest, want in wanted.items() if digest not in known})
        known |= set(wanted)

    monkeypatch.setattr(Replicas, "start_missing", start_missing)


def never_restarts_the_gateway(monkeypatch):
    original = GatewayProcess.ensure

    def ensure(self, desired):
        if not self._starts and not self.__dict__.get("once_"):
            self.once_ = True
            original(self, desired)

    monkeypatch.setattr(GatewayProcess, "ensure", ensure)


def trusts_routes_of_a_dead_gateway(monkeypatch):
    def set_routes(self, routes):
        if self._possible == list(routes):
            return True
        return original(self, routes)

    original = GatewayProcess.set_routes
    monkeypatch.setattr(GatewayProcess, "set_routes", set_routes)


def restarts_without_end(monkeypatch):
    monkeypatch.setattr(replicas, "FAILED_STARTS", 10**9)
    monkeypatch.setattr(rollout, "TABLE", without_rows("not ready in time"))


def gives_up_at_a_conflict(monkeypatch):
    def follow(self, name, windows):
        try:
            return original(self, name, windows)
        except Conflict:
            raise Deposed("gave up") from None

    def decide(self, endpoint, rollout):
        decision = decided(self, endpoint, rollout)
        if decision.phase == d.ROLLED_BACK:
            raise Conflict("never")
        return decision

    original, decided = Reconciler._follow, Reconciler._decide
    monkeypatch.setattr(Reconciler, "_follow", follow)
    monkeypatch.setattr(Reconciler, "_decide", decide)


def keeps_replicas_of_what_was_rolled_back(monkeypatch):
    original = Replicas.stop_extras

    def stop_extras(self, wanted, routed, drain):
        self.kept_ = self.__dict__.get("kept_", set()) | routed
        return original(self, wanted, self.kept_, drain)

    monkeypatch.setattr(Replicas, "stop_extras", stop_extras)


def starts_an_open_gateway(monkeypatch):
    def ensure(self, desired):
        make = self._make_config
        self._make_config = lambda wanted: make(wanted) | {"is_guarded": False}
        original(self, desired)
        self._make_config = make

    original = GatewayProcess.ensure
    monkeypatch.setattr(GatewayProcess, "ensure", ensure)


def forgets_to_revoke(monkeypatch):
    def set_access(self, rules):
        return bool(self.status and self.status.access and rules.is_on) or original(self, rules)

    original = GatewayProcess.set_access
    monkeypatch.setattr(GatewayProcess, "set_access", set_access)


def keeps_replicas_with_other_threads(monkeypatch):
    monkeypatch.setattr(Replicas, "_is_outdated", lambda self, name, status: False)


def stops_replicas_with_other_threads_before_others_are_ready(monkeypatch):
    def seen(self, info, status):
        found = original(self, info, status)
        if found.state == "outdated":
            self._launcher.stop(info.name, 0.0)
        return found

    original = Replicas._seen
    monkeypatch.setattr(Replicas, "_seen", seen)


def does_not_listen_to_calibration(monkeypatch):
    monkeypatch.setattr(Reconciler, "_advised", lambda self, digest: None)


PLANTED = [
    runs_in_shadow_without_copies,
    sends_requests_to_a_version_in_shadow,
    leaves_the_shadow_without_its_pairs,
    promotes_what_was_to_be_judged_only,
    forgets_to_leave,
    never_ends_watching,
    moves_on_while_paused,
    cannot_go_back_while_paused,
    never_goes_on_after_a_pause,
    promotes_without_a_metric,
    overlooks_an_abort,
    stops_before_routing,
    writes_without_fencing,
    acts_when_deposed,
    overlooks_wishes_that_came_first,
    routes_before_ready,
    forgets_the_gate,
    knows_no_time_limit,
    waits_for_ever_for_replicas,
    forgets_written_evidence,
    counts_windows_twice,
    acknowledges_before_writing,
    takes_percent_for_shares,
    never_replaces_the_dead,
    never_restarts_the_gateway,
    trusts_routes_of_a_dead_gateway,
    restarts_without_end,
    gives_up_at_a_conflict,
    keeps_replicas_of_what_was_rolled_back,
    starts_an_open_gateway,
    forgets_to_revoke,
    keeps_replicas_with_other_threads,
    stops_replicas_with_other_threads_before_others_are_ready,
    does_not_listen_to_calibration,
]


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_found(plant, monkeypatch):
    plant(monkeypatch)
    for seed in itertools.islice(itertools.count(), 1500):
        world = World(seed)
        try:
            world.run()
        except AssertionError:
            return
    raise AssertionError(f"{plant.__name__} was not noticed")
