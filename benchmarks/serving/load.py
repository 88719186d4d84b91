"""What a client saw, and the client of fast models: wrk with one thread, whose requests go over all connections."""

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("wrk.lua")


@dataclass(frozen=True)
class Load:
    """What wrk saw."""

    answered: int
    """Requests answered with a status below 400."""
    refused: int
    """Answers with any other status."""
    broken: int
    """Connections that failed, and requests without an answer."""
    seconds: float
    p50_ms: float
    p99_ms: float
    client_cpu_s: float

    @property
    def per_s(self) -> float:
        """Answered requests a second."""
        return self.answered / self.seconds


def percentile(values: Sequence[float], part: float) -> float:
    """Return the value below which a part of the values lies; 0 of none."""
    return sorted(values)[min(len(values) - 1, int(len(values) * part))] if values else 0.0


def ensure_wrk() -> str:
    """Return wrk's version, after installing it if that is possible; raise SystemExit if not."""
    if shutil.which("wrk") is None:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise SystemExit(
                "the benchmark drives servers with wrk, which is not installed: install the Debian package 'wrk'"
            )
        print("installing the Debian package wrk ...", flush=True)
        quiet = {"stdout": subprocess.DEVNULL, "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}}
        subprocess.run(["apt-get", "update", "-q"], check=True, **quiet)
        subprocess.run(["apt-get", "install", "-qy", "--no-install-recommends", "wrk"], check=True, **quiet)
    told = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False)
    return (told.stdout + told.stderr).split("Copyright")[0].strip()


def write_requests(path: Path, requests: Sequence[bytes]) -> Path:
    """Write whole requests, head and body, as wrk.lua reads them."""
    with path.open("wb") as file:
        for request in requests:
            file.write(b"%d\n%b" % (len(request), request))
    return path


def drive(port: int, requests: Path, connections: int, seconds: float, cores: Sequence[int] = ()) -> Load:
    """Ask for `seconds` over so many connections, each sending its next request when the last one is answered."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    # wrk counts in whole seconds.
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s", "-s", str(SCRIPT)]
    pin = ["taskset", "-c", ",".join(map(str, cores))] if cores else []
    done = subprocess.run(
        [*pin, *command, f"http://127.0.0.1:{port}", "--", str(requests)],
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + 60,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(f"wrk failed: {(done.stderr or done.stdout).strip()[-500:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = json.loads(lines[-1])
    return Load(
        answered=found["requests"] - found["status"],
        refused=found["status"],
        broken=found["connect"] + found["read"] + found["write"] + found["timeout"],
        seconds=found["seconds"],
        p50_ms=found["p50_ms"],
        p99_ms=found["p99_ms"],
        client_cpu_s=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    )
