"""Evidence of running rollouts: windows from the gateway to the judge, and in batches to the log.

The judge's state is a function of the windows it saw, in order. So a controller that takes over gives it the windows
in the log, then those the gateway still holds, and stands where its predecessor stood.
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgspec

from argosy.operate.desired import Rollout
from argosy.serve.control import Window

WRITE_EVERY_S = 10.0
"""Windows are written to the log at most so often, and with every decision."""
MOST_WINDOWS = 200
"""Written at once; an entry of the log may have 1 MiB, and a window's two latency histograms 4 KiB."""


class RolloutJudge(Protocol):
    """Takes windows in order; `operate.judging` makes it from the judge of `evaluate`."""

    def take(self, window: Window) -> None:
        """Take the next window."""
        ...

    def verdict(self) -> dict[str, Any]:
        """Return `verdict` (promote, wait, rollback), `reason`, and the numbers behind it, as plain JSON."""
        ...


MakeJudge = Callable[[Rollout], RolloutJudge]


class Evidence:
    """The windows of one rollout."""

    def __init__(self, rollout: Rollout, judge: RolloutJudge, now: float) -> None:
        self._judge = judge
        self._last_index = -1
        self._written_at = now
        self.unwritten: list[Window] = []
        self.verdict: dict[str, Any] = {}
        self.pairs = 0
        """Requests that both versions have answered."""
        for plain in rollout.windows:
            self._take(msgspec.convert(plain, Window, str_keys=True))
        self.written_index = self._last_index
        """Up to here the gateway may forget its windows."""
        if rollout.windows:
            self.verdict = judge.verdict()

    def follow(self, rollout: Rollout, now: float) -> None:
        """Note what stands in the log by now. The log is asked, as the answer to a write may have been lost."""
        last = int(rollout.windows[-1]["index"]) if rollout.windows else -1
        if last > self.written_index:
            self.written_index = last
            self.unwritten = [window for window in self.unwritten if window.index > last]
            self._written_at = now

    def take(self, windows: Iterable[Window], complete: Callable[[Window], Window] = lambda window: window) -> None:
        """Take the windows that are new; others were taken before and not yet acknowledged.

        `complete` adds to each what the gateway does not know.
        """
        fresh = [complete(window) for window in windows if window.index > self._last_index]
        for window in fresh:
            self._take(window)
        if fresh:
            self.unwritten.extend(fresh)
            self.verdict = self._judge.verdict()

    def _take(self, window: Window) -> None:
        self._judge.take(window)
        self._last_index = window.index
        self.pairs += sum(int(window.bad.get(metric, (0, 0))[1]) for metric in ("agreement", "mirrored_errors"))

    def is_due(self, now: float) -> bool:
        """Return whether the unwritten windows should be written, decision or not."""
        return bool(self.unwritten) and (now - self._written_at >= WRITE_EVERY_S or len(self.unwritten) >= MOST_WINDOWS)

    def plain(self) -> dict[str, Any]:
        """Return what an entry of the log says about the evidence: windows not written before, and the verdict."""
        found: dict[str, Any] = {}
        if self.unwritten:
            found["windows"] = [msgspec.to_builtins(window, str_keys=True) for window in self.unwritten[:MOST_WINDOWS]]
        if self.verdict:
            found["verdict"] = self.verdict
        return found
