"""What the processes of the launcher tests do. Runs in a child, found there by PYTHONPATH."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path


def wait(config):
    """Say who this is, then wait to be ended."""
    if config.get("stubborn"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if config.get("family"):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(config["family"]).write_text(str(child.pid))
    if "say" in config:
        sys.stdout.write(config["say"] + "\n")
    if "ready" in config:
        ready = Path(config["ready"])
        ready.with_suffix(".part").write_text(
            json.dumps({"pid": os.getpid(), "argv": sys.argv, "env": dict(os.environ)})
        )
        ready.with_suffix(".part").replace(ready)
    threading.Event().wait(600)


def finish(config):
    return config.get("code")


def refuse(config):
    from argosy.core.errors import InvalidInput

    raise InvalidInput("the pipe is 3 m, the ship is 2 m", hint="cut it", code="too_long", length_m=3, where=Path("/x"))


def break_down(config):
    raise ZeroDivisionError("by surprise")


def start_one(config):
    """Start another process through a launcher of our own, in the way asked."""
    from argosy.cluster.launcher import ProcessSpec
    from argosy.cluster.local import LocalLauncher

    launcher = LocalLauncher(Path(config["folder"]))
    spec = ProcessSpec(role="rank", entry="launched:wait", **config["spec"])
    if config.get("from_a_thread"):
        starter = threading.Thread(target=launcher.start, args=(spec,))
        starter.start()
        starter.join()
    else:
        launcher.start(spec)
    threading.Event().wait(600)


def until_unwanted(config):
    """End as soon as the record is gone."""
    from argosy.cluster import current

    Path(config["ready"]).write_text("")
    while current.is_wanted():
        threading.Event().wait(0.01)
