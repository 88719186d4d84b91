"""The first and last code of a tool's process: it becomes the tool.

So Prometheus and Alertmanager are processes of the launcher like any other: found again, stopped with the home, their
output in a log that is bounded.
"""

import os
from typing import Any

from argosy.cluster import current
from argosy.core.errors import PluginError


def main(config: dict[str, Any]) -> int:
    """Become the program that `command` names. Raises PluginError when it can't be run."""
    command = [str(word) for word in config["command"]]
    if current.lock >= 0:
        # The lock says that a process of this name lives: it has to live on in the tool.
        os.set_inheritable(current.lock, True)
    try:
        os.execv(command[0], command)  # noqa: S606 - no shell is wanted
    except OSError as error:
        raise PluginError(f"'{command[0]}' can't be run: {error.strerror}", hint="install it again") from error
