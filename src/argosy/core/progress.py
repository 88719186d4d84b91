"""What long work tells about itself while it runs: plain events, shown by whoever listens."""

import time
from collections.abc import Callable
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


def seldom(report: Reporter, every_s: float = 0.5, now: Callable[[], float] = time.monotonic) -> Reporter:
    """Return a listener that passes on a piece of news every `every_s` at most, the first one after that time."""
    told = now()

    def tell(news: Progress) -> None:
        nonlocal told
        if now() - told >= every_s:
            told = now()
            report(news)

    return tell
