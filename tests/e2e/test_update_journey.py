"""Data grows, and the endpoint follows by itself; data goes bad, and it does not. Through the installed command."""

import json
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

PROJECT = """[project]
name = "digits"
[data]
train = "train.npz"
test = "test.npz"
label = "label"
[model]
family = "mlp"
[train]
epochs = 8
[evaluate]
accuracy = ">= 0.85"
[endpoint]
replicas = 1
[rollout]
steps = [50]
dwell = "1s"
window = "500ms"
judge = ["errors"]
mirror = 0
time_limit = "20s"
undecided = "promote"                 # traffic on a busy machine may be too thin for evidence
[update]
settle = "2s"
min_new_rows = 20
"""


def write(folder: Path, images, labels):
    """Write as a careful program does: whole, or not at all."""
    np.savez(folder / "next.npz", image=images, label=labels)
    (folder / "next.npz").replace(folder / "train.npz")


class Asking:
    """Requests, one after the other."""

    def __init__(self, url, image):
        self.url, self.body = url, json.dumps({"inputs": {"image": image.tolist()}}).encode()
        self.statuses = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _run(self):
        while not self._stop.wait(0.01):
            try:
                with urllib.request.urlopen(self.url, self.body, timeout=30) as answer:
                    self.statuses.append(answer.status)
            except OSError as error:
                self.statuses.append(str(error))


def until_update(argosy, holds, seconds=280):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        (view,) = argosy.json("updates")
        if holds(view):
            return view
        time.sleep(1)
    raise AssertionError(f"{view}\n{argosy('jobs', 'list').stdout}")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.capability("R5", "R1", "H1")
def test_an_endpoint_follows_its_data_and_not_into_what_fails_a_gate(installed):
    from sklearn.datasets import load_digits

    found = load_digits()
    images, labels = found.images.astype("float32").reshape(-1, 64), found.target
    order = np.random.default_rng(5).permutation(len(labels))
    test, train = order[:300], order[300:]
    np.savez(installed.folder / "test.npz", image=images[test], label=labels[test])
    write(installed.folder, images[train[:700]], labels[train[:700]])
    (installed.folder / "argosy.toml").write_text(PROJECT)
    deployed = installed.json("run", "--deploy", timeout=280)
    assert [v["ref"] for v in deployed["endpoint"]["versions"]] == ["digits:1"]

    with Asking(deployed["endpoint"]["url"], images[:1]) as asking:
        write(installed.folder, images[train], labels[train])
        view = until_update(installed, lambda view: view["last"] is not None)
        assert (view["last"]["outcome"], view["last"]["version"]) == ("promoted", "digits:2"), view
        job = installed.json("jobs", "show", view["last"]["job"])["job"]
        assert (job["state"], job["endpoint"], job["exit_code"]) == ("done", "digits", 0)
        assert job["peak_bytes"] > 100e6

        wrong = np.random.default_rng(6).permutation(labels[train])
        more = np.concatenate([images[train], images[train[:30]]])
        write(installed.folder, more, np.concatenate([wrong, wrong[:30]]))
        view = until_update(installed, lambda view: view["last"]["outcome"] != "promoted")
        assert view["last"]["outcome"] == "gate_failed", view
        assert "accuracy" in view["last"]["reason"]
    assert set(asking.statuses) == {200}
    shown = installed.json("endpoints", "show", "digits")
    assert [v["ref"] for v in shown["endpoint"]["versions"] if v["role"] == "current"] == ["digits:2"]
    assert shown["updates"]["state"] == "idle"
    assert "failed a gate" in installed.ok("updates")
    assert len(installed.json("jobs", "list")) == 2, "each change was one update"
    installed.ok("audit", "verify")


@pytest.mark.capability("H1")
def test_what_can_be_no_job_is_refused_and_says_what_could(installed):
    (installed.folder / "argosy.toml").write_text('[project]\nname = "digits"\n[data]\ntrain = "rows.csv"\n')
    (installed.folder / "rows.csv").write_text("a,label\n1,0\n2,1\n")
    for words, says in (
        (("jobs", "submit", "--", "deploy", "m"), "can't be a job"),
        (("jobs", "submit", "--", "run", "--fle", "x"), "No such option"),
        (("jobs", "submit", "--gpus", "99", "--", "run"), "this machine has"),
        (("jobs", "submit", "--", "run", "--file", "nowhere"), "there is no 'nowhere'"),
        (("jobs", "cancel", "j7"), "there is no job 'j7'"),
        (("update", "digits"), "comes from no project"),
    ):
        assert says in " ".join(installed.refused(*words).split()), words
    assert installed.json("jobs", "list") == []
    assert "argosy jobs submit" in installed.ok("jobs")
