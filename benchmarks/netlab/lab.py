"""A lab of emulated hosts. Needs root; everything is in network namespaces of its own, and gone when it is closed.

    with Lab(2, rate_mbit=100, round_trip_ms=5) as lab:
        server = lab.start(0, ["python", "server.py", lab.addresses[0]])
        client = lab.start(1, ["python", "client.py", lab.addresses[0]])
        lab.cut(1)

Each host is a namespace with one device, `eth0`, that is connected to a switch (a bridge in one more namespace). A
token bucket (`tc tbf`) at either end of the connection gives it its rate in each direction, a relay its delay. TCP's
congestion control is that of this machine; results should name it (`congestion_control`).
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

_NAME = "argosy-lab"
_SWITCH = "switch"
_BURST_S = 0.002
"""How much a token bucket may let through at once: well below the delays that matter here."""
_LEAST_BURST_BYTES = 16_000
_QUEUE_S = 0.1
"""What may wait at a rate limit: a queue like that of a usual router."""
_END_S = 5.0


class LabUnavailable(RuntimeError):
    """Hosts can't be emulated here; the message says what is missing."""


def congestion_control() -> str:
    """Return the name of TCP's congestion control on this machine, and so on its emulated hosts."""
    return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()


def why_not(*, with_delay: bool = True) -> str:
    """Return what keeps hosts from being emulated on this machine, or nothing."""
    if os.geteuid() != 0:
        return "emulated hosts need root, for network namespaces: run it as root"
    for command, package in (("ip", "iproute2"), ("tc", "iproute2")):
        if shutil.which(command) is None:
            return f"emulated hosts need the command {command!r}: install it with: apt-get install {package}"
    if with_delay and not Path("/dev/net/tun").exists():
        return "a delay needs TAP devices, and there is no /dev/net/tun: load the kernel module 'tun'"
    name = f"{_NAME}-{os.getpid()}-try"
    tried = subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True, text=True)
    if tried.returncode:
        return f"network namespaces can't be made here: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=False)
    return ""


class Lab:
    """Emulated hosts, numbered from 0."""

    def __init__(self, hosts: int, *, rate_mbit: float = 0.0, round_trip_ms: float = 0.0) -> None:
        """`rate_mbit`: megabits per second of each host, in each direction; 0 is as fast as the machine.

        `round_trip_ms`: time a packet needs from one host to another and back, without queues.
        """
        reason = why_not(with_delay=round_trip_ms > 0)
        if reason:
            raise LabUnavailable(reason)
        _sweep()
        self.addresses = [f"10.97.0.{1 + host}" for host in range(hosts)]
        self._prefix = f"{_NAME}-{os.getpid()}-"
        self._rate_bytes_s = rate_mbit * 1e6 / 8
        # Of two hosts one is behind a relay, of more all are: then a packet passes two on its way.
        self._relayed = [] if not round_trip_ms else [0] if hosts == 2 else list(range(hosts))
        self._delay_s = round_trip_ms / (2000 if hosts == 2 else 4000)
        self._processes: list[subprocess.Popen[Any]] = []
        try:
            self._build(hosts)
        except BaseException:
            self.close()
            raise

    def _build(self, hosts: int) -> None:
        names = [_SWITCH, *(f"h{host}" for host in range(hosts))]
        for name in names:
            _run("ip", "netns", "add", self._prefix + name)
            self._in(name, "ip", "link", "set", "lo", "up")
            # Else the kernel's own messages would be among the frames.
            self._in(name, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
        self._in(_SWITCH, "ip", "link", "add", "br0", "type", "bridge")
        self._in(_SWITCH, "ip", "link", "set", "br0", "up")
        if self._relayed:
            self._start_relay()
        for host in range(hosts):
            self._connect(host)

    def _connect(self, host: int) -> None:
        name, port, device = f"h{host}", f"port{host}", f"dev{host}"
        if host not in self._relayed:
            self._in(_SWITCH, "ip", "link", "add", port, "type", "veth", "peer", "name", device)
        self._in(_SWITCH, "ip", "link", "set", device, "netns", self._prefix + name, "name", "eth0")
        self._in(_SWITCH, "ip", "link", "set", port, "master", "br0", "up")
        self._in(name, "ip", "address", "add", f"{self.addresses[host]}/24", "dev", "eth0")
        self._in(name, "ip", "link", "set", "eth0", "up")
        if self._rate_bytes_s:
            self._limit(_SWITCH, port)
            self._limit(name, "eth0")

    def _limit(self, namespace: str, device: str) -> None:
        rate = self._rate_bytes_s
        burst = max(_LEAST_BURST_BYTES, round(rate * _BURST_S))
        queue = max(4 * _LEAST_BURST_BYTES, round(rate * _QUEUE_S))
        limits = ("rate", f"{round(rate * 8)}bit", "burst", f"{burst}b", "limit", f"{queue}b")
        self._in(namespace, "tc", "qdisc", "replace", "dev", device, "root", "tbf", *limits)

    def _start_relay(self) -> None:
        pairs = [f"port{host}:dev{host}" for host in self._relayed]
        command = [sys.executable, "-m", "netlab.relay", str(self._delay_s), *pairs]
        relay = self._start(_SWITCH, command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE)
        assert relay.stdout is not None
        if relay.stdout.readline().strip() != b"ready":
            raise LabUnavailable("the relay that makes the delay did not start")

    def start(self, host: int, command: Sequence[str], **options: Any) -> "subprocess.Popen[Any]":
        """Start a process on a host; the options are those of `subprocess.Popen`. `close` ends it."""
        return self._start(f"h{host}", command, **options)

    def _start(self, name: str, command: Sequence[str], **options: Any) -> "subprocess.Popen[Any]":
        # `ip netns exec` becomes the command: the process has the id that is returned.
        process = subprocess.Popen(["ip", "netns", "exec", self._prefix + name, *command], **options)
        self._processes.append(process)
        return process

    def cut(self, host: int) -> None:
        """Cut a host off: nothing gets through any more, and neither side is told."""
        self._in(_SWITCH, "ip", "link", "set", f"port{host}", "down")

    def mend(self, host: int) -> None:
        """Undo `cut`."""
        self._in(_SWITCH, "ip", "link", "set", f"port{host}", "up")

    def _in(self, name: str, *command: str) -> None:
        _run("ip", "netns", "exec", self._prefix + name, *command)

    def close(self) -> None:
        """End every process of the lab and remove its namespaces, and with them all devices."""
        for process in reversed(self._processes):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
            if process.stdout:
                process.stdout.close()
        self._processes.clear()
        for name in _namespaces():
            if name.startswith(self._prefix):
                _remove(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _sweep() -> None:
    """Remove what is left of labs whose process has ended without closing them."""
    for name in _namespaces():
        if name.startswith(_NAME + "-"):
            owner = name.removeprefix(_NAME + "-").partition("-")[0]
            if owner.isdigit() and not Path(f"/proc/{owner}").exists():
                _remove(name)


def _remove(name: str) -> None:
    """End what the lab's processes have started, and remove their namespace."""
    listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
    for process_id in listed.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(process_id), signal.SIGKILL)
    subprocess.run(["ip", "netns", "del", name], check=False)


def _namespaces() -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False)
    return [line.split()[0] for line in listed.stdout.splitlines() if line]


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabUnavailable(f"{' '.join(command)!r} failed: {done.stderr.strip() or done.stdout.strip()}")
