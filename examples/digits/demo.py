"""The whole life of a model, by the commands a user would type: `make demo`.

Trains, compresses, publishes and deploys a model of real handwritten digits; then, under steady traffic, rolls out a
better version (promoted), a bad one that passed its offline gates (rolled back by the judge), kills a replica, and
traces one prediction back to its data. Everything it says at the end is read from what happened, and it fails if
something that was promised did not.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from traffic import Traffic

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
HOME = ROOT / ".demo"
ARGOSY = Path(sys.executable).parent / "argosy"
RATE = float(os.environ.get("ARGOSY_DEMO_RATE", "150"))

BOLD, DIM, GREEN, RED, OFF = (
    ("\033[1m", "\033[2m", "\033[32m", "\033[31m", "\033[0m") if sys.stdout.isatty() else [""] * 5
)


class Demo:
    """Runs commands, shows them, and remembers what they proved."""

    def __init__(self) -> None:
        self.environment = {**os.environ, "ARGOSY_HOME": str(HOME)}
        self.environment.pop("ARGOSY_STORE", None)
        self.began = time.monotonic()
        self.checks: list[tuple[bool, str]] = []

    def title(self, text: str) -> None:
        print(f"\n{BOLD}== {text}{OFF} {DIM}({time.monotonic() - self.began:.0f} s){OFF}", flush=True)

    def command(self, *arguments: str, may_fail: bool = False) -> int:
        """Run a command as typed, with its own output."""
        print(f"{BOLD}$ argosy {' '.join(arguments)}{OFF}", flush=True)
        done = subprocess.run([ARGOSY, *arguments], cwd=HERE, env=self.environment, check=False)
        if done.returncode and not may_fail:
            raise SystemExit(f"{RED}'argosy {' '.join(arguments)}' failed with exit code {done.returncode}{OFF}")
        return done.returncode

    def ask(self, *arguments: str) -> Any:
        """Return what a command says with --json, without showing it."""
        done = subprocess.run(
            [ARGOSY, *arguments, "--json"], cwd=HERE, env=self.environment, check=False, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{RED}'argosy {' '.join(arguments)} --json' failed: {done.stdout}{done.stderr}{OFF}")
        return json.loads(done.stdout)

    def check(self, holds: bool, says: str) -> None:
        self.checks.append((holds, says))

    def endpoint(self) -> dict[str, Any]:
        return next(e for e in self.ask("watch", "digits", "--once")["endpoints"] if e["name"] == "digits")


def main() -> int:
    demo = Demo()
    demo.title("A fresh start: data and an empty home")
    with contextlib.suppress(OSError):
        subprocess.run([ARGOSY, "down"], env=demo.environment, check=False, capture_output=True)
    shutil.rmtree(HOME, ignore_errors=True)
    print(f"{BOLD}$ export ARGOSY_HOME={HOME}\n$ cd {HERE}\n$ python make_data.py{OFF}", flush=True)
    subprocess.run([sys.executable, HERE / "make_data.py"], check=True)

    demo.title("Train on two processes, compress to the budget, check the gates, sign and publish")
    demo.command("plan")
    demo.command("run")
    original, compressed = published(demo, 0)
    compare(demo, original, compressed)

    demo.title("Serve it")
    demo.command("deploy", "--port", "0")
    url = demo.ask("watch", "digits", "--once")["url"]
    traffic = Traffic(url, "digits", HERE / "data" / "test.npz", RATE)
    print(f"traffic: {RATE:.0f} real images a second to {url}/predict/digits, some of them blank", flush=True)
    traffic.start()
    try:
        better(demo)
        fragile(demo, traffic)
        killed(demo, traffic)
    finally:
        seen = traffic.stop()
    trace(demo, traffic)
    return summary(demo, seen, traffic, url)


def published(demo: Demo, skip: int) -> list[dict[str, Any]]:
    """Return the versions that the last run published, as `models list` tells them."""
    return demo.ask("models", "list", "digits")[skip:]


def compare(demo: Demo, original: dict[str, Any], compressed: dict[str, Any]) -> None:
    """Check what the compression was to hold: on the independent test part, and as measured on this machine."""
    before, after = (v["manifest"]["evaluation"]["metrics"]["accuracy"] for v in (original, compressed))
    sizes = [v["manifest"]["files"]["model.onnx"]["size_bytes"] for v in (original, compressed)]
    recipe = compressed["manifest"]["lineage"]["recipe"]
    ratios = {"smaller": sizes[0] / sizes[1], "faster": float(recipe.get("times_faster", 0.0))}
    demo.check(before >= 0.97, f"test accuracy {before:.2%} before compression")
    demo.check(before - after <= 0.01 + 1e-9, f"test accuracy {after:.2%} after it: {before - after:+.2%} less")
    demo.check(
        ratios["smaller"] >= 3 or ratios["faster"] >= 2,
        f"compressed: {ratios['smaller']:.1f}x smaller on disk, {ratios['faster']:.1f}x faster, measured here",
    )


def better(demo: Demo) -> None:
    demo.title("A better version: wider, trained longer; canary under traffic")
    demo.command("run", "--set", "model.options.width=32", "--set", "train.epochs=10", "--set", 'compress.size="250kB"')
    demo.command("deploy")
    last = demo.endpoint()["last"]
    demo.check(
        last["outcome"] == "promoted",
        f"rollout of {last['to']['ref']}: {last['outcome'].replace('_', ' ')} ({last['reason']})",
    )


def fragile(demo: Demo, traffic: Traffic) -> None:
    demo.title("A bad version: passes its offline gates, fails on blank frames that only live traffic has")
    demo.command("run", "--file", "fragile.toml")
    version = published(demo, -1)[0]
    demo.check(
        version["manifest"]["evaluation"]["passed"],
        f"{version['version']} passed its offline gates with accuracy "
        f"{version['manifest']['evaluation']['metrics']['accuracy']:.2%}",
    )
    before = traffic.seen()
    demo.command("deploy", version["version"], may_fail=True)
    last = demo.endpoint()["last"]
    saved = traffic.seen().get("saved by another version", 0) - before.get("saved by another version", 0)
    demo.check(
        last["outcome"] == "rolled_back",
        f"rollout of {last['to']['ref']}: {last['outcome'].replace('_', ' ')} ({last['reason']})",
    )
    demo.check(
        saved > 0, f"{saved} requests that {last['to']['ref']} failed were answered by the stable version instead"
    )


def killed(demo: Demo, traffic: Traffic) -> None:
    demo.title("A replica dies")
    before = traffic.seen()
    serving, pids = ready_replicas(demo)
    victim = min(pids)
    print(f"{BOLD}$ kill -9 {victim}{OFF}   # one of {len(pids)} replicas of {serving}", flush=True)
    killed_at = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    while True:
        _, now = ready_replicas(demo)
        if len(now) >= len(pids) and victim not in now:
            break
        if time.monotonic() - killed_at > 30:
            demo.check(False, "the killed replica was not replaced within 30 s")
            return
        time.sleep(0.2)
    took = time.monotonic() - killed_at
    time.sleep(1.0)
    after = traffic.seen()
    lost = after.get("failed", 0) - before.get("failed", 0)
    answered = after["answered"] - before["answered"]
    print(f"replaced after {took:.1f} s; {answered} requests answered meanwhile, {lost} failed")
    demo.check(
        lost == 0, f"a replica killed under traffic: replaced in {took:.1f} s, {lost} of {answered} requests lost"
    )


def ready_replicas(demo: Demo) -> tuple[str, set[int]]:
    """Return the version that serves, and the processes that are ready to answer for it."""
    current = next(version for version in demo.endpoint()["versions"] if version["role"] == "current")
    return current["ref"], {r["pid"] for r in current["replicas"] if r["state"] == "ready"}


def trace(demo: Demo, traffic: Traffic) -> None:
    demo.title("Why did it answer that?")
    demo.command("why", traffic.last_prediction)
    demo.command("audit", "verify")


def summary(demo: Demo, seen: dict[str, int], traffic: Traffic, url: str) -> int:
    failed = seen.get("failed", 0)
    accuracy = seen.get("right", 0) / max(1, seen.get("digits", 0))
    demo.check(
        failed == 0, f"{seen['answered']} requests answered, {failed} failed; {accuracy:.2%} of the digits right"
    )
    demo.title("Summary")
    for holds, says in demo.checks:
        print(f"  {GREEN}✓{OFF} {says}" if holds else f"  {RED}✗ {says}{OFF}")
    for says in traffic.failures:
        print(f"    {says}")
    by = {name.removeprefix("by "): count for name, count in sorted(seen.items()) if name.startswith("by ")}
    print(f"  answered by: {', '.join(f'{name} {count}' for name, count in by.items())}")
    print(f"\n  endpoint   {url}/predict/digits   (v2: {url}/v2/models/digits)")
    print(f"  look       ARGOSY_HOME='{HOME}' '{ARGOSY}' watch")
    print(f"  stop       ARGOSY_HOME='{HOME}' '{ARGOSY}' down")
    print(f"  {time.monotonic() - demo.began:.0f} s in all")
    return 0 if all(holds for holds, _ in demo.checks) else 1


if __name__ == "__main__":
    sys.exit(main())
