"""What a job and its ranks tell each other through files. Imports nothing heavy: the job has no torch."""

from pathlib import Path
from typing import Any

import msgspec

from argosy.core.digest import sha256_file
from argosy.core.errors import Conflict
from argosy.train.config import ModelConfig, TrainConfig
from argosy.train.hosts import Hosts

WEIGHTS = "model.safetensors"
RESULT = "outcome.json"
CHECKPOINTS = "checkpoints"
NEWS = "news.jsonl"
AGREEMENT = "agreement.json"


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
    hosts: Hosts = Hosts()
    """Those that train together, and which this is."""
    code: str
    """The digest of the model's code when the training began: all ranks run the same."""

    def check_code(self) -> None:
        """Raise Conflict if the model's code is not what it was when the training began."""
        if code_digest(self.model, Path(self.base)) != self.code:
            raise Conflict(
                f"rank {self.rank} would run other code than the rest: '{self.model.build.partition(':')[0]}.py' was "
                "edited while the training went on",
                hint="put the file back as it was and run again to go on, or run with the new one to begin anew",
                code="other_code",
            )


def code_digest(model: ModelConfig, base: Path) -> str:
    """Return the digest of the file that builds the model, empty for a built-in family."""
    if not model.build:
        return ""
    path = base.joinpath(*model.build.partition(":")[0].split(".")).with_suffix(".py")
    return sha256_file(path) if path.is_file() else ""


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
