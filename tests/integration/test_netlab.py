"""Emulated hosts keep the rate and the delay they are asked for, and leave nothing behind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from netlab import lab as netlab
from netlab.lab import Lab, LabUnavailable, why_not

NO_LAB = why_not()
needs_lab = pytest.mark.skipif(bool(NO_LAB), reason=NO_LAB or "emulated hosts work here")

SERVER = """
import socket, sys
listener = socket.create_server((sys.argv[1], 5000))
print("listening", flush=True)
connection, _ = listener.accept()
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
for _ in range(10):
    connection.sendall(connection.recv(1))
left, buffer = int(sys.argv[2]), bytearray(1 << 20)
while left:
    left -= connection.recv_into(buffer, min(left, len(buffer)))
connection.sendall(b".")
"""
CLIENT = """
import json, socket, sys, time
connection = socket.create_connection((sys.argv[1], 5000))
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
trips = []
for _ in range(10):
    begun = time.perf_counter()
    connection.sendall(b"."); connection.recv(1)
    trips.append(time.perf_counter() - begun)
begun = time.perf_counter()
connection.sendall(bytes(int(sys.argv[2]))); connection.recv(1)
print(json.dumps({"round_trip_s": min(trips), "transfer_s": time.perf_counter() - begun}))
"""


def transfer(lab, source, target, size_bytes):
    address = lab.addresses[target]
    server = lab.start(target, [sys.executable, "-c", SERVER, address, str(size_bytes)], stdout=subprocess.PIPE)
    assert server.stdout.readline() == b"listening\n"
    client = lab.start(source, [sys.executable, "-c", CLIENT, address, str(size_bytes)], stdout=subprocess.PIPE)
    return json.loads(client.communicate(timeout=60)[0])


@needs_lab
@pytest.mark.parametrize(("hosts", "megabits", "round_trip_ms"), [(2, 50, 10), (3, 100, 0), (3, 50, 20)])
@pytest.mark.capability("T5")
def test_a_transfer_keeps_to_the_rate_and_the_delay(hosts, megabits, round_trip_ms):
    size_bytes = 2_500_000
    with Lab(hosts, rate_mbit=megabits, round_trip_ms=round_trip_ms) as lab:
        found = transfer(lab, hosts - 1, 0, size_bytes)
    at_least_s = (size_bytes - 100_000) * 8 / megabits / 1e6  # without what the token bucket lets through at once
    assert at_least_s < found["transfer_s"] < 1.5 * at_least_s + 0.3
    assert round_trip_ms / 1000 <= found["round_trip_s"] < round_trip_ms / 1000 + 0.01


@needs_lab
def test_a_host_that_is_cut_off_gets_nothing_until_the_cable_is_mended():
    with Lab(2, round_trip_ms=2) as lab:
        code = (
            "import socket, sys\n"
            "try:\n socket.create_connection((sys.argv[1], 5000), timeout=0.5)\n"
            "except ConnectionRefusedError: print('reached')\n"
            "except OSError: print('not reached')\n"
        )

        def reaches():
            probe = lab.start(1, [sys.executable, "-c", code, lab.addresses[0]], stdout=subprocess.PIPE)
            return probe.communicate(timeout=20)[0]

        assert reaches() == b"reached\n"
        lab.cut(0)
        assert reaches() == b"not reached\n"
        lab.mend(0)
        assert reaches() == b"reached\n"


@needs_lab
def test_nothing_is_left_behind():
    with Lab(3, rate_mbit=10, round_trip_ms=1) as lab:
        lingering = lab.start(1, ["sleep", "600"])
        mine = [name for name in netlab._namespaces() if name.startswith(lab._prefix)]
        assert len(mine) == 4
    assert lingering.wait(5.0) != 0
    assert not [name for name in netlab._namespaces() if name.startswith(lab._prefix)]


@needs_lab
def test_what_a_lab_left_that_was_killed_is_swept_by_the_next():
    ended = subprocess.Popen(["true"])
    ended.wait()
    name = f"argosy-lab-{ended.pid}-h0"
    subprocess.run(["ip", "netns", "add", name], check=True)
    with Lab(1):
        assert name not in netlab._namespaces()


def test_without_root_it_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(netlab.os, "geteuid", lambda: 1000)
    assert "run it as root" in why_not()
    with pytest.raises(LabUnavailable, match="need root"):
        Lab(2)


def test_without_its_commands_it_says_which_package_has_them(monkeypatch):
    monkeypatch.setattr(netlab.os, "geteuid", lambda: 0)
    monkeypatch.setattr(netlab.shutil, "which", lambda command: None if command == "tc" else "/sbin/ip")
    assert "apt-get install iproute2" in why_not()
