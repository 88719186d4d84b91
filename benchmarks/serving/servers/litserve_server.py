"""LitServe: an HTTP process and worker processes, with its own batching (`batch_timeout` 0 takes what is waiting)."""

from typing import Annotated, Any

import litserve
from engine import Engine, Row, settings
from fastapi import Body

ASKED = settings()
BATCH = ASKED.get("max_batch", 1)


class Api(litserve.LitAPI):
    """What LitServe calls in its workers; with `max_batch_size` 1 it hands over single requests."""

    def setup(self, device: str) -> None:  # noqa: ARG002
        """Load the model."""
        self.engine = Engine(ASKED["model"], ASKED["folder"], ASKED["threads"])

    def decode_request(self, request: dict[str, Any]) -> Any:
        """Return the input of one request."""
        return request["text"] if ASKED["model"] == "minilm" else request["x"]

    def batch(self, inputs: list[Any]) -> list[Any]:
        """Leave the joining of rows to the engine."""
        return inputs

    def predict(self, x: Any) -> Row | list[Row]:
        """Answer a batch, or one request."""
        return list(self.engine(x)) if BATCH > 1 else self.engine([x])[0]

    def unbatch(self, output: list[Row]) -> list[Row]:
        """See `batch`."""
        return output

    def encode_response(self, output: Row) -> dict[str, Any]:
        """Return the answer as JSON."""
        return {"y": output.tolist()}


class ImageApi(Api):
    """The same for raw pixels in the body."""

    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]) -> bytes:
        """Return the body as it is."""
        return request


if __name__ == "__main__":
    made = (ImageApi if ASKED["model"] == "resnet18" else Api)(
        max_batch_size=BATCH, batch_timeout=ASKED.get("batch_timeout_s", 0.0)
    )
    server = litserve.LitServer(
        made, accelerator="cpu", devices=1, workers_per_device=ASKED.get("workers", 1), fast_queue=ASKED["fast_queue"]
    )
    server.run(
        host="127.0.0.1",
        port=ASKED["port"],
        num_api_servers=ASKED.get("api_servers", 1),
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )
