"""A data plane without sockets: replicas that answer when told, a clock that moves when told."""

from random import Random

import msgspec
import numpy as np

from argosy.core.clock import FakeClock
from argosy.core.tensors import Signature, TensorSpec
from argosy.serve import wire
from argosy.serve.control import EndpointRoute, GatewayConfig
from argosy.serve.dataplane import DataPlane
from argosy.serve.pool import Replica
from argosy.serve.wire import Tensor

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 1)),),
)
KEY = "ab" * 16


def digest(name):
    return "sha256:" + name.encode().hex().ljust(64, "0")


class Wire:
    """The replica's end of a connection: frames the gateway has sent."""

    def __init__(self):
        self.reader = wire.FrameReader()
        self.frames = []
        self.is_aborted = False

    def writelines(self, pieces):
        self.frames += [(f, bytes(b)) for f, b in self.reader.feed(b"".join(bytes(p) for p in pieces))]

    def write(self, piece):
        self.writelines([piece])

    def abort(self):
        self.is_aborted = True


class FakeReplica:
    """One replica: `take` gives the batch in its hands, `answer` and the others end it."""

    def __init__(self, plane, version, name, signature=SIGNATURE, max_batch=8):
        self.plane = plane
        self.version = version
        self.wire = Wire()
        hello = wire.Hello(name, 1, digest(version), f"m:{version}", signature, max_batch, 0.001)
        self.inside = Replica(hello, self.wire, plane.pool)
        plane.pool.joined(self.inside)

    @property
    def run(self):
        """The batch it was handed last, if it still owes the answer."""
        runs = [(f, b) for f, b in self.wire.frames if isinstance(f, wire.Run)]
        return runs[-1] if runs and self.inside.owed == runs[-1][0].batch else None

    def _done(self, done, body=b""):
        self.plane.pool.heard(self.inside)
        self.inside.done(done, memoryview(body))
        self.plane.pool.finished(self.inside)

    def answer(self, value=None, failures=()):
        """Answer each row with `value`, or with the first number of its input."""
        order, body = self.run
        x = np.frombuffer(body, "float32").reshape(order.inputs[0][2])
        y = x[:, :1] if value is None else np.full((len(x), 1), value, "float32")
        keep = np.repeat([i not in {f.index for f in failures} for i in range(len(order.rows))], order.rows)
        y = np.ascontiguousarray(y[keep])
        outputs = (wire.Output("y", "FP32", y.shape),) if len(y) else ()
        self._done(wire.Done(order.batch, 0.001, outputs, tuple(failures)), y.tobytes())

    def fail(self, code="model_run_failed"):
        order, _ = self.run
        self._done(wire.Done(order.batch, 0.001, error=(code, "it failed")))

    def fail_each(self, code="model_run_failed", *, is_callers=False):
        order, _ = self.run
        self.answer(failures=[wire.Failure(i, code, "it failed", is_callers) for i in range(len(order.rows))])

    def die(self):
        self.plane.pool.gone(self.inside)

    def says(self, **changes):
        """Say hello again, with changes."""
        self.inside.greeted(msgspec.structs.replace(self.inside.hello, **changes))
        self.plane.pool.learned(self.inside)

    @property
    def asked_solo(self):
        """The threads that it was asked to get an engine with, each time it was."""
        return [frame.threads for frame, _ in self.wire.frames if isinstance(frame, wire.GoSolo)]

    def beat(self):
        self.plane.pool.heard(self.inside)


class World:
    """A data plane, its clock, and what it answered."""

    def __init__(self, **changes):
        self.clock = FakeClock()
        self.config = GatewayConfig(socket="", state="", key=KEY, **changes)
        self._later = []
        self.plane = DataPlane(self.config, self.clock, Random(7), self._later.append)
        self.calls = []
        self._count = 0

    def replica(self, version="1", **changes):
        self._count += 1
        return FakeReplica(self.plane, version, f"r{self._count}", **changes)

    def route(self, stable="1", **changes):
        for role in ("canary", "backup"):
            if role in changes:
                name = changes[role]
                changes |= {role: digest(name), f"{role}_ref": f"m:{name}"}
        self.plane.set_routes([EndpointRoute(name="m", stable=digest(stable), stable_ref=f"m:{stable}", **changes)])

    def ask(self, *rows, **changes):
        """Send a request and return its call; `turn` hands it to a replica."""
        array = np.array(rows or [(1.0, 2.0)], "float32")
        tensor = Tensor("x", "FP32", array.shape, array.tobytes())
        return self.plane.infer(self.plane.endpoint("m"), {"x": tensor}, self.calls.append, **changes)

    def turn(self):
        """End a turn of the event loop."""
        while self._later:
            self._later.pop(0)()

    def send(self, *rows, **changes):
        call = self.ask(*rows, **changes)
        self.turn()
        return call

    def advance(self, seconds, *alive):
        """Let time pass in steps as the gateway ticks; the replicas `alive` give signs of life."""
        steps = max(1, round(seconds / 0.1))
        for _ in range(steps):
            self.clock.advance(seconds / steps)
            for replica in alive:
                replica.beat()
            self.plane.tick()
        self.turn()

    def windows(self):
        self.plane.windows.tick()
        return self.plane.windows.closed({})


def values(call):
    """The answer as a list of rows."""
    assert call.error is None, call.error
    return [float(v) for v in np.frombuffer(call.outputs[0].data, "float32")]
