"""FastAPI on uvicorn with uvloop and httptools: the application most people write first.

`pool` runs the model in starlette's thread pool, held to that many threads; without it the event loop runs the model.
Without `threads` the runtime takes as many as it likes; `access_log` is uvicorn's default.
"""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import anyio.to_thread
import uvicorn
from engine import Engine, Input, Row, settings
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

ASKED = settings()
POOL = ASKED.get("pool", 0)
engine: Engine


class Numbers(BaseModel):
    """A request of mlp."""

    x: list[float]


class Text(BaseModel):
    """A request of minilm."""

    text: str


@contextlib.asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Load the model once per worker."""
    global engine
    engine = Engine(ASKED["model"], ASKED["folder"], ASKED.get("threads", 0))
    if POOL:
        anyio.to_thread.current_default_thread_limiter().total_tokens = POOL
    yield


app = FastAPI(lifespan=lifespan)


async def run(item: Input) -> Row:
    """Return the answer of one request."""
    return (await run_in_threadpool(engine, [item]) if POOL else engine([item]))[0]


@app.post("/mlp")
async def mlp(numbers: Numbers) -> dict[str, Any]:
    """64 numbers to 10."""
    return {"y": (await run(numbers.x)).tolist()}


@app.post("/minilm")
async def minilm(text: Text) -> dict[str, Any]:
    """A text to its embedding."""
    return {"y": (await run(text.text)).tolist()}


@app.post("/resnet18")
async def resnet18(request: Request) -> Response:
    """Raw pixels to raw logits."""
    return Response((await run(await request.body())).tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    uvicorn.run(
        "fastapi_server:app",
        host="127.0.0.1",
        port=ASKED["port"],
        workers=ASKED.get("workers", 1),
        loop="uvloop",
        http="httptools",
        log_level="info" if ASKED.get("access_log") else "warning",
        access_log=ASKED.get("access_log", False),
    )
