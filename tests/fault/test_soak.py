"""`benchmarks/faults.py` as a test: minutes of kills and version changes on a deployment of the installed command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(__file__).parents[2] / "benchmarks" / "faults.py"


def run(part, folder):
    """Run one part and return its lines."""
    done = subprocess.run(
        [sys.executable, COMMAND, "--only", part, "--results", folder],
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    path = folder / "faults.json"
    assert path.exists(), done.stdout + done.stderr
    return {line["promise"]: line for line in json.loads(path.read_text())[part]["lines"]}


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_five_minutes_of_kills_and_version_changes_leave_memory_descriptors_and_threads_flat(tmp_path):
    lines = run("soak", tmp_path)
    assert len(lines) == 4
    assert [line for line in lines.values() if line["verdict"] != "holds"] == []


@pytest.mark.slow
@pytest.mark.timeout(1600)
@pytest.mark.parametrize(("part", "count"), [("kills", 4), ("sharing", 3), ("changes", 2)])
def test_what_the_benchmark_counts_holds_on_any_machine(tmp_path, part, count):
    """Latencies need a quiet machine; failed requests, wrong answers and lost replicas are faults on every one."""
    counted = {promise: line for promise, line in run(part, tmp_path).items() if not promise.startswith("p99")}
    assert len(counted) == count
    assert [line for line in counted.values() if line["verdict"] != "holds"] == []
