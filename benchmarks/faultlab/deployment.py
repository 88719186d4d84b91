"""A real deployment to hurt: a home of its own, made and changed by the installed `argosy` command."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

from argosy.cluster.launcher import ProcessInfo, stop_all
from argosy.cluster.local import LocalLauncher
from argosy.core.clock import SystemClock
from argosy.core.config import load_settings
from argosy.core.tensors import Signature, TensorSpec
from argosy.operate.processes import gateway_socket, process_folder
from argosy.operate.replicas import key_of, version_key
from argosy.registry.registry import open_registry
from argosy.registry.versions import Evaluation, FileRef, Manifest, Version
from argosy.serve.control import GatewayClient, GatewayStatus, ReplicaStatus

ARGOSY = Path(sys.executable).parent / "argosy"
_COMMAND_S = 120.0

T = TypeVar("T")


class Deployment:
    """One home with its processes; everything is gone when it is closed."""

    def __init__(self) -> None:
        # Short, because a Unix socket's path has at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="faults-"))
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("ARGOSY_")} | {
            "ARGOSY_HOME": str(self.folder / "home"),
            "ARGOSY_RUNTIME": str(self.folder / "run"),
        }
        self.settings = load_settings(self.environment)
        self.launcher = LocalLauncher(process_folder(self.settings))
        self.gateway = GatewayClient(str(gateway_socket(self.settings)))
        self.port = 0
        self._files = 0

    def close(self) -> None:
        """Stop everything and leave nothing behind."""
        for info in self._living():
            with contextlib.suppress(ProcessLookupError):
                os.kill(info.pid, signal.SIGCONT)
        if self.settings.home.exists():
            self("down")
        self.gateway.close()
        stop_all(self.launcher, [info.name for info in self._living()])
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- what a user does

    def __call__(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run the installed command."""
        return subprocess.run(
            [ARGOSY, *map(str, arguments)],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=_COMMAND_S,
            check=False,
        )

    def deploy(self, what: object, name: str = "m", *more: object) -> dict[str, Any]:
        """Deploy and return what the command says; RuntimeError when it fails."""
        done = self("deploy", what, "--name", name, "--json", *more, *(() if self.port else ("--port", "0")))
        if done.returncode:
            raise RuntimeError(f"argosy deploy {what}: {done.stdout}{done.stderr}")
        found: dict[str, Any] = json.loads(done.stdout)
        self.port = int(found["url"].rpartition(":")[2])
        return found

    def shape(self, name: str, replicas: int, rollout: str = "") -> None:
        """Say in the project file how an endpoint is to run, so that every machine measures the same shape."""
        text = f'[project]\nname = "{name}"\n[endpoint]\nreplicas = {replicas}\nthreads = 1\n{rollout}'
        (self.folder / "argosy.toml").write_text(text)

    def settle(self, version: str, count: int) -> None:
        """Wait until so many replicas of a version are ready and calibrated: that takes the machine for itself."""
        until(lambda: len([r for r in self.ready(version) if r.advice is not None]) >= count, seconds=120)

    def file(self, model: bytes) -> Path:
        """Write a model to a file."""
        self._files += 1
        path = self.folder / f"model-{self._files}.onnx"
        path.write_bytes(model)
        return path

    def publish(self, model: bytes, name: str = "m") -> Version:
        """Publish a model as a pipeline does, which trusts what it has made: no check whether it loads."""
        registry = open_registry(self.settings, SystemClock())
        registry.log.refresh()
        digest = registry.blobs.put(model)
        signature = Signature(
            inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 1)),),
            outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 1)),),
        )
        manifest = Manifest(
            name=name,
            created=time.time(),
            role="imported",
            task="tensor",
            signature=signature,
            files={"model.onnx": FileRef(digest=digest, size_bytes=len(model))},
            evaluation=Evaluation(kind="self-check", passed=True, metrics={}, gates=[], samples=0),
        )
        return registry.versions.publish(manifest)

    def damage(self, model: bytes) -> None:
        """Flip a bit of a published model's file, as a disk might."""
        for path in self.settings.home.rglob("*"):
            if path.is_file() and path.stat().st_size == len(model) and path.read_bytes() == model:
                data = bytearray(model)
                data[len(data) // 2] ^= 1
                path.chmod(0o600)
                path.write_bytes(data)

    # ---- what runs

    def status(self) -> GatewayStatus:
        """Return what the gateway sees."""
        return self.gateway.status()

    def replicas(self, version: str = "") -> list[ReplicaStatus]:
        """Return the connected replicas (of a version such as `m:3`)."""
        return [r for r in self.status().replicas if version in ("", r.ref)]

    def ready(self, version: str) -> list[ReplicaStatus]:
        """Return a version's replicas that take requests."""
        return [r for r in self.replicas(version) if r.state == "ready"]

    def processes(self, role: str) -> list[ProcessInfo]:
        """Return the living processes of a role."""
        return [info for info in self.launcher.list(role) if info.alive and info.pid]

    def processes_of(self, version: Version) -> list[ProcessInfo]:
        """Return the living replica processes of a version, connected or not."""
        key = version_key(version.digest)
        return [info for info in self.processes("replica") if key_of(info.name) == key]

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples that have these labels; the name is the sample's, `_bucket` included."""
        import urllib.request

        from prometheus_client.parser import text_string_to_metric_families

        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        total = 0.0
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    total += sample.value
        return total

    def _living(self) -> list[ProcessInfo]:
        return [info for info in self.launcher.list() if info.alive and info.pid]


def until(holds: Callable[[], T], seconds: float = 60.0, every_s: float = 0.01) -> T:
    """Return the first true value, looking often; TimeoutError after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        error: Exception | None = None
        try:
            if found := holds():
                return found
        except Exception as caught:  # noqa: BLE001 - the gateway may be away for a moment
            error = caught
        if time.monotonic() > deadline:
            raise TimeoutError(f"it did not become so within {seconds:g} s") from error
        time.sleep(every_s)
