"""A writer killed with SIGKILL at any moment leaves a whole log, and everything it was told is written is there."""

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from argosy.core.clock import SystemClock
from argosy.core.config import load_settings
from argosy.registry.backends.disk import DiskStore
from argosy.registry.packs import PACK
from argosy.registry.registry import open_registry
from logs import filled, make_log

pytestmark = [pytest.mark.capability("V3"), pytest.mark.capability("V1")]

WRITER = """
import sys
import threading
from argosy.core.clock import SystemClock
from argosy.core.config import load_settings
from argosy.registry.registry import open_registry
registry = open_registry(load_settings({"ARGOSY_HOME": sys.argv[1]}), SystemClock())
registry.log.refresh()
print("ready", flush=True)
for number in range(1000):
    digest = registry.blobs.put(b"%d" % number)
    print(registry.log.append("x", sys.argv[2], {"n": number, "blob": digest}).seq, flush=True)
"""


def test_a_writer_killed_at_any_moment_loses_nothing_it_was_told_is_written(tmp_path):
    seeded = random.Random(7)
    settings = load_settings({"ARGOSY_HOME": str(tmp_path)})
    acknowledged: dict[int, int] = {}
    for turn in range(3):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, tmp_path, f"{turn}-{n}"], stdout=subprocess.PIPE, text=True, bufsize=1
            )
            for n in range(2)
        ]
        # Killed after so many lines, at whatever instant that is inside of the next append.
        told = [[writer.stdout.readline() for _ in range(seeded.randint(1, 60))] for writer in writers]
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
        for writer, heard in zip(writers, told, strict=True):
            lines = heard + writer.stdout.read().splitlines()
            writer.wait(30)
            writer.stdout.close()
            for number, line in enumerate(line for line in lines if line.strip().isdigit()):
                acknowledged[int(line)] = number
    registry = open_registry(settings, SystemClock())
    report = registry.log.verify()
    entries = {entry.seq: entry for entry in registry.log.entries(kind="x")}
    assert report.entries == len(entries) + 1
    assert {seq: entries[seq].data["n"] for seq in acknowledged} == acknowledged
    for entry in entries.values():
        assert registry.blobs.get(entry.data["blob"]) == b"%d" % entry.data["n"]
    assert registry.log.append("x", "after", {}).seq == report.entries + 1
    assert len(list(open_registry(settings, SystemClock()).log.entries())) == report.entries + 1


class Killed(BaseException):
    """The process ends here."""


CALLS = ["open", "write", "fsync", "link", "unlink", "replace", "pwrite", "mkdir"]


def _die_at(monkeypatch, step):
    """Let the system call number `step` of those that change files, and all after it, never happen in this thread."""
    counter = itertools.count()
    dying_thread = threading.get_ident()

    def dying(call):
        def wrapped(*arguments, **options):
            # Nothing happens after death either: no `finally` tidies up.
            if threading.get_ident() == dying_thread and next(counter) >= step:
                raise Killed
            return call(*arguments, **options)

        return wrapped

    for name in CALLS:
        monkeypatch.setattr(os, name, dying(getattr(os, name)))


@pytest.mark.parametrize(
    "before", [0, 2, PACK - 1], ids=["the first entry", "any entry", "the entry that fills a pack"]
)
def test_death_before_any_system_call_of_an_append_leaves_a_whole_log(tmp_path, monkeypatch, before):
    if before:
        filled(DiskStore(tmp_path / "whole" / "store"), tmp_path / "whole", before).close()
    for step in itertools.count():
        home = tmp_path / str(step)
        if before:
            shutil.copytree(tmp_path / "whole", home)
        store = DiskStore(home / "store")
        log = make_log(store, home)
        log.refresh()
        with monkeypatch.context() as patched:
            _die_at(patched, step)
            try:
                log.append("x", "dying", {})
                died = False
            except Killed:
                died = True
        log.close()
        after = make_log(store, home)
        entries = list(after.entries(kind="x"))
        assert len(entries) <= 1
        assert entries or died, "an entry that was acknowledged is there"
        again = after.append("x", "next", {})
        assert after.verify().entries == again.seq == len(list(after.entries()))
        after.close()
        shutil.rmtree(home)
        if not died:
            assert step > 5, "nothing was tried"
            return
