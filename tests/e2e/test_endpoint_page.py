"""`argosy endpoints list|show|calibrate`, and what `deploy` says was chosen, by the installed command."""

import json
import shutil
import subprocess

import pytest

from served import linear, slow, until


@pytest.fixture
def model(installed):
    def write(name, content):
        path = installed.folder / name
        path.write_bytes(content)
        return path

    return write


@pytest.mark.capability("I3", "R4")
def test_the_page_of_an_endpoint_says_what_runs_why_and_how_to_ask_it(installed, model):
    path = model("some.onnx", linear())
    said = installed.ok("deploy", path, "--name", "m", "--port", "0")
    assert "1 replica x 1 thread, no batches at first; a calibration on this machine follows" in said
    page = installed.ok("endpoints", "show", "m")
    assert "\x1b[" not in page  # plain in a pipe
    for expected in (
        "m  ready",
        "/predict/m",
        "/v2/models/m",
        "current m:1  100% of the requests, 1 of 1 replicas ready",
        "calibration of m:1",
        "1 replica x 1 thread, batches up to 128",
        "one replica keeps up with it",
        "deadline     30 s",
        "ask it: curl",
        "ask it: tritonclient",
    ):
        assert expected in page, page
    command = page.partition("ask it: curl\n")[2].partition("\n\n")[0]
    if shutil.which("curl"):
        answered = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
        assert json.loads(answered.stdout)["version"] == "m:1"
    found = installed.json("endpoints", "show", "m")
    profile = found["calibration"]["m:1"]
    assert (profile["replicas"], profile["threads"], profile["batching"]["1"]["max_batch"]) == (1, 1, 128)
    assert found["endpoint"]["versions"][0]["replicas"][0]["max_batch"] == 128
    assert found["urls"]["predict"] == found["endpoint"]["url"]
    assert found["limits"]["timeout_s"] == 30
    assert set(found["snippets"]) >= {"curl", "python", "tritonclient"}
    listed = installed.ok("endpoints", "list")
    assert "m:1" in listed
    assert "1/1" in listed
    assert installed.json("endpoints", "list")["endpoints"][0]["name"] == "m"
    again = installed.ok("deploy", path, "--name", "m")
    assert "1 replica x 1 thread, batches up to 128: measured 20" in again


def test_measuring_again_is_asked_for_by_name_and_taken_up_by_what_runs(installed, model):
    installed.ok("deploy", model("some.onnx", slow(layers=4, width=512)), "--name", "m", "--port", "0")
    until(lambda: installed.json("endpoints", "show", "m")["calibration"]["m:1"], 90)
    before = installed.json("endpoints", "show", "m")["calibration"]["m:1"]
    said = installed.ok("endpoints", "calibrate", "m")
    assert "measuring m:1 on this machine" in said
    after = installed.json("endpoints", "show", "m")["calibration"]["m:1"]
    assert after["measured"] > before["measured"]
    batch = after["batching"].get("1", {}).get("max_batch", 1)

    def is_taken_up():
        shown = installed.json("endpoints", "show", "m")["endpoint"]
        replicas = [r for v in shown["versions"] for r in v["replicas"] if r["state"] == "ready"]
        return shown["state"] == "ready" and {r["max_batch"] for r in replicas if r["threads"] == 1} <= {batch}

    until(is_taken_up, 60)


def test_what_is_not_there_is_said_with_what_is(installed, model):
    assert "there is no endpoint 'm'; there is: none" in installed.refused("endpoints", "show", "m")
    assert "there is no endpoint 'm'; there is: none" in installed.refused("endpoints", "calibrate", "m")
    assert "nothing is deployed" in installed.ok("endpoints", "list")


def test_a_stopped_endpoint_is_shown_with_what_is_known_of_it(installed, model):
    installed.ok("deploy", model("some.onnx", linear()), "--name", "m", "--port", "0")
    installed.ok("down")
    page = installed.ok("endpoints", "show", "m")
    assert "m  stopped" in page
    assert "nothing is served; start it with: argosy up" in page
    assert "batches up to 128" in page
    assert json.loads(installed.ok("endpoints", "show", "m", "--json"))["snippets"] == {}


def test_numbers_that_are_said_count(installed, model):
    (installed.folder / "argosy.toml").write_text('[project]\nname = "m"\n[endpoint]\nreplicas = 2\nthreads = 2\n')
    said = installed.ok("deploy", model("some.onnx", linear()), "--name", "m", "--port", "0")
    assert "2 replicas x 2 threads" in said
    until(lambda: installed.json("endpoints", "show", "m")["endpoint"]["state"] == "ready", 60)
    found = installed.json("endpoints", "show", "m")
    assert [r["threads"] for r in found["endpoint"]["versions"][0]["replicas"]] == [2, 2]
    assert found["settings"] == {"replicas": 2, "threads": 2}
