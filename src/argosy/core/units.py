"""Amounts as people write them: `1MB`, `2ms`, `1pt`, `>= 0.97`."""

import re

import msgspec

from argosy.core.errors import InvalidInput

_SIZES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_RATES = {"bit/s": 0.125, "kbit/s": 125.0, "mbit/s": 125e3, "gbit/s": 125e6, "kb/s": 1e3, "mb/s": 1e6, "gb/s": 1e9}
_RATE = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]+/s)\s*")
_AMOUNT = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z%]*)\s*")
_GATE = re.compile(r"\s*(>=|<=|>|<)\s*([-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*(%?)\s*")


def parse_size(text: str) -> int:
    """Return bytes.

    >>> parse_size("1MB"), parse_size("4 KiB")
    (1000000, 4096)
    """
    number, unit = _split(text, "a size such as '1MB' or '512KiB'")
    if unit.upper() not in _SIZES:
        raise InvalidInput(f"{text!r} is not a size; the units are B, KB, MB, GB, KiB, MiB, GiB")
    return round(number * _SIZES[unit.upper()])


def parse_time(text: str) -> float:
    """Return seconds.

    >>> parse_time("2ms"), parse_time("5min")
    (0.002, 300.0)
    """
    number, unit = _split(text, "a time such as '2ms' or '30s'")
    if unit not in _TIMES:
        raise InvalidInput(f"{text!r} is not a time; the units are us, ms, s, min, h, d")
    return number * _TIMES[unit]


def parse_rate(text: str) -> float:
    """Return bytes per second.

    >>> parse_rate("100Mbit/s"), parse_rate("1.5 GB/s")
    (12500000.0, 1500000000.0)
    """
    found = _RATE.fullmatch(text)
    if found is None or found[2].lower() not in _RATES:
        raise InvalidInput(f"{text!r} is not a bandwidth such as '100Mbit/s'; the units are bit/s, kbit/s to GB/s")
    return float(found[1]) * _RATES[found[2].lower()]


def parse_drop(text: str) -> float:
    """Return a share of one from percentage points.

    >>> parse_drop("1pt"), parse_drop("0.5%")
    (0.01, 0.005)
    """
    number, unit = _split(text, "a drop such as '1pt'")
    if unit not in ("pt", "pts", "%"):
        raise InvalidInput(f"{text!r} is not a drop; write percentage points, such as '1pt'")
    return number / 100


def _split(text: str, expected: str) -> tuple[float, str]:
    found = _AMOUNT.fullmatch(text)
    if found is None:
        raise InvalidInput(f"{text!r} is not {expected}")
    return float(found[1]), found[2]


def format_size(size_bytes: float) -> str:
    """Return bytes as people read them.

    >>> format_size(1234567), format_size(900)
    ('1.23 MB', '900 B')
    """
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.3g} {unit}"
    return f"{size_bytes:.0f} B"


def format_time(seconds: float) -> str:
    """Return a duration as people read it.

    >>> format_time(0.00213), format_time(95), format_time(7300)
    ('2.13 ms', '1 min 35 s', '2 h 2 min')
    """
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} us"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


class Bound(msgspec.Struct, frozen=True):
    """One comparison with a number, such as `>= 0.97`."""

    sign: str
    value: float

    @classmethod
    def parse(cls, text: str) -> "Bound":
        """Read `>= 0.97` or `<= 5%`; raise InvalidInput."""
        found = _GATE.fullmatch(text)
        if found is None:
            raise InvalidInput(f"{text!r} is not a bound such as '>= 0.97'")
        return cls(found[1], float(found[2]) / (100 if found[3] else 1))

    def holds(self, value: float) -> bool:
        """Return whether `value` keeps the bound; NaN never does."""
        return {
            ">=": value >= self.value,
            "<=": value <= self.value,
            ">": value > self.value,
            "<": value < self.value,
        }[self.sign]

    def missed_by(self, value: float) -> float:
        """Return how far `value` is on the wrong side, 0 when the bound holds."""
        return 0.0 if self.holds(value) else abs(value - self.value)

    def __str__(self) -> str:
        return f"{self.sign} {self.value:g}"
