import os
import subprocess
import sys

import pytest

from argosy.cluster import machine


def test_the_machines_memory_is_what_the_kernel_says_or_less():
    assert 0 < machine.memory_bytes() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(("text", "counts"), [("123456\n", True), ("max\n", False)])
def test_a_containers_limit_counts_where_it_has_one(monkeypatch, tmp_path, text, counts):
    (tmp_path / "memory.max").write_text(text)
    monkeypatch.setattr(machine, "_LIMITS", (str(tmp_path / "none"), str(tmp_path / "memory.max")))
    assert (machine.memory_bytes() == 123456) == counts


def test_a_process_has_the_memory_it_wrote_to_and_not_the_files_it_mapped(tmp_path):
    (tmp_path / "file").write_bytes(bytes(200 << 20))
    code = """
import mmap, os, sys
from argosy.cluster.machine import process_memory_bytes as own
before = own(os.getpid())
with open(sys.argv[1], 'rb') as file:
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
for at in range(0, len(mapped), 4096):
    mapped[at]
middle = own(os.getpid())
taken = bytearray(100 << 20)
for at in range(0, len(taken), 4096):
    taken[at] = 1
print(middle - before, own(os.getpid()) - middle)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "file"], capture_output=True, text=True, check=True)
    mapped, taken = map(int, done.stdout.split())
    assert mapped < 20 << 20
    assert 95 << 20 < taken < 120 << 20


def test_a_process_that_is_not_there_has_none():
    assert machine.process_memory_bytes(2**22 + 1) == 0
