"""A contender's processes, however they were started: found by a mark in their environment, measured through /proc."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

MARK = "BENCH_TREE"
TICKS = os.sysconf("SC_CLK_TCK")
STOP_S = 15.0


class Tree:
    """Every process with this tree's mark in its environment, and every child of one, also those that became daemons.

    A process is its number and its start time, so that a number given to another process later is not mistaken for it.
    """

    def __init__(self, cores: Sequence[int] = ()) -> None:
        self.mark = secrets.token_hex(8)
        self._cores = set(cores)
        self._known: set[tuple[int, int]] = set()
        self._started: list[subprocess.Popen[bytes]] = []

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], *, folder: Path, log: Path, pipes: bool = False
    ) -> subprocess.Popen[bytes]:
        """Start one process of the tree, in a session of its own; with `pipes` it can be talked to."""
        cores = self._cores

        def confine() -> None:
            if cores:
                os.sched_setaffinity(0, cores)

        with log.open("ab") as output:
            process = subprocess.Popen(
                list(map(str, command)),
                env={**environment, MARK: self.mark},
                cwd=folder,
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else output,
                stderr=output,
                start_new_session=True,
                preexec_fn=confine,  # noqa: PLW1509 - this program has one thread
            )
        self._started.append(process)
        return process

    def pids(self) -> list[int]:
        """Return the living processes of the tree."""
        for process in self._started:
            process.poll()
        seen = {pid: (start, parent) for pid, start, parent in _processes()}
        marked = f"{MARK}={self.mark}".encode()
        members = {pid for pid, (start, _) in seen.items() if (pid, start) in self._known}
        for pid in seen.keys() - members:
            with contextlib.suppress(OSError):
                if marked in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    members.add(pid)
        grown = True
        while grown:
            children = {pid for pid, (_, parent) in seen.items() if parent in members} - members
            members |= children
            grown = bool(children)
        self._known |= {(pid, seen[pid][0]) for pid in members}
        return sorted(members)

    def cpu_s(self) -> float:
        """Return the processor time of the tree so far: user and system, of children that have ended too."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                total += sum(map(int, _stat(pid)[11:15]))
        return total / TICKS

    def memory_mb(self, only: str = "") -> tuple[float, float]:
        """Return PSS and RSS of the tree in MiB; `only` picks the processes with this in their command line."""
        pss = rss = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                if only and only.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes():
                    continue
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    name, _, rest = line.partition(":")
                    if name == "Pss":
                        pss += int(rest.split()[0])
                    elif name == "Rss":
                        rss += int(rest.split()[0])
        return pss / 1024, rss / 1024

    def settle(self, seconds: float = 10.0) -> None:
        """Wait until the tree is nearly idle: what was abandoned by the last client is done with."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            before = self.cpu_s()
            time.sleep(0.2)
            if self.cpu_s() - before <= 0.03:
                return

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stand still for a moment: some servers poll in a loop while they have nothing to do."""
        pids = self.pids()
        try:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def stop(self) -> None:
        """End all processes of the tree: asked first, then killed. Nothing is left behind."""
        for process in self._started:
            if process.stdin is not None:
                process.stdin.close()
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        end = time.monotonic() + STOP_S
        while (left := self.pids()) and time.monotonic() < end:
            if all(process.poll() is not None for process in self._started) and end - time.monotonic() > 1:
                end = time.monotonic() + 1  # who started them is gone: orphans get one more second
            time.sleep(0.05)
        while left:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
            left = self.pids()
        for process in self._started:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def busy_s() -> float:
    """Return the processor time that all of the machine has spent so far, what a hypervisor took away included."""
    fields = Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]
    user, nice, system, _, _, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / TICKS


def free_port(count: int = 4) -> int:
    """Return the first of `count` free ports in a row on the loopback address."""
    while True:
        with contextlib.ExitStack() as stack:
            first = socket.socket()
            stack.enter_context(first)
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                for at in range(1, count):
                    other = stack.enter_context(socket.socket())
                    other.bind(("127.0.0.1", port + at))
            except (OSError, OverflowError):
                continue
            return port


def _processes() -> list[tuple[int, int, int]]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = _stat(int(entry.name))
                if fields[0] != "Z":
                    found.append((int(entry.name), int(fields[19]), int(fields[1])))
    return found


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on (proc(5) counts it as the third)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
