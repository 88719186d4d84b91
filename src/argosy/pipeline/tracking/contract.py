"""What logs a training, and who tells it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from argosy.core.progress import Progress, Reporter


class Tracker(Protocol):
    """Takes the numbers of a training. No method raises or waits for long: a training must not fail for its log."""

    def settings(self, values: Mapping[str, Any]) -> None:
        """Take what the training was asked to do, once."""
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take finite numbers as of `step`."""
        ...

    def close(self, *, failed: bool) -> None:
        """Write what is still to be written, and say how it ended."""
        ...


class Tracking:
    """Hands news on, and tells trackers the numbers in it that have changed."""

    def __init__(self, trackers: list[Tracker], report: Reporter) -> None:
        self._trackers, self._report = trackers, report
        self._last: dict[str, float] = {}

    def __call__(self, news: Progress) -> None:
        """Take one piece of news."""
        self._report(news)
        if news.unit == "steps":
            self.log(int(news.done), news.values)

    def settings(self, values: Mapping[str, Any]) -> None:
        """Tell the settings."""
        for tracker in self._trackers:
            tracker.settings(values)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Tell finite numbers that differ from those told before."""
        found = {name: float(x) for name, x in values.items() if isinstance(x, int | float) and math.isfinite(x)}
        changed = {name: value for name, value in found.items() if self._last.get(name) != value}
        self._last |= changed
        if changed:
            for tracker in self._trackers:
                tracker.log(step, changed)

    def log_rest(self, history: Sequence[Mapping[str, Any]], steps: int) -> None:
        """Tell the numbers of whole epochs that were in no news, such as F1."""
        known = {*self._last, "epoch", "seconds"}
        for number, entry in enumerate(history, 1):
            rest = {name: value for name, value in entry.items() if name not in known}
            self.log(round(steps * number / len(history)), rest)

    def close(self, *, failed: bool = False) -> None:
        """End the logs."""
        for tracker in self._trackers:
            tracker.close(failed=failed)
