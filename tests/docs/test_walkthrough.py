"""A newcomer follows the manual word by word, and it works."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from argosy.core.metrics import METRICS
from installed import ARGOSY

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def follow(installed, script):
    """Run lines of the manual in a shell that stops at the first failure."""
    done = subprocess.run(
        ["bash", "-eu", "-c", script],
        cwd=installed.folder,
        env=installed.environment | {"PATH": f"{ARGOSY.parent}{os.pathsep}{installed.environment['PATH']}"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.capability("I3", "K1", "M1", "M3", "V3")
def test_getting_started_leads_from_a_csv_to_a_watched_service(installed):
    install, make_data, plan_and_run, deploy_and_ask, why, *_ = blocks("getting-started.md", "sh")
    assert "pip install" in install
    follow(installed, make_data)
    (installed.folder / "argosy.toml").write_text(blocks("getting-started.md", "toml")[0])
    assert "fruit:1" in follow(installed, plan_and_run)

    answer = follow(installed, deploy_and_ask)
    assert re.search(r'label\s+"apple"', answer)
    prediction = re.search(r"argosy why ([0-9a-f-]{30,})", answer)[1]
    assert "fruit:1" in follow(installed, why.replace("<id>", prediction))

    installed.ok("deploy", "fruit:1", "--name", "twin", "--replicas", "2")
    # `fruit` serves the same version with one more, and replicas belong to versions
    assert re.search(r"[23]/2 ready", installed.ok("watch", "twin", "--once"))
    url = re.search(r"http://127\.0\.0\.1:\d+", answer + installed.ok("watch", "--once"))[0]
    for name in ("fruit", "twin", "twin"):
        body = json.dumps({"inputs": {"weight": [150, 55], "diameter": [7.5, 4.4]}}).encode()
        with urllib.request.urlopen(f"{url}/predict/{name}", body) as found:
            assert json.load(found)["outputs"]["label"] == ["apple", "plum"]
    with urllib.request.urlopen(f"{url}/metrics") as found:
        exposed = found.read().decode()
    assert set(re.findall(r"^# TYPE (argosy_\w+)", exposed, re.MULTILINE)) == {
        n for n, m in METRICS.items() if m.part == "gateway"
    }
    assert 'argosy_requests_total{code="ok",endpoint="twin",version="fruit:1"} 2.0' in exposed


@pytest.mark.slow
@pytest.mark.capability("I1")
def test_the_how_to_deploys_an_onnx_file_and_asks_it(installed):
    make_model = (
        "import torch\nfrom pathlib import Path\nfrom argosy.formats.onnx_export import export_onnx\n"
        "export_onnx(torch.nn.Linear(4, 3), torch.zeros(2, 4), Path('model.onnx'))\n"
    )
    subprocess.run([sys.executable, "-c", make_model], cwd=installed.folder, check=True, capture_output=True)
    deploy, ask = blocks("how-to/deploy-onnx.md", "sh")
    shown = follow(installed, deploy)
    url = re.search(r"http://(127\.0\.0\.1:\d+)", shown)[1]

    client = blocks("how-to/deploy-onnx.md", "python")[0].replace("127.0.0.1:8700", url)
    done = subprocess.run([sys.executable, "-c", client], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[[")
    assert '"outputs"' in follow(installed, ask.replace("127.0.0.1:8700", url).replace("curl", "curl -sSf"))
