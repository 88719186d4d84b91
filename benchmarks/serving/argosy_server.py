"""Argosy as its users run it: the installed command, a home of its own, a key for every request."""

import contextlib
import hashlib
import json
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serving.contenders import environment
from serving.dialects import ArgosyDialect
from serving.environments import Failed, discard
from serving.models import Model
from serving.processes import Tree, free_port
from serving.running import START_S, Cell, Place, Server

DEPLOY_S = 300.0
CALIBRATED_S = 90.0


class ArgosyServer(Server):
    """`argosy deploy` the first time, `argosy up` for every turn after it, with access control, limits and metrics on.

    `options` are further arguments of `deploy`. Without any, replicas, threads and batches are what calibration chose.
    """

    def __init__(
        self, programs: Path, homes: Path, *, name: str = "argosy", title: str = "Argosy", options: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.name, self.title = name, title
        self._argosy = programs / "argosy"
        self.homes = homes
        self._options = options
        self._ports: dict[str, int] = {}
        self._keys: dict[str, Mapping[str, str]] = {}
        self.sources: dict[str, Path] = {}
        """What to deploy where it is not the model's ONNX file."""
        self.deployed_s: dict[str, float] = {}
        """From `argosy deploy` to the first answer, publishing and its checks included."""
        self.dialect = ArgosyDialect({"resnet18": "image"})

    def home(self, model: Model) -> Path:
        """Return the home that serves a model."""
        return self.homes / f"{self.name}-{model.name}"

    def start(self, place: Place) -> float:
        self._enter(place)
        if place.model.name not in self._ports:
            self.deploy(place)
        self.port = self._ports[place.model.name]
        self.headers = self._keys[place.model.name]
        began = time.monotonic()
        starter = self._run("up")
        seconds = self.await_answer(place, began, starter)
        if starter.wait(timeout=START_S):
            raise Failed(f"argosy up failed: {self.last_words()}")
        time.sleep(1.0)  # replicas after the first begin to load when that one answers
        self.serve(place)
        return seconds

    def measure(self, connections: int, seconds: float) -> Cell:
        found = super().measure(connections, seconds)
        found.extra["gateway_pss_mb"], found.extra["gateway_rss_mb"] = self.tree.memory_mb("/gateway/")
        return found

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """Go on: its replicas would be taken for frozen. What it does meanwhile is in `others_cpu`."""
        return contextlib.nullcontext()

    def stop(self) -> None:
        if hasattr(self, "tree"):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._run("down").wait(timeout=60)
            self.tree.stop()

    def deploy(self, place: Place) -> None:
        """Deploy for the first time and grant a key, wait for the calibration, and stop the endpoint again.

        Without right answers yet, none is waited for.
        """
        model = place.model
        self._enter(place)
        discard(self.home(model))
        self.log.write_bytes(b"")
        self.port = free_port()
        self.headers = {}
        began = time.monotonic()
        try:
            self._ok(
                "deploy",
                self.sources.get(model.name, place.folder / "model.onnx"),
                *("--name", model.name, "--port", self.port, *self._options),
            )
            key = json.loads(self._ok("access", "grant", "benchmark", "--endpoint", model.name, "--json"))["key"]
            self.headers = {"Authorization": f"Bearer {key}"}
            if (place.folder / "answers.npy").exists():
                self.deployed_s[model.name] = self.await_answer(place, began, None)
            self._await_calibration(model)
            self._ok("down")
        finally:
            self.tree.stop()
        self._ports[model.name], self._keys[model.name] = self.port, self.headers

    def files(self, place: Place) -> dict[str, Path]:
        """Return the files of the version that is served, by name, each with its bytes checked against its digest."""
        self._enter(place)
        shown = json.loads(self._ok("models", "show", place.model.name, "--json"))
        found = {}
        for name, file in shown["manifest"]["files"].items():
            digest = file["digest"].removeprefix("sha256:")
            path = self.home(place.model) / "store" / "blobs" / "sha256" / digest[:2] / digest
            if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                raise Failed(f"'{name}' of {place.model.name} is not what its manifest says")
            found[name] = path
        return found

    def profile(self, model: Model) -> dict[str, Any]:
        """Return what calibration found out about a model, empty if nothing is stored."""
        stored = sorted((self.home(model) / "cache" / "calibration").glob("*.json"))
        return json.loads(stored[-1].read_text()) if stored else {}

    def copy_unbatched(self, other: "ArgosyServer", place: Place) -> None:
        """Become `other` with all it has chosen, but with batches of one request."""
        model = place.model
        discard(self.home(model))
        shutil.copytree(other.home(model), self.home(model))
        stored = list((self.home(model) / "cache" / "calibration").glob("*.json"))
        if not stored:
            raise Failed("there is no stored calibration to change")
        for path in stored:
            profile = json.loads(path.read_text())
            for batching in profile["batching"].values():
                batching["max_batch"] = 1
            path.write_text(json.dumps(profile))
        # At a port of its own: both run while they are measured in turns.
        self._enter(place)
        self.port = free_port()
        try:
            source = other.sources.get(model.name, place.folder / "model.onnx")
            self._ok("deploy", source, "--name", model.name, "--port", self.port, *other._options)  # noqa: SLF001
            self._ok("down")
        finally:
            self.tree.stop()
        self._ports[model.name], self._keys[model.name] = self.port, other._keys[model.name]  # noqa: SLF001

    def _enter(self, place: Place) -> None:
        self.tree = Tree(place.cores)
        self._environment = {**environment(), "ARGOSY_HOME": str(self.home(place.model))}
        self.log = place.scratch / f"{self.name}-{place.model.name}.log"
        self.homes.mkdir(parents=True, exist_ok=True)

    def _await_calibration(self, model: Model) -> None:
        """Wait for the first calibration, which takes only time that nobody needs; later starts read its result."""
        end = time.monotonic() + CALIBRATED_S
        while not self.profile(model) and time.monotonic() < end:
            time.sleep(0.2)
        self.tree.settle(CALIBRATED_S)

    def _run(self, *arguments: object) -> subprocess.Popen[bytes]:
        return self.tree.start(
            [str(self._argosy), *map(str, arguments)], self._environment, folder=self.homes, log=self.log
        )

    def _ok(self, *arguments: object) -> str:
        """Return what a command printed; raise Failed with its error."""
        command = self.tree.start(
            [str(self._argosy), *map(str, arguments)], self._environment, folder=self.homes, log=self.log, pipes=True
        )
        said, _ = command.communicate(timeout=DEPLOY_S)
        if command.returncode:
            words = f"{said.decode()[-300:]} {self.last_words()}"
            raise Failed(f"argosy {arguments[0]} ended with status {command.returncode}: {words}")
        return said.decode()
