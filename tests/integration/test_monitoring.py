"""Real Prometheus scrapes, a real rule fires, real Alertmanager calls back, and the controller rolls back."""

import contextlib
import http.client
import json
import urllib.error
import urllib.request

import pytest

from argosy.core.clock import SystemClock
from argosy.monitoring import home as monitoring
from argosy.monitoring.alerts import RECEIVED
from argosy.operate import access, commands
from argosy.operate import desired as d
from argosy.operate.config import EndpointConfig, RolloutConfig
from argosy.operate.loopback import monitoring_token
from controlled import Traffic
from monitored import Monitored, add_tools_to_path
from served import constant, logarithm, until

# Errors are not judged, so that nothing but the alert can end it.
BLIND = RolloutConfig(steps=(30,), dwell="5min", window="0.5s", time_limit="20min", judge=("latency",), mirror=0)
FAILS = "sum by (endpoint) (rate(argosy_first_failures_total[10s])) > 0 and on (endpoint) argosy_rollout_share > 0"


@pytest.fixture
def home(monkeypatch):
    add_tools_to_path(monkeypatch)
    made = Monitored()
    yield made
    made.close()


def deploy(home, version, **given):
    accepted = commands.deploy(home.registry, str(version), **given)
    home.start()
    return accepted


def entries(home, kind):
    home.registry.log.refresh()
    return list(home.registry.log.entries(kind=kind))


@pytest.mark.capability("M1")
def test_a_failing_canary_is_rolled_back_by_an_alert_of_alertmanagers_and_callers_notice_nothing(home):
    home.ended(deploy(home, home.publish(constant(1.0)), endpoint=EndpointConfig(latency_p99="10s")).rollout)
    home.serving("m:1")
    home.rule("CanaryFails", FAILS, argosy_action="rollback", severity="critical")
    started = home.monitor()
    assert (started.is_changed, started.missing) == (True, ())
    with Traffic(home) as traffic:
        until(lambda: {t.job: t.health for t in home.view().targets} == dict.fromkeys(
            ("argosy-gateway", "argosy-controller", "argosy-monitor"), "up"))  # fmt: skip
        rollout = deploy(home, home.publish(logarithm()), rollout=BLIND).rollout
        last = home.ended(rollout, 60)
        home.serving("m:1")
        until(lambda: home.query("argosy_rollouts_total{outcome='rolled_back'}")[0][1] == 1)
        until(lambda: home.query("argosy_alerts_received_total{outcome='rolled_back'}")[0][1] == 1)
    assert traffic.failed == []
    assert (last.outcome, last.reason) == (d.ROLLED_BACK, "alert CanaryFails")
    (asked,) = [entry for entry in entries(home, d.ENDPOINT) if entry.data["action"] == "rollback"]
    assert (asked.actor, asked.subject, asked.data["rollout"]) == ("alertmanager", "m", rollout)
    assert until(lambda: [a for a in home.view().alerts if a.name == "ArgosyRolloutRolledBack"])
    # It goes on being sent while it fires; whatever it brings is in the log, and no second action is.
    noted = [entry.data["outcome"] for entry in entries(home, RECEIVED) if entry.data["name"] == "CanaryFails"]
    assert set(noted) <= {"no_rollout", "resolved"}
    home.registry.log.verify()


@pytest.mark.slow
def test_tools_that_die_come_back_and_follow_keys_and_tls_of_the_gateway(home):
    home.ended(deploy(home, home.publish(constant(1.0))).rollout)
    home.serving("m:1")
    home.monitor()
    assert home.monitor().is_changed is False, "asked again it does nothing"
    until(lambda: home.query("up{job='argosy-gateway'}")[0][1] == 1)
    killed = {name: home.kill_process(name) for name in ("prometheus", "alertmanager", "controller")}
    until(lambda: not home.is_controlled())
    home.start()
    until(lambda: all(home.launcher.get(n).alive and home.launcher.get(n).pid != pid for n, pid in killed.items()))
    access.grant(home.registry, "ada", clock=SystemClock())
    until(lambda: "credentials_file" in home.place.prometheus.read_text().partition("argosy-controller")[0])
    until(lambda: home.ask("GET", "/metrics")[0] == 401)
    until(
        lambda: (
            home.query("up{job='argosy-gateway'}")[0][1] == 1 and home.query("up{job='argosy-controller'}")[0][1] == 1
        )
    )
    key = (home.settings.home / "keys" / "monitoring.key").read_text()
    headers = {"authorization": f"Bearer {key}"}
    assert home.ask("GET", "/metrics", headers=headers)[0] == 200
    assert home.infer([[1.0]], headers=headers)[0] in (403, 404), "the key reads metrics and can ask no model"
    # The monitor itself may be killed: what it started goes on, and its successor takes over.
    tools = {name: home.launcher.get(name).pid for name in ("prometheus", "alertmanager")}
    home.kill_process("monitor")
    assert home.monitor().is_changed
    until(lambda: home.query("argosy_monitor_up == 1"))
    assert {name: home.launcher.get(name).pid for name in tools} == tools
    assert home.down() != []
    assert [info.name for info in home.launcher.list() if info.alive] == []


def post(home, body, token):
    url = f"http://127.0.0.1:{home.chosen.ports.receiver}/alerts"
    request = urllib.request.Request(url, body, {"authorization": f"Bearer {token}"}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refused:
        return refused.code, json.load(refused)["error"]["code"]


def announced(home, size, token):
    """Return the status of a post that is said to be so large, before a byte of it is sent."""
    connection = http.client.HTTPConnection("127.0.0.1", home.chosen.ports.receiver, timeout=10)
    with contextlib.closing(connection):
        connection.putrequest("POST", "/alerts")
        connection.putheader("authorization", f"Bearer {token}")
        connection.putheader("content-length", str(size))
        connection.endheaders()
        return connection.getresponse().status


def test_without_the_tools_the_receiver_still_runs_and_it_is_said_what_to_install(home, monkeypatch):
    monkeypatch.setattr(monitoring.files, "find_tool", lambda tool: "")
    started = home.monitor()
    assert started.missing == ("prometheus", "alertmanager")
    view = home.view()
    assert {"prometheus", "prometheus-alertmanager"} <= {
        word for text in view.missing.values() for word in text.split()
    }
    token = monitoring_token(home.settings).read_text()
    assert post(home, b"{}", "wrong") == (401, "denied")
    assert post(home, b"{}", token) == (400, "bad_notification")
    assert announced(home, 2_000_000, token) == 413
    assert post(home, b'{"version": "4", "alerts": []}', token) == (200, {"alerts": []})
