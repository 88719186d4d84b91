"""The fold from entries to desired state."""

from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st

from argosy.operate import desired as d
from argosy.operate.desired import Desired


def entry(seq, kind, subject, data):
    return SimpleNamespace(seq=seq, time=float(seq), actor="ada", kind=kind, subject=subject, data=data)


def deploy(number, *, rollout=None, endpoint=None):
    version = {"digest": f"sha256:{number}", "ref": f"m:{number}"}
    return {"action": "deploy", "version": version, "endpoint": endpoint or {}, "rollout": rollout}


def folded(*entries):
    state = Desired()
    for seq, (kind, subject, data) in enumerate(entries, start=1):
        state.apply(entry(seq, kind, subject, data))
    return state


FIRST = (d.ENDPOINT, "m", deploy(1))
LIVE = (d.ENDED, "m", {"rollout": "r1", "outcome": d.PROMOTED})
SECOND = (d.ENDPOINT, "m", deploy(2, rollout={"steps": [10, 50]}))


def test_the_first_version_is_current_only_once_it_was_promoted():
    assert folded(FIRST).endpoints["m"].stable is None
    endpoint = folded(FIRST, LIVE).endpoints["m"]
    assert (endpoint.stable.ref, endpoint.backup, endpoint.rollout) == ("m:1", None, None)


def test_a_second_version_goes_by_its_steps():
    started = (d.STEPPED, "m", {"rollout": "r3", "phase": d.CANARY, "step": 1, "reason": "x"})
    rollout = folded(FIRST, LIVE, SECOND, started).endpoints["m"].rollout
    assert (rollout.kind, rollout.base.ref, rollout.to.ref) == (d.STEPWISE, "m:1", "m:2")
    assert (rollout.share, rollout.first_step, rollout.since) == (0.5, 4.0, 4.0)


def test_promotion_keeps_the_former_version_as_backup():
    endpoint = folded(FIRST, LIVE, SECOND, (d.ENDED, "m", {"rollout": "r3", "outcome": d.PROMOTED})).endpoints["m"]
    assert (endpoint.stable.ref, endpoint.backup.ref) == ("m:2", "m:1")


def test_a_rolled_back_rollout_changes_nothing_but_is_remembered():
    ended = (d.ENDED, "m", {"rollout": "r3", "outcome": d.ROLLED_BACK, "reason": "errors", "verdict": {"total": 120}})
    endpoint = folded(FIRST, LIVE, SECOND, ended).endpoints["m"]
    assert (endpoint.stable.ref, endpoint.backup, endpoint.last.reason) == ("m:1", None, "errors")
    assert endpoint.last.verdict == {"total": 120}


def test_entries_about_a_rollout_that_is_over_change_nothing():
    late = (d.ENDED, "m", {"rollout": "r3", "outcome": d.PROMOTED})
    ended = (d.ENDED, "m", {"rollout": "r3", "outcome": d.ROLLED_BACK})
    assert folded(FIRST, LIVE, SECOND, ended, late).endpoints["m"].stable.ref == "m:1"


def test_a_second_deployment_during_a_rollout_is_ignored():
    assert folded(FIRST, LIVE, SECOND, (d.ENDPOINT, "m", deploy(3))).endpoints["m"].rollout.to.ref == "m:2"


def test_windows_add_up_in_order():
    observed = [(d.OBSERVED, "m", {"rollout": "r3", "windows": [{"index": i}], "verdict": {"n": i}}) for i in range(3)]
    rollout = folded(FIRST, LIVE, SECOND, *observed).endpoints["m"].rollout
    assert ([w["index"] for w in rollout.windows], rollout.verdict) == ([0, 1, 2], {"n": 2})


def test_two_rollouts_do_not_share_their_windows():
    state = folded(FIRST, (d.ENDPOINT, "n", deploy(1)))
    state.apply(entry(9, d.OBSERVED, "m", {"rollout": "r1", "windows": [{"index": 1}]}))
    assert state.endpoints["n"].rollout.windows == []


def test_the_port_the_gateway_got_is_kept_until_another_is_asked_for():
    bound = (d.BOUND, "gateway", {"port": 40001})
    assert folded((d.GATEWAY, "gateway", {"port": 0}), bound).bound_port == 40001
    assert folded((d.GATEWAY, "gateway", {"port": 0}), bound, (d.GATEWAY, "gateway", {"port": 0})).bound_port == 40001
    assert folded((d.GATEWAY, "gateway", {"port": 0}), bound, (d.GATEWAY, "gateway", {"port": 8000})).bound_port == 0


def test_the_grpc_port_the_gateway_got_is_kept_until_another_is_asked_for():
    bound = (d.BOUND, "gateway", {"port": 8700, "grpc_port": 8701})
    asked = (d.GATEWAY, "gateway", {"port": 8700, "grpc_port": 0})
    assert folded(asked, bound).bound_grpc_port == 8701
    assert folded(asked, bound, (d.GATEWAY, "gateway", {"port": 8000})).bound_grpc_port == 8701
    moved = folded(asked, bound, (d.GATEWAY, "gateway", {"grpc_port": 9000}))
    assert (moved.bound_grpc_port, moved.grpc_port, moved.bound_port) == (0, 9000, 8700)
    without = folded(asked, bound, (d.GATEWAY, "gateway", {"grpc_port": -1}))
    assert (without.bound_grpc_port, without.grpc_port) == (0, -1)


ANY = st.one_of(
    st.builds(
        lambda n, r: (d.ENDPOINT, "m", deploy(n, rollout=r)),
        st.integers(1, 4),
        st.sampled_from(
            [None, {}, {"steps": [1]}, {"kind": "shadow"}, {"kind": "blue-green"}, {"kind": "all-at-once"}]
        ),
    ),
    st.builds(
        lambda action, r: (d.ENDPOINT, "m", {"action": action, "rollout": r}),
        st.sampled_from(["rollback", "promote", "remove", "nonsense", "pause", "resume", "abort"]),
        st.sampled_from(["", "r1", "r2", "r3", "r4"]),
    ),
    st.builds(
        lambda kind, r, p: (kind, "m", {"rollout": r, "phase": p, "step": 0, "outcome": p, "windows": []}),
        st.sampled_from([d.STARTED, d.STEPPED, d.OBSERVED, d.ENDED]),
        st.sampled_from(["r1", "r2", "r3", "r4", "r5"]),
        st.sampled_from(
            [d.WARMING, d.SHADOW, d.CANARY, d.SWITCHED, d.LEAVING, d.PROMOTING, d.PROMOTED, d.ROLLED_BACK, d.LEFT]
        ),
    ),
    st.sampled_from(
        [(d.GATEWAY, "gateway", {"running": False}), (d.ELECTED, "controller", {}), ("run.started", "m", {})]
    ),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(ANY, max_size=12))
def test_the_fold_takes_any_entries_and_never_holds_two_rollouts_or_an_unended_stop(entries):
    state = folded(*entries)
    for endpoint in state.endpoints.values():
        assert endpoint.is_active or endpoint.rollout is None
        if endpoint.rollout:
            assert 0 <= endpoint.rollout.share < 1
            assert endpoint.rollout.paused >= 0
            assert endpoint.rollout.base == endpoint.stable
