"""Every query of every dashboard has data, by a real Prometheus that reads a loaded gateway, rollout and training."""

import json
import os
import subprocess

import numpy as np
import pytest

from argosy.monitoring.dashboards import DASHBOARDS
from argosy.monitoring.files import is_kept
from argosy.operate import commands
from argosy.operate.config import EndpointConfig, RolloutConfig
from argosy.operate.jobs.fold import WATCHED
from argosy.operate.jobs.folders import place_of
from controlled import Traffic
from installed import ARGOSY
from monitored import Monitored, add_tools_to_path
from served import constant, until

# Long enough for every panel: nothing is decided in this test.
SLOW = RolloutConfig(
    steps=(50,), dwell="10min", window="0.5s", time_limit="30min", judge=("errors", "latency", "agreement"), mirror=50
)
PROJECT = """[project]
name = "long"
[data]
train = "long.csv"
[train]
epochs = 100000
"""


@pytest.fixture
def home(monkeypatch):
    add_tools_to_path(monkeypatch)
    made = Monitored()
    yield made
    made.close()


@pytest.fixture
def training(home):
    """A training in this home that is under way until the test ends."""
    folder = home.folder / "project"
    folder.mkdir()
    random = np.random.default_rng(7)
    rows = [f"{a},{b},{'xy'[int(a + b > 1)]}" for a, b in random.random((400, 2))]
    (folder / "long.csv").write_text("\n".join(["a,b,label", *rows]) + "\n")
    (folder / "argosy.toml").write_text(PROJECT)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ARGOSY_")}
    environment |= {"ARGOSY_HOME": str(home.settings.home), "ARGOSY_RUNTIME": str(home.settings.runtime)}
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen([ARGOSY, "train"], cwd=folder, env=environment, stdout=log, stderr=log)
    yield lambda: running.poll() is None or pytest.fail((folder / "log").read_text())
    running.terminate()
    running.wait(60)


@pytest.mark.slow
@pytest.mark.capability("M1")
def test_every_query_of_every_panel_returns_data(home, training):
    first = commands.deploy(
        home.registry, str(home.publish(constant(1.0))), endpoint=EndpointConfig(replicas=2, latency_p99="5s")
    )
    home.start()
    home.ended(first.rollout)
    home.serving("m:1")
    place = place_of(home.settings.home)
    home.registry.log.append(WATCHED, "m", {"file": str(home.folder / "project" / "argosy.toml"), "place": place})
    home.monitor()
    commands.deploy(home.registry, str(home.publish(constant(1.0 + 1e-6))), rollout=SLOW)
    queries = [
        (board.title, panel.title, query.replace("$__rate_interval", "15s"))
        for board in DASHBOARDS.values()
        for panel in board.panels
        for query, _ in panel.queries
    ]
    left = list(queries)

    def is_shown(query):
        return any(value == value for _, value in home.query(query))  # noqa: PLR0124 - not a NaN

    def is_all_shown():
        training()
        left[:] = [one for one in left if not is_shown(one[2])]
        return not left

    with Traffic(home):
        try:
            until(is_all_shown, 120)
        except AssertionError:
            pytest.fail("without data: " + "\n".join(map(str, left)))
        # At one moment too, not each at some moment.
        until(lambda: all(is_shown(query) for _, _, query in queries), 60)
    assert len(queries) > 40


def test_the_written_dashboards_are_what_the_table_says(home):
    home.chosen = None
    home.look()
    from argosy.monitoring import home as monitoring

    place = monitoring.write_files(home.settings, home.observer.desired, monitoring.choose(home.settings))
    written = {path.stem: json.loads(path.read_text()) for path in (place.grafana / "dashboards").glob("*.json")}
    assert written.keys() == DASHBOARDS.keys()
    for name, found in written.items():
        board = DASHBOARDS[name]
        assert (found["title"], found["uid"]) == (board.title, name)
        assert [panel["title"] for panel in found["panels"]] == [panel.title for panel in board.panels]
        asked = [(t["expr"], t["legendFormat"]) for panel in found["panels"] for t in panel["targets"]]
        assert asked == [query for panel in board.panels for query in panel.queries]
        cells = [
            (panel["gridPos"]["x"] + dx, panel["gridPos"]["y"])
            for panel in found["panels"]
            for dx in range(panel["gridPos"]["w"])
        ]
        assert len(cells) == len(set(cells)), "two panels overlap"
        assert max(x for x, _ in cells) < 24
        assert {t["datasource"]["uid"] for panel in found["panels"] for t in panel["targets"]} == {"argosy"}
    assert "uid: argosy" in (place.grafana / "provisioning" / "datasources" / "argosy.yml").read_text()


def test_a_file_that_was_made_ones_own_is_left_alone(home):
    from argosy.monitoring import home as monitoring

    home.look()
    chosen = monitoring.choose(home.settings)
    place = monitoring.write_files(home.settings, home.observer.desired, chosen)
    own = place.alertmanager.read_text().partition("\n")[2] + "# with mail\n"
    place.alertmanager.write_text(own)
    place.prometheus.write_text(place.prometheus.read_text() + "# spoilt\n")
    monitoring.write_files(home.settings, home.observer.desired, chosen)
    assert place.alertmanager.read_text() == own
    assert (is_kept(place.alertmanager), is_kept(place.prometheus)) == (True, False)
    assert "# spoilt" not in place.prometheus.read_text()
