"""One apt at a time: several test processes may need packages at once, and apt refuses a second one."""

import contextlib
import fcntl
import os
from pathlib import Path


@contextlib.contextmanager
def apt():
    """Hold what lets one test process of this machine use apt; wait for it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "argosy-tests"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "apt.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
