"""The same over gRPC, with grpcio's own asyncio client and the messages of tritonclient."""

import asyncio
import random
import struct
import time
from collections.abc import Callable
from typing import Any

from faultlab.http_client import VALUES
from faultlab.tape import CANCELLED, OK, WRONG, Tape


class GrpcGroup:
    """Channels of gRPC, used like a `Group` of HTTP connections."""

    def __init__(self, tape: Tape, loop: asyncio.AbstractEventLoop, number: int, asked: dict[str, Any]) -> None:
        self.tape = tape
        self.loop = loop
        self.number = number
        self.connections = asked.get("connections", 2)
        self.on_free: Callable[[], None] = lambda: None
        self._port = asked["port"]
        self._timeout_s = asked.get("timeout_s", 30.0)
        self._model = asked.get("model", "m")
        self._version = str(asked.get("version") or "")
        self._offsets = {int(k): v for k, v in asked.get("offsets", {}).items()}
        self._cancel_share = asked.get("cancel", 0.0)
        self._cancel_s = asked.get("cancel_s", 0.02)
        self._chance = random.Random(asked.get("seed", 0) * 1000 + number)
        self._base = asked.get("base", number) * VALUES
        self._next = 0
        self._channels: list[Any] = []
        self._stubs: list[Any] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Connect."""
        import grpc
        from tritonclient.grpc import service_pb2_grpc

        for i in range(self.connections):
            # Without an option of its own each channel would share one connection with the others.
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{self._port}", options=[("argosy.channel", i)])
            await channel.channel_ready()
            self._channels.append(channel)
            self._stubs.append(service_pb2_grpc.GRPCInferenceServiceStub(channel))

    def send(self, due: float) -> None:
        """Send a request that was due at `due`."""
        task = self.loop.create_task(self._ask(due))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, due: float) -> None:
        import grpc
        from tritonclient.grpc import service_pb2

        self._next = (self._next + 1) % VALUES
        value = self._base + self._next
        request = service_pb2.ModelInferRequest(model_name=self._model, model_version=self._version)
        tensor = request.inputs.add()
        tensor.name, tensor.datatype = "x", "FP32"
        tensor.shape.extend((1, 1))
        request.raw_input_contents.append(struct.pack("<f", value))
        sent = time.monotonic()
        call = self._stubs[self._next % len(self._stubs)].ModelInfer(request, timeout=self._timeout_s)
        if self._cancel_share and self._chance.random() < self._cancel_share:
            self.loop.call_later(self._chance.uniform(0, self._cancel_s), call.cancel)
        status, version, code = OK, 0, ""
        try:
            answer = await call
        except asyncio.CancelledError:
            status = CANCELLED
        except grpc.aio.AioRpcError as error:
            # Statuses of gRPC stand apart from those of HTTP.
            status, code = 1000 + error.code().value[0], error.code().name.lower()
            self.tape.explain(time=time.monotonic(), kind="grpc", status=status, code=code, body=error.details())
        else:
            version = int(answer.model_version or 0)
            found = struct.unpack("<f", answer.raw_output_contents[0])[0] if answer.raw_output_contents else None
            if found != value + self._offsets.get(version, version):
                status, code = WRONG, "wrong_value"
                self.tape.explain(time=time.monotonic(), kind="grpc", status=status, body=repr(answer), sent=value)
        self.tape.note(self.number, due, sent, time.monotonic(), status, version=version, code=code)
        self.on_free()

    def sweep(self, now: float) -> None:
        """Do nothing: every call has a deadline."""

    @property
    def is_busy(self) -> bool:
        """Whether an answer is owed."""
        return bool(self._tasks)

    async def close(self) -> None:
        """Hang up."""
        for channel in self._channels:
            await channel.close()
