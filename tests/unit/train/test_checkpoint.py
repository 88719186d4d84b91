import errno
import json
import os
import random
import signal
import threading
import time

import pytest
import torch

from argosy.core import files
from argosy.core.errors import Conflict, NotFound, Unavailable
from argosy.train.checkpoint import BackgroundSaver, Checkpoints

WHOLE = {"model.weight": torch.arange(6.0).reshape(2, 3), "optimizer.mean": torch.ones(6)}


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", "sha256:a")


def is_whole(checkpoints, step):
    tensors, position = checkpoints.load(step)
    return all(torch.equal(tensors[name], value + step) for name, value in WHOLE.items()) and position == {"step": step}


def save(checkpoints, step):
    checkpoints.save(step, {name: value + step for name, value in WHOLE.items()}, {"step": step})


def test_what_was_saved_comes_back_and_only_the_newest_two_are_kept(checkpoints):
    for step in (3, 10, 200, 1000):
        save(checkpoints, step)
    assert checkpoints.steps() == [200, 1000]
    assert checkpoints.newest() == 1000
    assert is_whole(checkpoints, 200)
    assert is_whole(checkpoints, 1000)
    assert len(list(checkpoints.folder.iterdir())) == 4


def test_an_empty_folder_has_no_checkpoint(checkpoints):
    assert checkpoints.newest() == -1
    with pytest.raises(NotFound):
        checkpoints.load(0)


class _Crash(BaseException):
    pass


CALLS = ["open", "write", "fsync", "replace", "unlink"]


@pytest.mark.capability("T7")
def test_a_crash_at_any_moment_of_a_write_leaves_a_whole_checkpoint(checkpoints, monkeypatch):
    """Kill before each system call in turn, until a write gets through; then what is seen is whole, old or new."""
    save(checkpoints, 1)
    save(checkpoints, 2)
    moments, reached = 0, 2
    for step in range(3, 60):
        with monkeypatch.context() as patch:
            _crash_at(patch, step - 3)
            try:
                save(checkpoints, step)
                crashed = False
            except _Crash:
                crashed = True
                moments += 1
        newest = Checkpoints(checkpoints.folder, "sha256:a").newest()
        assert newest in (reached, step), "neither the former checkpoint nor the new one"
        reached = newest
        assert is_whole(checkpoints, newest)
        if not crashed:
            break
    assert moments > 10
    assert checkpoints.newest() == step
    assert len(list(checkpoints.folder.iterdir())) == 4, "what crashes left is cleaned up"


def _crash_at(patch, moment):
    seen = [0]

    def counted(call):
        def run(*args, **kwargs):
            seen[0] += 1
            if seen[0] > moment:
                raise _Crash  # from now on nothing works: the process is gone, its clean-up included
            return call(*args, **kwargs)

        return run

    for name in CALLS:
        patch.setattr(files.os, name, counted(getattr(os, name)))


def test_a_full_disk_is_told_and_leaves_the_former_checkpoint(checkpoints, monkeypatch):
    save(checkpoints, 1)

    def full(descriptor, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "write", full)
        with pytest.raises(Unavailable, match="no space left") as caught:
            save(checkpoints, 2)
    assert caught.value.code == "disk_full"
    assert checkpoints.newest() == 1
    assert is_whole(checkpoints, 1)


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(checkpoints, suffix):
    save(checkpoints, 1)
    save(checkpoints, 2)
    path = checkpoints.folder / f"step-000000002.{suffix}"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert checkpoints.newest() == 1


def test_a_file_of_tensors_without_a_manifest_is_no_checkpoint(checkpoints):
    save(checkpoints, 1)
    save(checkpoints, 2)
    (checkpoints.folder / "step-000000002.json").unlink()
    assert checkpoints.newest() == 1


def test_the_checkpoints_of_another_training_are_refused_and_kept(checkpoints):
    save(checkpoints, 1)
    other = Checkpoints(checkpoints.folder, "sha256:b")
    with pytest.raises(Conflict, match="belong to another training") as caught:
        other.newest()
    assert "folder of its own" in caught.value.hint
    with pytest.raises(Conflict):
        other.load(1)
    assert is_whole(checkpoints, 1)


def test_a_checkpoint_is_safetensors_and_json_and_nothing_that_runs_code(checkpoints):
    save(checkpoints, 1)
    manifest = json.loads((checkpoints.folder / "step-000000001.json").read_text())
    assert set(manifest) == {"step", "digest", "made_by", "position"}
    header = (checkpoints.folder / "step-000000001.safetensors").read_bytes()
    assert header[8:9] == b"{"


class _Slow(Checkpoints):
    """Writes only when it may."""

    may = threading.Event()

    def save(self, step, tensors, position):
        assert self.may.wait(20.0)
        super().save(step, tensors, position)


def test_what_is_saved_in_the_background_is_what_it_was_at_that_moment(tmp_path):
    slow = _Slow(tmp_path, "sha256:a")
    slow.may = threading.Event()
    values = torch.zeros(4)
    with BackgroundSaver(slow) as saver:
        saver.save(1, {"w": values}, {"step": 1})
        values.add_(5.0)
        assert slow.newest() == -1
        slow.may.set()
    tensors, position = slow.load(1)
    assert tensors["w"].tolist() == [0.0] * 4
    assert position == {"step": 1}


@pytest.mark.parametrize("by", ["next", "end"])
def test_what_goes_wrong_in_the_background_is_raised_by_the_next_save_or_the_end(tmp_path, monkeypatch, by):
    checkpoints = Checkpoints(tmp_path, "sha256:a")

    def full(*_):
        raise Unavailable("the disk is full", code="disk_full")

    monkeypatch.setattr(checkpoints, "save", full)
    saver = BackgroundSaver(checkpoints)
    saver.save(1, WHOLE, {})
    after = {"next": lambda: saver.save(2, WHOLE, {}), "end": lambda: saver.__exit__(None, None, None)}
    with pytest.raises(Unavailable, match="disk is full"):
        after[by]()


@pytest.mark.slow
@pytest.mark.capability("T7")
def test_a_thousand_kills_while_checkpoints_are_written_never_leave_a_torn_one(tmp_path):
    """Real processes that write as fast as they can, killed at random moments within some writes."""
    checkpoints, draw, seen = Checkpoints(tmp_path, "sha256:a"), random.Random(0), -1
    for _ in range(1000):
        child = os.fork()
        if child == 0:
            for step in range(seen + 1, seen + 1000):
                save(checkpoints, step)
            os._exit(0)
        time.sleep(draw.uniform(0.0, 0.15))  # the moment is what is tested
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        newest = checkpoints.newest()
        assert newest >= seen
        assert newest <= 0 or is_whole(checkpoints, newest)
        for step in checkpoints.steps():
            assert is_whole(checkpoints, step)
        seen = max(seen, newest)
    assert seen > 100  # so most kills came in the midst of it
