"""A home on a disk that is full: one clear error, the log whole, and the same command goes on when there is room."""

import os
import subprocess

import pytest

from installed import Installed

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
