"""How the page looks: colours, measures, and numbers with units. No library is needed for this module."""

import math
from collections.abc import Sequence

from argosy.core.units import format_size, format_time

# The colours of Okabe and Ito (2008), which people with every kind of colour blindness can tell apart. Lines differ in
# their dashes too, so that nothing is said by colour alone.
BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"

UNKNOWN = "\N{EN DASH}"
"""What stands where a number is not known."""

Dash = str | list[int]
ROLES: dict[str, tuple[str, str, Dash]] = {
    "current": (BLUE, SKY, "solid"),
    "new": (VERMILION, ORANGE, [8, 3]),
    "former": ("#6b7680", "#9aa5b0", [2, 3]),
    "sibling": (GREEN, GREEN, [10, 3, 2, 3]),
}
"""For each role of a version: its colour by day and by night, and its dashes."""
METRICS: dict[str, tuple[str, str, Dash]] = {
    "errors": (VERMILION, VERMILION, "solid"),
    "latency": (BLUE, SKY, [8, 3]),
    "agreement": (GREEN, GREEN, [2, 3]),
    "mirrored_errors": (PURPLE, PURPLE, [10, 3, 2, 3]),
}
_OTHER: list[tuple[str, str, Dash]] = [("#8a6d00", "#F0E442", "solid"), ("#6b7680", "#9aa5b0", [4, 4])]
CURVES: Sequence[tuple[str, str]] = ((BLUE, SKY), (VERMILION, ORANGE), (GREEN, GREEN), (PURPLE, PURPLE))

STATES: dict[str, tuple[str, str]] = {
    "ready": ("good", "check_circle"),
    "running": ("good", "check_circle"),
    "done": ("good", "check_circle"),
    "finished": ("good", "check_circle"),
    "promoted": ("good", "check_circle"),
    "passed": ("good", "check_circle"),
    "degraded": ("warn", "warning"),
    "starting": ("warn", "hourglass_top"),
    "waiting": ("warn", "hourglass_top"),
    "stopping": ("warn", "hourglass_bottom"),
    "paused": ("warn", "pause_circle"),
    "draining": ("warn", "hourglass_bottom"),
    "frozen": ("bad", "ac_unit"),
    "faulty": ("bad", "error"),
    "failed": ("bad", "error"),
    "down": ("bad", "error"),
    "missed": ("bad", "error"),
    "rolled_back": ("bad", "undo"),
    "stopped": ("quiet", "stop_circle"),
}
"""For each state a tone and a sign: it is said by colour, by shape and by word."""


def tone_of(state: str) -> tuple[str, str]:
    """Return tone and sign of a state."""
    return STATES.get(state, ("quiet", "radio_button_unchecked"))


def line_of(role: str, *, is_dark: bool) -> tuple[str, Dash]:
    """Return the colour and dashes of a version's line."""
    day, night, dash = ROLES.get(role, ROLES["former"])
    return (night if is_dark else day), dash


def metric_line(name: str, place: int, *, is_dark: bool) -> tuple[str, Dash]:
    """Return the colour and dashes of a judged metric; those of a user's own metrics go by their place."""
    day, night, dash = METRICS.get(name) or _OTHER[place % len(_OTHER)]
    return (night if is_dark else day), dash


def words(name: str) -> str:
    """Return a name of the code as people write it.

    >>> words("rolled_back")
    'rolled back'
    """
    return name.replace("_", " ")


def count(value: float) -> str:
    """Return a count with its thousands apart.

    >>> count(1234567)
    '1,234,567'
    """
    return f"{value:,.0f}"


def rate(value: float | None) -> str:
    """Return requests per second.

    >>> rate(0.25), rate(12.34), rate(1234.5)
    ('0.25 /s', '12.3 /s', '1,234 /s')
    """
    if value is None:
        return UNKNOWN
    if value >= 100 or value == 0:
        return f"{value:,.0f} /s"
    return f"{value:.1f} /s" if value >= 10 else f"{value:.2f} /s"


def milliseconds(value: float | None) -> str:
    """Return a latency.

    >>> milliseconds(0.314), milliseconds(12.34), milliseconds(2345)
    ('0.31 ms', '12.3 ms', '2.35 s')
    """
    if not value:
        return UNKNOWN
    if value >= 1000:
        return f"{value / 1000:.2f} s"
    return f"{value:.2f} ms" if value < 10 else f"{value:.1f} ms"


def percent(value: float | None) -> str:
    """Return a share of one; what is not nothing is never shown as nothing.

    >>> percent(0), percent(0.00002), percent(0.0123), percent(0.5), percent(1)
    ('0 %', '<0.01 %', '1.23 %', '50 %', '100 %')
    """
    if value is None:
        return UNKNOWN
    if value in {0, 1}:
        return f"{value:.0%}".replace("%", " %")
    if value < 0.0001:
        return "<0.01 %"
    text = f"{100 * value:.2f}" if value < 0.1 else f"{100 * value:.1f}"
    return f"{text.removesuffix('.0')} %"


def evidence(value: float) -> str:
    """Return an E-value: it grows by powers, so two digits say enough.

    >>> evidence(0.00001), evidence(0.5), evidence(12.3), evidence(4567.0)
    ('<0.01', '0.50', '12', '>999')
    """
    if value < 0.01:
        return "<0.01"
    if value > 999:
        return ">999"
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def size(value: float) -> str:
    """Return bytes."""
    return format_size(value)


def duration(seconds: float) -> str:
    """Return a time span."""
    return format_time(max(0.0, seconds))


def finite(value: float) -> str:
    """Return a measured number.

    >>> finite(0.123456), finite(float("nan"))
    ('0.1235', 'not a number')
    """
    return f"{value:.4g}" if math.isfinite(value) else "not a number"
