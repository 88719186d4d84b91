"""A gateway and replicas as real processes, for tests: publish ONNX files, route to them, ask over HTTP."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np

from argosy.cluster.launcher import ProcessSpec, stop_all
from argosy.cluster.local import LocalLauncher
from argosy.core.clock import SystemClock
from argosy.core.config import load_settings
from argosy.registry.registry import open_registry
from argosy.registry.versions import Evaluation, Manifest
from argosy.serve.control import EndpointRoute, FrontConfig, GatewayClient, GatewayConfig, ReplicaConfig

KEY = "00112233445566778899aabbccddeeff"


def graph(nodes, inputs, outputs, weights=()):
    """Return the bytes of an ONNX model; inputs and outputs are (name, element type, shape with None for free)."""
    from onnx import TensorProto, checker, helper, numpy_helper

    def value(name, kind, shape):
        return helper.make_tensor_value_info(name, getattr(TensorProto, kind), shape)

    made = helper.make_model(
        helper.make_graph(
            [helper.make_node(op, taken, given, **attributes) for op, taken, given, attributes in nodes],
            "g",
            [value(*spec) for spec in inputs],
            [value(*spec) for spec in outputs],
            [numpy_helper.from_array(array, name) for name, array in weights],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    checker.check_model(made)
    return made.SerializeToString()


def linear(seed=0, inputs=4, outputs=3):
    """y = x W + b, told apart by its seed."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(inputs, outputs)).astype("float32")
    bias = rng.normal(size=outputs).astype("float32")
    nodes = [("MatMul", ["x", "w"], ["h"], {}), ("Add", ["h", "b"], ["y"], {})]
    return graph(
        nodes, [("x", "FLOAT", ["n", inputs])], [("y", "FLOAT", ["n", outputs])], [("w", weights), ("b", bias)]
    )


def constant(value):
    """y = value, whatever x is: tells which version answered."""
    nodes = [("Mul", ["x", "zero"], ["h"], {}), ("Add", ["h", "v"], ["y"], {})]
    weights = [("zero", np.zeros(1, "float32")), ("v", np.full(1, value, "float32"))]
    return graph(nodes, [("x", "FLOAT", ["n", 1])], [("y", "FLOAT", ["n", 1])], weights)


def logarithm():
    """y = log x: not a number below 0, minus infinity at 0."""
    return graph([("Log", ["x"], ["y"], {})], [("x", "FLOAT", ["n", 1])], [("y", "FLOAT", ["n", 1])])


def slow(layers=6, width=768, value=0.0):
    """A model whose single run takes some milliseconds; its output is `value`."""
    weight = (np.eye(width) * 1e-3).astype("float32")
    nodes = [("Expand", ["x", "shape"], ["h0"], {})]
    nodes += [("MatMul", [f"h{i}", "w"], [f"h{i + 1}"], {}) for i in range(layers)]
    nodes += [
        ("ReduceMean", [f"h{layers}"], ["m"], {"axes": [1], "keepdims": 1}),
        ("Mul", ["m", "zero"], ["z"], {}),
        ("Add", ["z", "v"], ["y"], {}),
    ]
    weights = [
        ("w", weight), ("shape", np.array([1, width], "int64")), ("zero", np.zeros(1, "float32")),
        ("v", np.full(1, value, "float32")),
    ]  # fmt: skip
    return graph(nodes, [("x", "FLOAT", ["n", 1])], [("y", "FLOAT", ["n", 1])], weights)


