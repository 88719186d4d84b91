"""What [endpoint] and [rollout] may say."""

import pytest

from argosy.core.errors import InvalidInput
from argosy.operate.config import EndpointConfig, endpoint_config, rollout_config, to_plain
from argosy.operate.desired import Endpoint, Target
from argosy.operate.layout import route_of


def test_the_example_of_the_design_is_read():
    endpoint = endpoint_config({"replicas": "1..4", "backup": "previous"}, where="argosy.toml")
    rollout = rollout_config(
        {"steps": [5, 25, 50], "false_alarm": 0.01, "judge": ["errors", "latency", "agreement"]}, where="argosy.toml"
    )
    assert endpoint.replica_range() == (1, 4)
    assert rollout.shares == (0.05, 0.25, 0.5)
    assert (rollout.dwell_s, rollout.window_s, rollout.time_limit_s) == (60, 10, 1800)


@pytest.mark.parametrize(("replicas", "found"), [(2, (2, 2)), ("3", (3, 3)), ("2..5", (2, 5)), ("0..4", (0, 4))])
def test_replicas_are_a_number_or_a_range(replicas, found):
    assert EndpointConfig(replicas=replicas).replica_range() == found


@pytest.mark.parametrize("replicas", [0, -1, 65, "4..1", "0", "0..0", "0..65", "-1..2", "many", "1..", "1...3", ""])
def test_impossible_replicas_are_refused_with_an_example(replicas):
    with pytest.raises(InvalidInput, match=r"endpoint\.replicas"):
        endpoint_config({"replicas": replicas}, where="argosy.toml")


def test_a_hedge_reaches_the_route():
    config = endpoint_config({"hedge": "80ms"}, where="argosy.toml")
    endpoint = Endpoint(name="m", config=config, stable=Target("sha256:1", "m:1"))
    assert route_of(endpoint, lambda digest: 1).hedge_s == pytest.approx(0.08)
    plain = Endpoint(name="m", config=EndpointConfig(), stable=Target("sha256:1", "m:1"))
    assert route_of(plain, lambda digest: 1).hedge_s == 0.0


@pytest.mark.parametrize("hedge", ["0s", "11min", "soon"])
def test_an_impossible_hedge_is_refused(hedge):
    with pytest.raises(InvalidInput):
        endpoint_config({"hedge": hedge}, where="argosy.toml")


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({"steps": [5, 100, 100]}, "below 100"),
        ({"steps": [100, 50]}, "below 100"),
        ({"kind": "purple"}, "'canary', 'shadow', 'blue-green', 'all-at-once'"),
        ({"kind": "shadow", "mirror": 0}, "rollout.mirror is 0"),
        ({"shadow": "1min", "mirror": 0}, "rollout.mirror is 0"),
        ({"shadow": "8d"}, "rollout.shadow"),
        ({"shadow_pairs": -1}, "rollout.shadow_pairs is -1"),
        ({"kind": "shadow", "shadow": "40min"}, "a shadow of '40min' needs more than 2400s"),
        ({"kind": "shadow", "judge": ["latency"]}, "nothing would be judged"),
        ({"after_shadow": "hope"}, "'leave' or 'promote'"),
        ({"kind": "blue-green", "held_back": 0}, "rollout.held_back is 0"),
        ({"kind": "blue-green", "keep": "0s"}, "rollout.keep"),
        ({"kind": "blue-green", "keep": "30min"}, "need"),
        ({"kind": "blue-green", "keep": "1min"}, "at least 12 windows of '10s'"),
        ({"kind": "blue-green", "mirror": 0}, "rollout.mirror is 0"),
        ({"metrics": {"m": {}}}, "either promql or python"),
        ({"metrics": {"m": {"python": "a:b", "promql": "x"}}}, "either promql or python"),
        ({"metrics": {"errors": {"python": "a:b"}}}, "a metric's name"),
        ({"metrics": {"m": {"promql": "up"}}}, "does not say $version"),
        ({"metrics": {"m": {"promql": "up{v='$version'}", "prometheus": "file:///etc/passwd"}}}, "http"),
        ({"metrics": {"m": {"python": "a.b"}}}, "module:function"),
        ({"metrics": {"m": {"python": "a:b", "low": 1}}}, "two finite numbers"),
        ({"metrics": {"m": {"python": "a:b", "tolerate": 0.5}}}, "tolerate"),
        ({"kind": "shadow", "metrics": {"m": {"python": "a:b"}}}, "needs answers that reach callers"),
        ({"steps": [0]}, "above 0"),
        ({"steps": [50, 25]}, "greater than the one before"),
        ({"steps": list(range(1, 60))}, "at most 50"),
        ({"steps": ["5"]}, "Expected `float`"),
        ({"judge": ["speed"]}, "what can be judged is: errors, latency, agreement"),
        ({"judge": ["errors", "errors"]}, "twice"),
        ({"judge": ["agreement"], "mirror": 0}, "nothing would be judged"),
        ({"judge": []}, "nothing would be judged"),
        ({"false_alarm": 0}, "rollout.false_alarm is 0"),
        ({"false_alarm": 0.9}, "between 1e-06 and 0.5"),
        ({"tolerate": {"latency": 0.5}}, "rollout.tolerate.latency"),
        ({"tolerate": {"speed": 2}}, "known fields are: agreement, errors, latency"),
        ({"dwell": "0s"}, "rollout.dwell"),
        ({"dwell": "soon"}, "not a time"),
        ({"window": "1ms"}, "rollout.window"),
        ({"time_limit": "2min"}, "need more than 180s"),
        ({"time_limit": "60d"}, "time_limit"),
        ({"undecided": "hope"}, "'rollback', 'promote' or 'ask'"),
        ({"mirror": 101}, "rollout.mirror"),
        ({"dwel": "5s"}, "known fields are: after_shadow, dwell"),
    ],
)
def test_a_wrong_rollout_says_what_is_wrong(found, says):
    with pytest.raises(InvalidInput) as caught:
        rollout_config(found, where="argosy.toml")
    assert says in caught.value.message


