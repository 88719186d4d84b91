"""Foreign code in a child process: what it may not do, and what is said when it ends badly."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from argosy.core.errors import DeadlineExceeded, InvalidInput
from argosy.formats.conversion import sandbox
from argosy.formats.conversion.sandbox import Call, Limits

JOB = """
import os, socket, sys, time
from pathlib import Path
import argosy_child

def double(config):
    return {"number": config["number"] * 2, "before": config["done"]}

def refuse(config):
    raise argosy_child.Refused("the layer 'a' is unknown", hint="replace it", code="unsupported_operator", layer="a")

def fail(config):
    raise KeyError("secret")

def look(config):
    found = {"environment": dict(os.environ), "folder": os.getcwd()}
    for name, path in (("outside", config["outside"]), ("inside", "mine")):
        try:
            Path(path).write_text("x")
            found[name] = "written"
        except OSError as error:
            found[name] = type(error).__name__
    try:
        socket.create_connection(("127.0.0.1", config["port"]), timeout=5)
        found["network"] = "reached"
    except OSError as error:
        found["network"] = type(error).__name__
    return found

def greedy(config):
    return len(bytearray(2**40))

def crash(config):
    os.kill(os.getpid(), 11)

def sleep(config):
    Path("pid").write_text(str(os.getpid()))
    time.sleep(600)

def lie(config):
    Path("../result.json").symlink_to("/etc/passwd")
    os._exit(0)
"""


@pytest.fixture
def call(tmp_path):
    job = tmp_path / "jobs" / "job.py"
    job.parent.mkdir()
    job.write_text(JOB)
    work = tmp_path / "work"
    work.mkdir()

    def make(*names, limits=None, **config):
        calls = [Call(job=f"{job}:{name}", config=config) for name in names]
        return sandbox.run(calls, python=sys.executable, work=work, limits=limits)

    make.work = work
    return make


def test_calls_are_made_in_order_and_see_what_was_returned_before(call):
    assert call("double", "double", number=4).done == [
        {"number": 8, "before": []},
        {"number": 8, "before": [{"number": 8, "before": []}]},
    ]


def test_a_refusal_arrives_with_its_hint_code_and_the_call_that_made_it(call):
    with pytest.raises(InvalidInput, match="the layer 'a' is unknown") as found:
        call("double", "refuse", number=1)
    assert (found.value.code, found.value.hint) == ("unsupported_operator", "replace it")
    assert found.value.context == {"layer": "a", "call": 1}


def test_whatever_else_is_raised_becomes_one_line(call):
    with pytest.raises(InvalidInput, match="KeyError: 'secret'") as found:
        call("fail")
    assert found.value.code == "conversion_failed"


@pytest.mark.capability("F4")
def test_it_has_no_network_no_secrets_and_writes_nowhere_else(call, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    monkeypatch.setenv("HF_TOKEN", "s3cret")
    outside = tmp_path / "outside"
    with socket.create_server(("127.0.0.1", 0)) as server:
        ended = call("look", outside=str(outside), port=server.getsockname()[1])
    found = ended.done[0]
    assert "s3cret" not in json.dumps(found["environment"])
    assert found["network"] != "reached"
    assert found["inside"] == "written"
    assert found["folder"] == str(call.work / "tmp")
    if ended.confined.sealed:
        assert found["outside"] == "PermissionError"
        assert not outside.exists()
    if ended.confined.offline:
        assert found["network"] in ("OSError", "ConnectionRefusedError")


def test_memory_has_a_bound(call):
    with pytest.raises(InvalidInput, match="more memory") as found:
        call("greedy")
    assert found.value.code == "conversion_memory"


def test_a_crash_is_told_by_its_signal(call):
    with pytest.raises(InvalidInput, match="signal SIGSEGV") as found:
        call("crash")
    assert found.value.code == "conversion_ended"


def test_time_has_a_bound_and_nothing_runs_on(call):
    with pytest.raises(DeadlineExceeded, match="within 2 s"):
        call("sleep", limits=Limits(seconds=2))
    pid = int((call.work / "tmp" / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists()


def test_a_link_in_place_of_the_result_is_not_followed(call):
    with pytest.raises(InvalidInput, match="without a result"):
        call("lie")


def test_leftovers_of_a_killed_conversion_are_removed_and_a_living_ones_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead = tmp_path / "argosy-convert-dead"
    dead.mkdir()
    (dead / "lock").write_text("1")
    with sandbox.work_folder() as living, sandbox.work_folder() as other:
        assert living.exists()
        assert other != living
        assert not dead.exists()
    assert list(tmp_path.iterdir()) == []


STARTER = """
import sys
from pathlib import Path
from argosy.formats.conversion import sandbox
sandbox.run([sandbox.Call(job=sys.argv[1] + ":sleep", config={})], python=sys.executable, work=Path(sys.argv[2]))
"""


def test_the_child_ends_with_its_starter(call, tmp_path):
    job = tmp_path / "jobs" / "job.py"
    starter = subprocess.Popen([sys.executable, "-c", STARTER, str(job), str(call.work)])
    written = call.work / "tmp" / "pid"
    while not (written.exists() and written.read_text()):
        threading.Event().wait(0.02)
    child = int(written.read_text())
    descriptor = os.pidfd_open(child)
    starter.kill()
    starter.wait()
    # The kernel tells when the child has ended; without its death the test's own time limit ends this.
    import select

    assert select.select([descriptor], [], [], 30)[0]
    os.close(descriptor)
    assert starter.returncode == -signal.SIGKILL
