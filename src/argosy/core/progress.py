"""What long work tells about itself while it runs: plain events, shown by whoever listens."""

from typing import Any, Protocol

import msgspec


class Progress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One piece of news. `done` and `total` are in `unit`; `values` are numbers worth showing, such as the loss.

    `is_note` is for what must be seen: it gets a line of its own, while other news may be passed over.
    """

    stage: str
    message: str = ""
    done: float = 0.0
    total: float = 0.0
    unit: str = ""
    left_s: float = -1.0
    values: dict[str, Any] = {}
    is_note: bool = False


class Reporter(Protocol):
    """Whoever listens."""

    def __call__(self, news: Progress) -> None:
        """Take one piece of news; must return at once."""
        ...


def silent(news: Progress) -> None:
    """Listen to nothing."""
