"""What a process gives away before code of users runs in it. In processes of their own, because it is for good."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

REPORT = """
import json, os, resource, sys, tempfile
tempfile.gettempdir()
from argosy.cluster.confinement import confine
folder = confine(memory_bytes=int(sys.argv[1]))
with tempfile.NamedTemporaryFile() as file:
    temporary = file.name
print(json.dumps({
    "folder": str(folder), "cwd": os.getcwd(), "mode": folder.stat().st_mode & 0o777, "temporary": temporary,
    "environment": dict(os.environ), "core": resource.getrlimit(resource.RLIMIT_CORE),
    "data": resource.getrlimit(resource.RLIMIT_DATA),
    "status": open("/proc/self/status").read(),
}))
"""


def report(memory_bytes=0, **environment):
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", REPORT, str(memory_bytes)],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_secrets_of_the_starter_are_gone_and_what_libraries_need_stays():
    found = report(
        AWS_SECRET_ACCESS_KEY="s3cret", HF_TOKEN="s3cret", http_proxy="http://u:p@h", MY_PASSWORD="s3cret",
        OMP_NUM_THREADS="2", LC_ALL="C.UTF-8", ARGOSY_PROCESS="token", ARGOSY_STORE="s3://bucket", PYTHONPATH="/x",
    )  # fmt: skip
    kept = set(found["environment"])
    assert {"PATH", "HOME", "OMP_NUM_THREADS", "LC_ALL", "ARGOSY_PROCESS", "PYTHONPATH", "TMPDIR"} <= kept
    assert not kept & {"AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "http_proxy", "MY_PASSWORD", "ARGOSY_STORE"}
    assert "s3cret" not in json.dumps(found["environment"])


def test_argosys_own_processes_still_find_the_store():
    code = (
        "from argosy.cluster.confinement import confine; from argosy.core.config import own_environment; import os\n"
        "confine(); confine(); print(own_environment()['AWS_SECRET_ACCESS_KEY'], 'AWS_SECRET_ACCESS_KEY' in os.environ)"
    )
    environment = os.environ | {"AWS_SECRET_ACCESS_KEY": "s3cret"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["s3cret", "False"]


def test_it_stands_in_a_folder_of_its_own_that_ends_with_it():
    found = report()
    assert found["cwd"] == found["folder"]
    assert found["mode"] == 0o700
    assert found["temporary"].startswith(found["folder"] + "/")
    assert not Path(found["folder"]).exists()


def test_it_leaves_no_core_file_and_gains_no_rights():
    found = report()
    assert found["core"] == [0, 0]
    assert "NoNewPrivs:\t1" in found["status"]


@pytest.mark.parametrize(("asked", "found"), [(0, resource.RLIM_INFINITY), (1 << 30, 1 << 30)])
def test_its_memory_has_a_bound_where_one_is_given(asked, found):
    assert report(asked)["data"] == [found, found]
