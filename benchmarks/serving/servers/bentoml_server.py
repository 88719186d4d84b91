"""BentoML with adaptive batching: `bentoml serve bentoml_server:Served`.

A batchable method gets a list; numbers and texts travel as JSON, pixels as an uploaded file, the only binary input that
BentoML's own schemas know.
"""

from pathlib import Path
from typing import Any

import bentoml
from engine import Engine, settings

ASKED = settings()
BATCH = ASKED.get("max_batch", 1)
SERVICE: dict[str, Any] = {
    "workers": ASKED.get("workers", 1),
    "threads": ASKED.get("pool", 1),
    "traffic": {"timeout": 60},
    "logging": {"access": {"enabled": False}},
}
api: Any = (
    bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=ASKED.get("max_latency_ms", 60000))
    if BATCH > 1
    else bentoml.api
)


def answers(engine: Engine, items: Any) -> Any:
    """Return rows for a batch, or one row for one request where batching is off."""
    return engine(items).tolist() if BATCH > 1 else engine([items])[0].tolist()


@bentoml.service(**SERVICE)
class Numbers:
    """mlp."""

    def __init__(self) -> None:
        self.engine = Engine(ASKED["model"], ASKED["folder"], ASKED["threads"])

    if BATCH > 1:

        @api
        def predict(self, x: list[list[float]]) -> list[list[float]]:
            """Answer a batch of rows."""
            return answers(self.engine, x)

    else:

        @api
        def predict(self, x: list[float]) -> list[float]:
            """Answer one row."""
            return answers(self.engine, x)


@bentoml.service(**SERVICE)
class Texts:
    """minilm."""

    def __init__(self) -> None:
        self.engine = Engine(ASKED["model"], ASKED["folder"], ASKED["threads"])

    if BATCH > 1:

        @api
        def predict(self, text: list[str]) -> list[list[float]]:
            """Answer a batch of texts."""
            return answers(self.engine, text)

    else:

        @api
        def predict(self, text: str) -> list[float]:
            """Answer one text."""
            return answers(self.engine, text)


@bentoml.service(**SERVICE)
class Images:
    """resnet18."""

    def __init__(self) -> None:
        self.engine = Engine(ASKED["model"], ASKED["folder"], ASKED["threads"])

    if BATCH > 1:

        @api
        def predict(self, x: list[Path]) -> list[list[float]]:
            """Answer a batch of images."""
            return answers(self.engine, [file.read_bytes() for file in x])

    else:

        @api
        def predict(self, x: Path) -> list[float]:
            """Answer one image."""
            return answers(self.engine, x.read_bytes())


Served = {"mlp": Numbers, "minilm": Texts, "resnet18": Images}[ASKED["model"]]
