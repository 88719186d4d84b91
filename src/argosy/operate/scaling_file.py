"""What the controller says of scaling, for those who look: a small file, because it is no fact that must last."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from argosy.core.config import Config
from argosy.core.errors import ArgosyError
from argosy.core.files import write_atomic

NAME = "scaling.json"
"""Of the file, in the runtime folder."""
_MOST_BYTES = 1 << 20


class ScalingView(Config, frozen=True):
    """What is known of scaling one endpoint, for people."""

    low: int
    high: int
    wanted: int
    """Replicas that its load calls for."""
    granted: int
    """Of these, how many the machine has room for."""
    reason: str
    """Why so many are wanted."""
    limit: str = ""
    """Why not all of them are granted."""
    target: float = 0.0
    """Requests at once that one replica is for."""
    at_once: float = 0.0
    """Requests at once over the last minute."""
    priority: int = 0
    is_hurried: bool = False
    """Whether the load has risen steeply within the last minute."""


class ScalingFile:
    """What the controller says of scaling, in a file of the runtime folder, for those who look at it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME

    def write(self, views: Mapping[str, ScalingView]) -> None:
        """Replace it; a full disk is no reason not to scale."""
        try:
            write_atomic(self._path, msgspec.json.encode(dict(views)), mode=0o600)
        except (OSError, ArgosyError):
            return

    def read(self) -> dict[str, ScalingView]:
        """Return what was written last; nothing where there is no such file, or a damaged one."""
        try:
            with self._path.open("rb") as stream:
                return msgspec.json.decode(stream.read(_MOST_BYTES), type=dict[str, ScalingView])
        except (OSError, msgspec.MsgspecError, ValueError):
            return {}