class Served:
    """One home with a gateway."""

    def __init__(self):
        # Short, because a Unix socket's path has at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="argosy-t-"))
        self.settings = load_settings(
            {"ARGOSY_HOME": str(self.folder / "home"), "ARGOSY_RUNTIME": str(self.folder / "run"), "USER": "test"}
        )
        self.registry = open_registry(self.settings, SystemClock())
        self.launcher = LocalLauncher(self.folder / "processes")
        self.socket = str(self.folder / "run" / "g.sock")
        self.client = GatewayClient(self.socket)
        self.port = 0
        self._count = 0
        self.held = []

    def close(self):
        self.client.close()
        for connection in self.held:
            connection.close()
        for info in self.launcher.list():
            if info.alive:
                # A test may have stopped it in its tracks.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(info.pid, signal.SIGCONT)
        stop_all(self.launcher, [info.name for info in self.launcher.list()], grace_s=2.0)
        shutil.rmtree(self.folder, ignore_errors=True)

    def publish(self, model, name="m", *, signature=None, prepare=(), finish=()):
        from argosy.formats.onnx_runtime import OnnxRunner
        from argosy.registry.versions import FileRef

        digest = self.registry.blobs.put(model)
        manifest = Manifest(
            name=name,
            created=0.0,
            role="imported",
            task="tensor",
            format="onnx",
            signature=signature or OnnxRunner.load(model).signature,
            prepare=list(prepare),
            finish=list(finish),
            files={"model.onnx": FileRef(digest=digest, size_bytes=len(model))},
            evaluation=Evaluation(kind="self-check", passed=True, metrics={}, gates=[], samples=0),
        )
        return self.registry.versions.publish(manifest)

    def gateway(self, **changes):
        config = GatewayConfig(
            **{"socket": self.socket, "state": str(self.folder / "run" / "routes.json"), "key": KEY, "port": self.port}
            | changes
        )
        self.launcher.start(
            ProcessSpec(
                name=f"gateway-{self._next()}",
                role="gateway",
                entry="argosy.serve.gateway:main",
                config=msgspec.to_builtins(config),
            )
        )
        self.port = until(lambda: self.client.status().port)
        return self

    def replica(self, version, name="", **changes):
        name = name or f"replica-{self._next()}"
        config = ReplicaConfig(
            id=name, digest=version.digest, ref=str(version), socket=self.socket, store=self.settings.store,
            home=str(self.settings.home), **{"threads": 1} | changes,
        )  # fmt: skip
        self.launcher.start(
            ProcessSpec(
                name=name,
                role="replica",
                entry="argosy.serve.replica:main",
                config=msgspec.to_builtins(config),
                threads=1,
            )
        )
        return name

    def front(self, **changes):
        """Start a process that speaks HTTP for the gateway, which needs `fronts=1` or more."""
        name = f"front-{self._next()}"
        config = FrontConfig(**{"name": name, "socket": self.socket, "host": "127.0.0.1", "port": self.port} | changes)
        self.launcher.start(
            ProcessSpec(
                name=name, role="front", entry="argosy.serve.front:main", config=msgspec.to_builtins(config), threads=1
            )
        )
        until(lambda: name in self.client.status().fronts)
        return name

    def _next(self):
        self._count += 1
        return self._count

    def ready(self, *names):
        """Wait until these replicas are connected and ready."""
        until(lambda: {r.id for r in self.client.status().replicas if r.state == "ready"} >= set(names))
        return self

    def pid(self, name):
        return self.launcher.get(name).pid

    def route(self, stable, name="m", **changes):
        """Route one endpoint, all others are gone."""
        canary = changes.pop("canary", None)
        backup = changes.pop("backup", None)
        if canary is not None:
            changes |= {"canary": canary.digest, "canary_ref": str(canary)}
        if backup is not None:
            changes |= {"backup": backup.digest, "backup_ref": str(backup)}
        self.client.set_routes([EndpointRoute(name=name, stable=stable.digest, stable_ref=str(stable), **changes)])
        return self

    def route_all(self, routes):
        """Route several endpoints: name, version, and how the version is called."""
        self.client.set_routes(
            [EndpointRoute(name=name, stable=version.digest, stable_ref=ref) for name, version, ref in routes]
        )
        return self

    def ask(self, method, path, body=None, headers=None, timeout=10.0):
        """Return status, headers in lower case, and the body, decoded if it is JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            data = json.dumps(body) if isinstance(body, dict | list) else body
            connection.request(method, path, data, headers or {})
            answer = connection.getresponse()
            found = {key.lower(): value for key, value in answer.getheaders()}
            raw = answer.read()
        is_json = found.get("content-type", "").startswith("application/json")
        return answer.status, found, json.loads(raw) if is_json and raw else raw

    def infer(self, rows, name="m", headers=None, path=None, timeout=10.0):
        """Send FP32 rows as input x."""
        array = np.asarray(rows, dtype="float32")
        body = {
            "inputs": [{"name": "x", "datatype": "FP32", "shape": list(array.shape), "data": array.ravel().tolist()}]
        }
        return self.ask("POST", path or f"/v2/models/{name}/infer", body, headers, timeout)

    def raw(self, data=b""):
        """Return a plain connection, after sending `data`."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=15)
        self.held.append(connection)
        if data:
            connection.sendall(data)
        return connection

    def rss_bytes(self, role):
        pid = next(info.pid for info in self.launcher.list(role) if info.alive)
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def cpu_s(self, role):
        pid = next(info.pid for info in self.launcher.list(role) if info.alive)
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def until(condition, seconds=20.0):
    """Return the first true value of `condition`, polled; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        error = None
        try:
            found = condition()
        except Exception as caught:  # noqa: BLE001 - whatever it is, it may be over in a moment
            found, error = None, caught
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not so after {seconds} s") from error
        time.sleep(0.01)
