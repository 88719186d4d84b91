"""The rules of other rollout tools with the settings of their documents' examples, on the same simulated requests.

Each rule sees the canary's and stable's requests and failures minute by minute, as a metrics store would tell them.

- Argo Rollouts: `successCondition: result[0] >= 0.95`, `failureLimit: 3` (AnalysisTemplate `success-rate`), measured
  every minute over that minute. The documents' own interval is five minutes, with which it would come five times later.
- Flagger: `request-success-rate` at least 99 over `interval: 1m`, `threshold: 5` failed checks.
- Kayenta, NetflixACAJudge: one judgement after ten minutes of one-minute error rates; Mann-Whitney, confidence 0.98,
  worse when the interval's lower end is above a quarter of the Hodges-Lehmann estimate. Stable is the baseline, which
  is kinder than the equally small baseline they recommend. Ties are left to the order statistics.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

Array = np.ndarray

_KAYENTA_MINUTES = 10
_LOWER = 20
"""The interval at 0.98 for ten against ten begins at the 20th of the hundred ordered differences."""


class Minutes:
    """Watches a cell's windows pass, and gives their minutes to the rules."""

    def __init__(self, window_s: float) -> None:
        self._per_minute = round(60 / window_s)
        self._parts: list[tuple[Array, Array, Array, Array]] = []
        self._minutes: list[tuple[Array, ...]] = []

    def watch(self, windows: Iterator[Any]) -> Iterator[Any]:
        """Pass windows on. Without stable's requests there is nothing to tell the rules."""
        for window in windows:
            if window.requests_stable is not None:
                bad_canary, bad_all = window.bad["errors"]
                counts = window.requests_canary, window.failed_canary, window.requests_stable, bad_all - bad_canary
                self._parts.append(counts)
                if len(self._parts) == self._per_minute:
                    self._minutes.append(tuple(np.sum(column, axis=0) for column in zip(*self._parts, strict=True)))
                    self._parts = []
            yield window

    def verdicts(self) -> dict[str, Any]:
        """Return for each rule the share of rollouts it ended, and after how many minutes and failed requests."""
        if not self._minutes:
            return {}
        requests, failed, stable, stable_failed = (np.array(column).T for column in zip(*self._minutes, strict=True))
        rate = np.where(requests > 0, failed / np.maximum(1, requests), 0.0)
        base = np.where(stable > 0, stable_failed / np.maximum(1, stable), 0.0)
        at = {
            "argo": nth_failure(1 - rate < 0.95, 4),
            "flagger": nth_failure(1 - rate < 0.99, 5),
        }
        if rate.shape[1] >= _KAYENTA_MINUTES:
            worse = is_worse(rate[:, :_KAYENTA_MINUTES], base[:, :_KAYENTA_MINUTES])
            at["kayenta"] = np.where(worse, _KAYENTA_MINUTES, np.inf)
        return {name: _summary(minute, failed) for name, minute in at.items()}


def nth_failure(failures: Array, n: int) -> Array:
    """Return the minute at which the nth check fails, infinite if it never does."""
    reached = failures.cumsum(1) >= n
    return np.where(reached.any(1), reached.argmax(1) + 1.0, np.inf)


def is_worse(canary: Array, baseline: Array) -> Array:
    """Return whether ten points are higher than ten others, by Mann-Whitney with Kayenta's tolerance of a quarter."""
    differences = np.sort((canary[:, :, None] - baseline[:, None, :]).reshape(len(canary), -1), axis=1)
    estimate = np.median(differences, axis=1)
    return differences[:, _LOWER - 1] > 0.25 * np.abs(estimate)


def _summary(minute: Array, failed: Array) -> dict[str, Any]:
    found = np.isfinite(minute)
    rows = np.flatnonzero(found)
    until = failed.cumsum(1)[rows, minute[rows].astype(int) - 1] if len(rows) else np.array([])
    return {
        "rolled_back": float(found.mean()),
        "median_min": float(np.median(minute[found])) if len(rows) else None,
        "failed_canary_median": float(np.median(until)) if len(rows) else None,
    }
