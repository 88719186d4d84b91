"""The first code of every process a launcher starts: `python -m argosy.cluster.child <record> <parent>`.

It imports next to nothing before the entry (a start costs about what an empty Python costs), so no msgspec, no
pathlib, no other module of Argosy that has imports of its own. Descriptor 3 is the lock on the record, taken by the
starter and inherited: it is held exactly as long as this process lives, whatever becomes of the starter.
"""

import errno
import json
import os
import sys

from argosy.cluster import current

LOCK = 3
"""The descriptor of the inherited lock."""


def main() -> int:
    """Run the entry named in the record and leave behind how it ended."""
    path, parent = sys.argv[1], int(sys.argv[2])
    # Libraries in the starter may have left descriptors open without close-on-exec, listening sockets among them.
    os.closerange(LOCK + 1, 1 << 16)
    os.set_inheritable(LOCK, False)
    if parent:
        _die_with(parent)
    folder = os.path.dirname(path)  # noqa: PTH120
    with open(path, encoding="utf-8") as stream:  # noqa: PTH123
        record = json.load(stream)
    current.record, current.lock = path, LOCK
    write_identity(folder, os.getpid(), record["token"])
    if not parent:
        os.chdir("/")
    sys.argv = [record["spec"]["name"]]
    return _finish(folder, record, *_run(record["spec"]))


def _run(spec: dict) -> tuple[int, dict | None]:  # type: ignore[type-arg]
    try:
        module, _, name = spec["entry"].partition(":")
        __import__(module)
        returned = getattr(sys.modules[module], name)(spec.get("config", {}))
    except SystemExit as left:
        if left.code is None or isinstance(left.code, int):
            return left.code or 0, None
        print(left.code, file=sys.stderr)  # noqa: T201 - what Python itself does
        return 1, None
    except BaseException as error:  # noqa: BLE001 - the outermost frame of a process: whatever it was is recorded
        return _failed(error, spec)
    return (returned if isinstance(returned, int) else 0), None


def _failed(error: BaseException, spec: dict) -> tuple[int, dict | None]:  # type: ignore[type-arg]
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        from pathlib import Path

        from argosy.core.files import explained

        error = explained(error, Path(error.filename or spec["name"]))
    # If it is an ArgosyError its module is loaded; otherwise there is no reason to load it.
    errors = sys.modules.get("argosy.core.errors")
    if errors is not None and isinstance(error, errors.ArgosyError):
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code, errors.to_dict(error)
    sys.excepthook(type(error), error, error.__traceback__)
    said = f"{type(error).__name__}: {error}"
    message = f"process '{spec['name']}' ended by an unexpected error: {said}"
    return 70, {"kind": "internal", "code": "internal", "message": message, "hint": "its log has the traceback"}


def _finish(folder: str, record: dict, code: int, error: dict | None) -> int:  # type: ignore[type-arg]
    ended = {"token": record["token"], "exit_code": code, "error": error}
    try:
        text = json.dumps(ended)
    except (TypeError, ValueError):
        # An error's context may hold anything; the message matters more.
        ended["error"] = {**(error or {}), "context": {}}
        text = json.dumps(ended)
    try:
        replace_file(folder + "/exit.json", text)
    except OSError as failed:
        print(f"how this process ended could not be recorded: {failed}", file=sys.stderr)  # noqa: T201
    return code


def _die_with(parent: int) -> None:
    import ctypes
    import signal

    pr_set_pdeathsig = 1  # <linux/prctl.h>
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(signal.SIGKILL), 0, 0, 0)
    # The parent may have ended before the call; then no signal will ever come.
    if os.getppid() != parent:
        os._exit(1)


def write_identity(folder: str, pid: int, token: str) -> None:
    """Record which process it is. Starter and child both do this, so that it is known whichever of them is killed."""
    found = {"token": token, "pid": pid, "ticks": start_ticks(pid), "boot": boot_id()}
    replace_file(folder + "/pid.json", json.dumps(found))


def start_ticks(pid: int, *, zombies: bool = False) -> int:
    """Return when `pid` started, in clock ticks since boot; 0 if there is no such process, or only its zombie.

    A pid that was given to another process has another start.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:  # noqa: PTH123
            # The second field is the command in brackets and may hold anything, brackets and spaces included.
            fields = stream.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in (b"Z", b"X") and not zombies else int(fields[19])


def boot_id() -> str:
    """Return a word that changes with every start of the machine, because ticks begin anew then."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:  # noqa: PTH123
            return stream.read().strip()
    except OSError:
        return ""


def replace_file(path: str, text: str) -> None:
    """Write a small file that readers see whole or not at all. Not durable: after a power cut no process lives."""
    staged = f"{path}.{os.getpid()}.tmp"
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
    os.replace(staged, path)


if __name__ == "__main__":
    sys.exit(main())
