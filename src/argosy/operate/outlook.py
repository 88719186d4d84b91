"""What a rollout will be able to see at today's traffic, and after how long, told before it starts. Pure."""

from argosy.core.config import Config
from argosy.core.units import format_time
from argosy.evaluate.foresight import foresee
from argosy.operate.config import RolloutConfig
from argosy.operate.judging import judge_config

_WORSE = 5.0
_FEW_PER_MIN = 60.0
"""Canary requests a minute below which decision 0003 measured that most faults are found too late."""
_RARE = 0.0005
_PAIRS = 811
"""Mirrored requests without a failure of the new version alone that show it fails on less than 0.5 %."""


class Outlook(Config, frozen=True):
    """What to expect of a rollout."""

    requests_per_min: float
    failed_share: float
    """Share of today's requests that fail."""
    rollback_min: float | None
    """About how long until a version that fails five times as often is rolled back; None: it would not be seen."""
    promote_min: float | None
    """About how long until a version that is as good can be promoted."""
    is_enough: bool
    """Whether both come within the time limit."""
    lines: tuple[str, ...]


def outlook(config: RolloutConfig, *, requests_per_min: float, failed_share: float) -> Outlook:
    """Return what a rollout will see at this traffic. Formulas of decision 0003; times are typical, not bounds."""
    limit_min = config.time_limit_s / 60
    if config.style == "switch":
        nothing = ("it is judged by nothing: kind or steps say so",)
        return _said((requests_per_min, failed_share), (None, None), nothing, is_enough=True)
    if config.style == "shadow":
        return _in_shadow(config, requests_per_min, failed_share, limit_min)
    share = config.shares[-1]
    found = foresee(
        judge_config(config),
        requests_per_min=requests_per_min,
        base_rate=failed_share,
        share=share,
        ratio=_WORSE,
        window_s=config.window_s,
        minutes=limit_min,
    )
    lines = [_traffic(requests_per_min, failed_share)]
    rollback, promote = found.rollback_min, found.promote_min
    if "errors" in config.judged:
        if failed_share < _RARE:
            lines.append(
                "hardly any request fails today, so there is no ratio to compare; failures of the new version alone "
                "still count, and some windows with one decide"
            )
        elif rollback is not None:
            lines.append(
                f"a version that fails {_WORSE:g} times as often is rolled back after about "
                f"{format_time(60 * rollback)} at {100 * share:g} %"
            )
    if promote is not None:
        lines.append(
            f"one that is as good can be promoted after about {format_time(60 * promote)} at {100 * share:g} %"
        )
    is_enough = promote is not None and promote <= limit_min and (failed_share < _RARE or not found.is_blind)
    if not is_enough:
        lines += _proposals(config, requests_per_min, share, promote, limit_min)
    return _said((requests_per_min, failed_share), (rollback, promote), tuple(lines), is_enough=is_enough)


def _in_shadow(config: RolloutConfig, requests_per_min: float, failed_share: float, limit_min: float) -> Outlook:
    pairs_per_min = requests_per_min * config.mirror / 100
    promote = max(_PAIRS, config.shadow_pairs) / pairs_per_min if pairs_per_min > 0 else None
    lines = [_traffic(requests_per_min, failed_share)]
    if promote is not None:
        lines.append(f"a good verdict needs about {_PAIRS} mirrored requests, so about {format_time(60 * promote)}")
    is_enough = promote is not None and promote <= limit_min
    if not is_enough:
        lines.append(
            f"that is more than its time limit of {config.time_limit}: raise mirror (100 is all) or time_limit"
        )
    return _said((requests_per_min, failed_share), (None, promote), tuple(lines), is_enough=is_enough)


def _proposals(
    config: RolloutConfig, requests_per_min: float, share: float, promote: float | None, limit_min: float
) -> list[str]:
    lines = []
    if promote is None or promote > limit_min:
        lines.append(
            f"within its time limit of {config.time_limit} it will most likely stay undecided"
            + (", and return to the current version" if config.undecided == "rollback" else "")
        )
    if requests_per_min * share < _FEW_PER_MIN and config.mirror < 100:
        lines.append(
            "too few requests to compare by: mirror all of them (mirror = 100), and let it begin in shadow "
            f'(shadow = "10min", or shadow_pairs = {_PAIRS}): a pair is compared directly, whatever the share'
        )
    elif promote is not None:
        lines.append(f'or give it the time: time_limit = "{max(1, round(1.5 * promote))}min"')
    return lines


def _traffic(requests_per_min: float, failed_share: float) -> str:
    return f"today: {requests_per_min:.3g} requests a minute, {100 * failed_share:.3g} % fail"


def _said(
    traffic: tuple[float, float], times: tuple[float | None, float | None], lines: tuple[str, ...], *, is_enough: bool
) -> Outlook:
    return Outlook(
        requests_per_min=traffic[0],
        failed_share=traffic[1],
        rollback_min=times[0],
        promote_min=times[1],
        is_enough=is_enough,
        lines=lines,
    )
