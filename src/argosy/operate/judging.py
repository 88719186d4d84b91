"""From a rollout's settings and the gateway's windows to the judge and its verdict as plain values."""

import contextlib
from typing import Any

import msgspec

from argosy.core.errors import InvalidInput
from argosy.evaluate.judge import Judge, JudgeConfig, WindowCounts
from argosy.evaluate.siblings import Part
from argosy.operate.config import RolloutConfig
from argosy.operate.desired import Rollout
from argosy.serve.control import Window

_WARM_UP_WINDOWS = 6
_WARM_UP_S = (10.0, 60.0)
"""Least and greatest block of the latency warm-up, else six windows. Below 10 s a slow start would pass for a slow
version; docs/decisions/0003-judge.md has the simulation."""


class WindowJudge:
    """The judge of one rollout, fed with the gateway's windows."""

    def __init__(self, rollout: Rollout) -> None:
        self._began: float | None = None
        """The start of the first window: the same for whoever replays the windows, unlike the time of an entry."""
        self._judge = Judge(judge_config(rollout.config))
        self.skipped = 0
        """Windows that could not be, such as more bad requests than requests. They prove nothing either way."""

    def take(self, window: Window) -> None:
        """Take the next window."""
        self._began = window.start if self._began is None else self._began
        with contextlib.suppress(InvalidInput):
            self._judge.take(
                WindowCounts(
                    index=window.index,
                    start_s=max(0.0, window.start - self._began),
                    seconds=window.seconds,
                    share=window.share,
                    bad=window.bad,
                    requests_stable=window.requests_stable,
                    requests_canary=window.requests_canary,
                    failed_canary=window.failed_canary,
                    latency_stable=window.latency_stable,
                    latency_canary=window.latency_canary,
                    replicas={name: Part(part.handled, part.bad) for name, part in window.replicas.items()},
                )
            )
            return
        self.skipped += 1

    def verdict(self) -> dict[str, Any]:
        """Return the verdict with all its numbers."""
        found: dict[str, Any] = msgspec.to_builtins(self._judge.verdict())
        return found


def judge_config(config: RolloutConfig) -> JudgeConfig:
    """Return the judge's settings for a rollout's."""
    return JudgeConfig(
        metrics=config.judged,
        false_alarm=config.false_alarm,
        tolerate={"errors": config.tolerate.errors, **{name: own.tolerate for name, own in config.metrics.items()}},
        tolerate_disagreement=config.tolerated_disagreement,
        warm_up_block_s=min(_WARM_UP_S[1], max(_WARM_UP_S[0], _WARM_UP_WINDOWS * config.window_s)),
    )
