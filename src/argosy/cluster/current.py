"""What a process that a launcher started knows about itself."""

import os

record = ""
"""Path of this process's record; empty in a process that no launcher started. Set by `cluster.child`."""
lock = -1
"""The descriptor of the lock on the record, held for this process's whole life."""


def is_wanted() -> bool:
    """Return whether this process's record still stands.

    A replica that has lost its gateway asks this before it dials again, so that it ends when its home is deleted.
    """
    if not record:
        return True
    try:
        # The file is held open, so its inode can't have been given to another one of the same name.
        return os.path.samestat(os.stat(os.path.dirname(record) + "/lock"), os.fstat(lock))  # noqa: PTH116, PTH120
    except OSError:
        return False
