"""The atomic writer, the resolver and the lock."""

import errno
import os
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from argosy.core.errors import Conflict, InvalidInput, Unavailable
from argosy.core.files import FileLock, create_exclusive, resolve_inside, write_atomic


def test_a_failed_write_leaves_the_former_bytes_and_no_other_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_atomic(path, b"former")
    real = os.write

    def full(descriptor, data):
        real(descriptor, bytes(data)[:2])
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(Unavailable, match="no space left") as caught:
        write_atomic(path, b"newer bytes")
    monkeypatch.undo()
    assert caught.value.code == "disk_full"
    assert path.read_bytes() == b"former"
    assert os.listdir(tmp_path) == ["a"]


def test_of_many_writers_exactly_one_creates(tmp_path):
    outcomes = []

    def create(number):
        try:
            create_exclusive(tmp_path / "entry", str(number).encode() * 1000)
            outcomes.append(number)
        except Conflict:
            pass

    threads = [threading.Thread(target=create, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 1
    assert (tmp_path / "entry").read_bytes() == str(outcomes[0]).encode() * 1000


@given(st.text(max_size=20))
def test_a_resolved_name_never_leaves_its_root(name):
    from pathlib import Path

    root = Path("/nonexistent/root")
    try:
        path = resolve_inside(root, name)
    except InvalidInput:
        return
    assert os.path.normpath(path).startswith(str(root) + "/")


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "", "a\x00b"])
def test_names_that_lead_out_are_refused(tmp_path, name):
    with pytest.raises(InvalidInput):
        resolve_inside(tmp_path, name)


def test_a_link_on_the_way_is_refused(tmp_path):
    (tmp_path / "link").symlink_to("/etc")
    with pytest.raises(InvalidInput, match="passes through a link"):
        resolve_inside(tmp_path, "link/passwd")


def test_a_lock_is_given_back_when_its_process_is_killed(tmp_path):
    code = (
        "import sys,pathlib;from argosy.core.files import FileLock;"
        "l=FileLock(pathlib.Path(sys.argv[1]));print(l.acquire(),flush=True);sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"True\n"
        lock = FileLock(tmp_path / "lock")
        assert lock.is_taken()
        holder.kill()
        holder.wait()
        assert lock.acquire()
        lock.release()
