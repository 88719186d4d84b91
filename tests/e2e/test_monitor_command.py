"""`argosy monitor` as a stranger uses it."""

import os
import urllib.request
from pathlib import Path

import pytest

from argosy.monitoring.dashboards import DASHBOARDS
from promtools import programs
from served import constant, until


def test_files_are_written_without_starting_anything_and_impossible_wishes_are_refused(installed):
    found = installed.json("monitor", "config")
    assert "argosy-gateway" in Path(found["Prometheus"]).read_text()
    assert {path.stem for path in Path(found["dashboards"]).iterdir()} == set(DASHBOARDS)
    assert Path(found["Alertmanager"]).stat().st_mode & 0o077 == 0
    assert installed.json("monitor", "status")["is_running"] is False
    assert "200ms to 5min" in installed.refused("monitor", "up", "--every", "0.01s")
    assert "two more after it" in installed.refused("monitor", "up", "--port", "65535")


@pytest.mark.slow
@pytest.mark.capability("M1")
def test_up_status_and_down_with_the_real_tools(installed):
    installed.environment["PATH"] = f"{programs()}{os.pathsep}{installed.environment['PATH']}"
    (installed.folder / "m.onnx").write_bytes(constant(1.0))
    installed.ok("deploy", "m.onnx", "--name", "m", "--port", "0")
    try:
        said = installed.ok("monitor", "up", "--port", "0", "--every", "1s")
        assert "argosy monitor down" in said

        def shown():
            view = installed.json("monitor", "status")
            healthy = {target["job"] for target in view["targets"] if target["health"] == "up"}
            return view if healthy == {"argosy-gateway", "argosy-controller", "argosy-monitor"} else None

        view = until(shown, 60)
        assert set(view["urls"]) == {"prometheus", "alertmanager", "receiver"}
        assert view["missing"] == {}
        with urllib.request.urlopen(f"{view['urls']['prometheus']}/-/ready", timeout=10) as answer:
            assert answer.status == 200
        assert installed.json("monitor", "up")["changed"] is False
        assert set(installed.json("monitor", "down")["stopped"]) == {"monitor", "prometheus", "alertmanager"}
        assert installed.json("monitor", "down")["stopped"] == []
        assert installed.json("monitor", "status")["is_running"] is False
    finally:
        installed.ok("down")
