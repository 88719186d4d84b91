"""Confines this process, then becomes a conversion's child: `python -m argosy.formats.conversion.jail <work folder>`.

What is set here outlives the exec: no network, no way to write anywhere but into the work folder, bounds of memory,
CPU time and file size, none of the starter's secrets, and death together with the starter.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import struct
import sys
from pathlib import Path

from argosy.cluster.confinement import confine, cut_network
from argosy.core.config import drop_environment

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
# <linux/landlock.h>; the numbers of its calls are the same on every architecture of Linux.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_PATH_BENEATH = 1
_WRITE_FILE, _TRUNCATE = 0x2, 0x4000
# Everything that changes the file system, by the version of the kernel's interface that knows it.
_CHANGES = {1: 0x1FF2, 2: 0x2000, 3: _TRUNCATE}
# What programs write to without meaning anything by it.
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/tty", "/dev/shm")  # noqa: S108


def main(folder: Path) -> None:
    """Confine, and exec the interpreter that `jail.json` names."""
    asked = json.loads((folder / "jail.json").read_text())
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != asked["parent"]:
        os._exit(1)
    offline = cut_network()
    confine(memory_bytes=asked["memory_bytes"])
    _limit(resource.RLIMIT_CPU, asked["cpu_s"])
    _limit(resource.RLIMIT_FSIZE, asked["file_bytes"])
    sealed = seal(folder)
    calls = json.loads((folder / "calls.json").read_text())
    (folder / "calls.json").write_text(json.dumps({**calls, "offline": offline}))
    (folder / "confined.json").write_text(json.dumps({"offline": offline, "sealed": sealed}))
    scratch = str(folder / "tmp")
    drop_environment(
        HOME=str(folder), TMPDIR=scratch, XDG_CACHE_HOME=scratch, MPLCONFIGDIR=scratch, CUDA_VISIBLE_DEVICES="",
        HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TF_CPP_MIN_LOG_LEVEL="2", TOKENIZERS_PARALLELISM="false",
        PYTHONDONTWRITEBYTECODE="1", PYTHONNOUSERSITE="1",
    )  # fmt: skip
    os.environ.pop("PYTHONPATH", None)
    os.chdir(scratch)
    os.execv(asked["python"], [asked["python"], "-s", "-P", asked["child"], str(folder)])  # noqa: S606


def _limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, most))


def seal(folder: Path) -> bool:
    """Let this process write below `folder` only, for the rest of its life; return whether the kernel can (5.13)."""
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG))
    if version < 1:
        return False
    changes = sum(bits for since, bits in _CHANGES.items() if since <= version)
    rules = struct.pack("=Q", changes)
    ruleset = libc.syscall(_CREATE_RULESET, rules, ctypes.c_size_t(len(rules)), ctypes.c_uint32(0))
    if ruleset < 0:
        return False
    try:
        for path in (folder, *map(Path, _DEVICES)):
            with contextlib.suppress(OSError):
                _allow(libc, ruleset, path, changes if path.is_dir() else changes & (_WRITE_FILE | _TRUNCATE))
        return bool(libc.syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)) == 0)
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, allowed: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = struct.pack("=Qi", allowed, descriptor)
        libc.syscall(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint32(0))
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
