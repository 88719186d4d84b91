"""A home on a disk that is full: one clear error, the log whole, and the same command goes on when there is room."""

import json
import os
import subprocess

import pytest

from installed import Installed
from served import constant

PROJECT = '[project]\nname = "p"\n[data]\ntrain = "d.csv"\n[train]\nepochs = 2\n'


@pytest.fixture
def small_disk(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("a file system of a given size can be mounted by root only")
    folder = tmp_path / "disk"
    folder.mkdir()

    def size(kilobytes: int) -> None:
        mounted = os.path.ismount(folder)
        option = f"size={kilobytes}k" + (",remount" if mounted else "")
        subprocess.run(["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(folder)], check=True)

    size(40)
    yield folder, size
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.capability("V1")
def test_a_full_disk_is_said_and_nothing_is_half_written(small_disk, tmp_path):
    disk, size = small_disk
    project = tmp_path / "project"
    project.mkdir()
    (project / "argosy.toml").write_text(PROJECT)
    rows = "".join(f"{i % 7},{i % 3},{'ab'[i % 2]}\n" for i in range(400))
    (project / "d.csv").write_text("x,y,label\n" + rows)
    argosy = Installed(disk / "home", project)
    failures = 0
    for kilobytes in (40, 200, 400, 20_000):
        size(kilobytes)
        done = argosy("run")
        if done.returncode == 0:
            break
        failures += 1
        assert done.returncode == 6, done.stderr
        assert "(disk_full)" in done.stderr
        assert "Traceback" not in done.stderr
    assert failures >= 2
    assert done.returncode == 0, done.stderr
    argosy.ok("audit", "verify")
    assert [v["version"] for v in argosy.json("models", "list")] == ["p:1"]


def used_kilobytes(folder):
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize // 1024


@pytest.mark.slow
@pytest.mark.capability("H1", "R7")
def test_a_job_meets_a_full_disk_while_an_endpoint_serves_from_it(small_disk, tmp_path):
    """The job fails with its reason, or waits; the endpoint answers all the while; with room again all goes on."""
    disk, size = small_disk
    size(80_000)
    project = tmp_path / "project"
    project.mkdir()
    (project / "argosy.toml").write_text(PROJECT)
    rows = "".join(f"{i % 7},{i % 3},{'ab'[i % 2]}\n" for i in range(20_000))
    (project / "d.csv").write_text("x,y,label\n" + rows)
    (project / "m.onnx").write_bytes(constant(3.0))
    argosy = Installed(disk / "home", project)
    argosy.environment |= {"ARGOSY_RUNTIME": str(tmp_path / "run")}

    def answers():
        argosy.ok("predict", "m", '{"x": [1.0]}')

    try:
        argosy.ok("deploy", "m.onnx", "--name", "m", "--port", "0")
        answers()
        size(used_kilobytes(disk) + 60)
        submitted = argosy("jobs", "submit", "--json", "--", "run")
        if submitted.returncode == 0:
            job = json.loads(submitted.stdout)["job"]
            waited = argosy("jobs", "wait", job, "--timeout", "60")
            assert waited.returncode != 0
            assert "Traceback" not in waited.stderr
            answers()
            size(80_000)
            ended = argosy("jobs", "wait", job, "--timeout", "120")
            if ended.returncode:
                assert "disk" in ended.stderr + argosy.ok("jobs", "logs", job)
        else:
            assert "(disk_full)" in submitted.stderr
        size(80_000)
        again = json.loads(argosy.ok("jobs", "submit", "--json", "--", "run"))["job"]
        argosy.ok("jobs", "wait", again, "--timeout", "200")
        answers()
        argosy.ok("audit", "verify")
        assert "p:1" in [v["version"] for v in argosy.json("models", "list")]
    finally:
        argosy("down")
