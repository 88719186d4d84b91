"""A rollout judged by a query that a real Prometheus answers; one that stops answering holds it."""

import os
import signal

import pytest

from argosy.operate import commands
from argosy.operate import desired as d
from argosy.operate.config import EndpointConfig, OwnMetric, RolloutConfig
from controlled import Traffic
from monitored import Monitored, add_tools_to_path
from served import constant, logarithm, until

pytestmark = pytest.mark.capability("R2")

OF = '{endpoint="$endpoint",version="$version"}[$window]'
BAD = f"(sum(rate(argosy_first_failures_total{OF})) or vector(0))"
GOOD = f"(sum(rate(argosy_requests_total{OF})) or vector(0))"
FAILED = f"{BAD} / ({BAD} + {GOOD})"
"""Of the requests that were given to a version at first; not a number while there are none."""


@pytest.fixture
def home(monkeypatch):
    add_tools_to_path(monkeypatch)
    made = Monitored()
    yield made
    made.close()


def rollout_by(home, promql, **given):
    own = OwnMetric(promql=promql, prometheus=f"http://127.0.0.1:{home.chosen.ports.prometheus}", every="5s")
    known = {"dwell": "2s", "window": "1s", "judge": ("latency",), "mirror": 0, "steps": (50,)} | given
    return RolloutConfig(metrics={"own": own}, **known)


def deployed(home):
    first = commands.deploy(home.registry, str(home.publish(constant(1.0))), endpoint=EndpointConfig(threads=1))
    home.start()
    home.ended(first.rollout)
    home.serving("m:1")
    home.monitor()
    until(lambda: home.query("up{job='argosy-gateway'}") and home.query("up{job='argosy-gateway'}")[0][1] == 1)


@pytest.mark.slow
def test_a_canary_is_rolled_back_by_a_query_of_the_users_own(home):
    deployed(home)
    with Traffic(home) as traffic:
        until(lambda: home.query("rate(argosy_requests_total[5s]) > 0"))
        rollout = commands.deploy(
            home.registry, str(home.publish(logarithm())), rollout=rollout_by(home, FAILED, time_limit="5min")
        ).rollout
        last = home.ended(rollout, 120)
        home.serving("m:1")
    assert (last.outcome, "own" in last.reason) == (d.ROLLED_BACK, True), last.reason
    assert traffic.failed == []


@pytest.mark.slow
def test_a_prometheus_that_freezes_holds_the_rollout_and_one_that_is_back_lets_it_end(home):
    deployed(home)
    with Traffic(home) as traffic:
        until(lambda: home.query("rate(argosy_requests_total[5s]) > 0"))
        config = rollout_by(home, FAILED, time_limit="45s", undecided="promote", dwell="40s")
        rollout = commands.deploy(home.registry, str(home.publish(constant(1.0 + 1e-6))), rollout=config).rollout
        until(lambda: (found := home.endpoint().rollout) and found.phase == d.CANARY and not found.held, 60)
        prometheus = home.launcher.get("prometheus").pid
        os.kill(prometheus, signal.SIGSTOP)
        try:
            until(lambda: "does not answer" in home.endpoint().rollout.held, 40)
        finally:
            os.kill(prometheus, signal.SIGCONT)
        until(lambda: not home.endpoint().rollout or not home.endpoint().rollout.held, 40)
        last = home.ended(rollout, 90)
    assert last.outcome == d.PROMOTED, last.reason
    assert traffic.failed == []


@pytest.mark.slow
def test_a_prometheus_that_never_answered_promotes_nothing(home):
    deployed(home)
    os.kill(home.launcher.get("prometheus").pid, signal.SIGSTOP)
    with Traffic(home) as traffic:
        config = rollout_by(home, FAILED, time_limit="15s", undecided="promote")
        rollout = commands.deploy(home.registry, str(home.publish(constant(1.0 + 1e-6))), rollout=config).rollout
        last = home.ended(rollout, 90)
    os.kill(home.launcher.get("prometheus").pid, signal.SIGCONT)
    assert last.outcome == d.ROLLED_BACK
    assert "own" in last.reason
    assert traffic.failed == []
