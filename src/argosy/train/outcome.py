"""What a job and its ranks tell each other through files. Imports nothing heavy: the job has no torch."""

from typing import Any

import msgspec

from argosy.train.config import ModelConfig, TrainConfig

WEIGHTS = "model.safetensors"
RESULT = "outcome.json"
CHECKPOINTS = "checkpoints"
NEWS = "news.jsonl"


class RankSetup(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a rank is told."""

    rank: int
    segment: str
    """Path of the shared memory, open while the job lives."""
    threads: int
    dataset: str
    model: ModelConfig
    train: TrainConfig
    base: str
    work: str
    made_by: str
    """Names data, model and settings by digest: checkpoints of another training are refused."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a finished training leaves beside its weights."""

    made_by: str
    digest: str
    history: list[dict[str, Any]]
    epochs: int
    steps: int
    metric: str
    best_metric: float
    seconds: float
