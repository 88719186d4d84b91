"""Ray Serve: a proxy and replicas as actors, with `@serve.batch` (it takes what is waiting after `batch_wait_s`)."""

import signal
from typing import Any

import ray
from engine import Engine, Input, Row, settings
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

ASKED = settings()
BATCH = ASKED.get("max_batch", 1)


@serve.deployment(num_replicas=ASKED.get("workers", 1), max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.5})
class Served:
    """One replica."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self.asked = asked
        self.engine = Engine(asked["model"], asked["folder"], asked["threads"])

    @serve.batch(max_batch_size=max(BATCH, 1), batch_wait_timeout_s=ASKED.get("batch_wait_s", 0.0))
    async def batched(self, items: list[Input]) -> list[Row]:
        """Answer a batch."""
        return list(self.engine(items))

    async def __call__(self, request: Request) -> Any:
        """Answer one request."""
        model = self.asked["model"]
        if model == "resnet18":
            item: Any = await request.body()
        else:
            item = (await request.json())["text" if model == "minilm" else "x"]
        row = await self.batched(item) if BATCH > 1 else self.engine([item])[0]
        if model == "resnet18":
            return Response(row.tobytes(), media_type="application/octet-stream")
        return {"y": row.tolist()}


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=ASKED["scratch"])
    serve.start(http_options={"host": "127.0.0.1", "port": ASKED["port"]}, logging_config={"enable_access_log": False})
    serve.run(Served.bind(ASKED), name="bench", route_prefix="/")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
