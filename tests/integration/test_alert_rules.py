"""The alert rules, tested by Prometheus's own promtool; and every rule is needed by its tests."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from argosy.core.metrics import METRICS
from argosy.monitoring.dashboards import DASHBOARDS
from argosy.monitoring.files import Place, Ports, Scrape, alertmanager_yml, prometheus_yml, rules_yml, write_all
from promtools import programs

HERE = Path(__file__).parent
ALERTS = re.findall(r"- alert: (\w+)", rules_yml())
PORTS = Ports(prometheus=9090, alertmanager=9093, receiver=9094)


def promtool(*arguments, folder):
    done = subprocess.run(
        [programs() / "promtool", *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path):
    shutil.copy(HERE / "alert_rules.yml", tmp_path)
    (tmp_path / "rules.yml").write_text(rules_yml())
    return tmp_path


@pytest.mark.capability("M1")
def test_every_rule_fires_when_it_should_and_only_then(folder):
    code, said = promtool("test", "rules", "alert_rules.yml", folder=folder)
    assert (code, "SUCCESS" in said) == (0, True), said


def test_each_rule_that_never_fires_is_noticed(folder):
    text = rules_yml()
    broken, count = re.subn(r"(\n\s+expr: )(\|\n(?:\s{10,}.*\n)+|.*\n)", r"\1vector(0) > 1\n", text)
    assert count == len(ALERTS)
    (folder / "rules.yml").write_text(broken)
    code, said = promtool("test", "rules", "alert_rules.yml", folder=folder)
    assert code != 0
    assert [alert for alert in ALERTS if alert not in said] == []


def test_no_rule_that_comes_with_argosy_acts_by_itself():
    assert re.findall(r"argosy_action: (\w+)", rules_yml().partition("groups:")[2]) == ["none"] * len(ALERTS)


@pytest.mark.parametrize(
    "scrape",
    [
        Scrape(),
        Scrape(scheme="https", key_file="/k", ca_file="/tls/a 'quoted\" cert.pem", server_name="models.example"),
    ],
)
def test_the_files_pass_the_checks_of_their_own_tools(tmp_path, scrape):
    place = Place(tmp_path / "it's a folder")
    token = tmp_path / "token"
    write_all(place, PORTS, scrape, token, 5.0)
    for path in (token, Path("/k")):
        if path.parent == tmp_path:
            path.write_text("t")
    text = prometheus_yml(place, PORTS, scrape, token, 5.0)
    # promtool looks for the files that are named; those of this gateway are not there.
    text = text.replace('"/k"', f'"{token}"').replace("/tls/a 'quoted\\\" cert.pem", str(token))
    (tmp_path / "p.yml").write_text(text)
    code, said = promtool("check", "config", "p.yml", folder=tmp_path)
    assert code == 0, said
    (tmp_path / "a.yml").write_text(alertmanager_yml(PORTS, token))
    done = subprocess.run(
        [programs() / "amtool", "check-config", tmp_path / "a.yml"], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_and_dashboards_ask_only_for_metrics_that_exist():
    known = set(METRICS)
    for name, metric in METRICS.items():
        if metric.kind == "histogram":
            known |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
    asked = set(re.findall(r"\bargosy_[a-z_0-9]+", rules_yml().partition("groups:")[2])) - {"argosy_action"}
    queries = [query for board in DASHBOARDS.values() for panel in board.panels for query, _ in panel.queries]
    asked |= {found for query in queries for found in re.findall(r"\bargosy_[a-z_0-9]+", query)}
    assert asked - known == set()
    assert len(queries) > 40
