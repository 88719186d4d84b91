"""Takes from this process what code of users has no need for, before that code is loaded.

It is no sandbox: the code keeps this user's rights to files and the network. What goes is what leaks or spills over by
accident: secrets in the environment, files in whatever folder the process stood, core files with what callers sent,
programs that run as root, and memory without end.
"""

import atexit
import ctypes
import os
import resource
import shutil
import tempfile
from pathlib import Path

from argosy.cluster import current
from argosy.core.config import drop_environment, private_folder

_PR_SET_NO_NEW_PRIVS = 38  # <linux/prctl.h>
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000  # <linux/sched.h>


def confine(*, memory_bytes: int = 0) -> Path:
    """Confine this process for the rest of its life and return its private folder, where it now stands.

    The folder ends with the process's record, or with the process if no launcher started it. With `memory_bytes`,
    asking for more memory of its own than that (RLIMIT_DATA) fails in the code that asks.
    """
    folder = _private_folder()
    drop_environment(TMPDIR=str(folder))
    tempfile.tempdir = None  # looked up before now, perhaps
    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_bytes:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if hard != resource.RLIM_INFINITY:
            memory_bytes = min(memory_bytes, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    # No setuid program it starts gets more rights than it has; an old kernel that refuses costs only this.
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return folder


def cut_network() -> bool:
    """Put this process where there is no network, not even this machine's own, for the rest of its life.

    Call it before any thread starts. Returns whether the kernel did it: some forbid it to ordinary users, and then
    only what the caller tells its libraries keeps them offline.
    """
    unshare = ctypes.CDLL(None).unshare
    return bool(unshare(_CLONE_NEWNET) == 0 or unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0)


def _private_folder() -> Path:
    if current.record:
        return private_folder(Path(current.record).parent / "work")
    folder = Path(tempfile.mkdtemp(prefix="argosy-work-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