@pytest.mark.parametrize("found", [{"backup": "two"}, {"threads": 0}, {"replica": 2}])
def test_a_wrong_endpoint_is_refused(found):
    with pytest.raises(InvalidInput, match=r"argosy\.toml|endpoint"):
        endpoint_config(found, where="argosy.toml")


def test_no_steps_mean_a_direct_switch_and_need_no_time():
    assert rollout_config({"steps": [], "time_limit": "1s"}, where="x").shares == ()


def test_a_last_step_of_100_is_the_promotion():
    assert rollout_config({"steps": [5, 50, 100]}, where="x") == rollout_config({"steps": [5, 50]}, where="x")
    assert rollout_config({"steps": [100]}, where="x").style == "switch"


def test_a_kind_decides_the_shares_and_what_can_be_judged():
    assert rollout_config({"kind": "all-at-once"}, where="x").shares == ()
    assert rollout_config({"kind": "blue-green", "held_back": 2.5}, where="x").shares == (0.975,)
    shadow = rollout_config({"kind": "shadow"}, where="x")
    assert (shadow.shares, shadow.judged) == ((), ("agreement", "mirrored_errors", "constant"))
    own = rollout_config({"metrics": {"sales": {"python": "shop:sales", "low": 10, "high": 0}}}, where="x")
    assert own.judged[-1] == "sales"
    assert own.metrics["sales"].badness(10) == 0
    assert own.metrics["sales"].badness(-3) == 1


def test_agreement_is_not_judged_where_nothing_is_mirrored():
    assert rollout_config({"mirror": 0}, where="x").judged == ("errors", "latency")


def test_a_config_survives_the_log():
    config = rollout_config({"steps": [1, 2.5], "tolerate": {"latency": 2}}, where="x")
    plain = to_plain(config)
    assert plain == {"steps": [1.0, 2.5], "tolerate": {"latency": 2.0}}
    assert rollout_config(plain, where="x") == config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("priority", 101),
        ("priority", -101),
        ("target_concurrency", 0),
        ("target_concurrency", -1.5),
        ("target_concurrency", 1e6),
        ("target_concurrency", "much"),
        ("idle", "0s"),
        ("idle", "8d"),
        ("idle", "soon"),
        ("scale_down", "1s"),
    ],
)
def test_impossible_settings_of_scaling_are_refused_with_what_is_possible(field, value):
    with pytest.raises(InvalidInput, match=rf"endpoint\.{field} is .*|'soon'"):
        endpoint_config({"replicas": "0..4", field: value}, where="argosy.toml")


def test_only_a_range_follows_the_load_and_only_one_from_0_sleeps():
    scaled = [EndpointConfig(replicas=replicas).is_scaled for replicas in ("auto", 2, "2..2", "1..4", "0..1")]
    assert scaled == [False, False, False, True, True]
    asleep = [EndpointConfig(replicas=replicas).is_on_demand for replicas in ("auto", 2, "1..4", "0..1")]
    assert asleep == [False, False, False, True]
    assert endpoint_config({"replicas": "0..4", "idle": "90s"}, where="argosy.toml").idle_s == 90.0
