"""The installed command: instant help, clear refusals."""

import os
import subprocess
import sys

import pytest

from installed import ARGOSY


def test_help_is_instant_and_does_not_import_heavy_libraries(tmp_path):
    code = (
        "import sys, resource; sys.argv=['argosy','--help']\n"
        "from argosy.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy={'torch','numpy','onnxruntime','rich','structlog','obstore','pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "rollback" in done.stdout


def test_the_controller_starts_without_what_only_the_gateway_needs():
    code = (
        "import sys, argosy.operate.controller_process\n"
        "heavy={'structlog','asyncio','ssl','cryptography.x509','httptools','uvloop','grpc'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_command_has_help_and_an_unknown_one_is_refused():
    for command in ("init", "plan", "run", "deploy", "watch", "rollback", "predict", "why", "models", "audit", "down"):
        done = subprocess.run([ARGOSY, command, "--help"], capture_output=True, text=True, check=False)
        assert done.returncode == 0
        assert "Usage" in done.stdout
    done = subprocess.run([ARGOSY, "deplyo"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "deplyo" in done.stderr


def test_errors_are_one_json_document_when_json_is_asked_for(installed):
    import json

    done = installed("plan", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"]["code"] == "not_found"


def test_init_writes_a_file_that_runs_and_never_overwrites(installed):
    (installed.folder / "fruit.csv").write_text("weight,kind\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(40)))
    installed.ok("init", "fruit.csv", "--name", "fruit")
    assert installed.json("plan")["project"] == "fruit"
    assert 'label = "kind"' in (installed.folder / "argosy.toml").read_text()
    assert "already" in installed.refused("init")


@pytest.mark.parametrize("closed", [True, False])
def test_a_closed_pipe_is_no_fault(installed, closed):
    read, write = os.pipe()
    if closed:
        os.close(read)
    done = subprocess.run(
        [ARGOSY, "config", "show"], env=installed.environment, stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    if not closed:
        os.close(read)
    assert b"Traceback" not in done.stderr
