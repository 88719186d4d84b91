"""What the section `[update]` of argosy.toml may say, checked strictly, and when it is due next."""

import datetime as dt
import re

from argosy.core.config import Config
from argosy.core.errors import InvalidInput
from argosy.core.units import parse_time
from argosy.operate.jobs.schedule import MOST_PRIORITY

NEW_DATA, SCHEDULE = "new-data", "schedule"
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_AT = re.compile(r"(?:([a-z]{3}(?:,[a-z]{3})*)\s+)?([01]?\d|2[0-3]):([0-5]\d)")


class UpdateConfig(Config, frozen=True):
    """When a project is run again by itself, and its endpoint goes over to what came of it: `[update]`."""

    on: tuple[str, ...] = (NEW_DATA,)
    """What starts an update: `"new-data"`, the files or folders of `[data] train` and `test` have changed;
    `"schedule"`, a time as `every` or `at` say. Empty: only `argosy update`."""
    every: str = ""
    """Time from one update to the next, such as `"1d"`."""
    at: str = ""
    """Time of day in UTC, such as `"03:00"`, or on some days, `"mon,thu 03:00"`."""
    settle: str = "30s"
    """How long data must not have changed before it counts, so that a file that is still being written is left
    alone."""
    min_new_rows: int = 0
    """Rows (files, where the data is a folder) that must have come since the last update. 0: any change counts."""
    deploy: bool = True
    """Whether a version that passed its gates is released by the project's `[rollout]`; `false` only makes it."""
    priority: int = 0
    """Of its job, from -10 to 10; the higher goes first."""

    @property
    def every_s(self) -> float:
        """Seconds from one update to the next; 0: `at` says it."""
        return parse_time(self.every) if self.every else 0.0

    @property
    def settle_s(self) -> float:
        """Seconds that data must not have changed."""
        return parse_time(self.settle)

    def check(self) -> None:
        """Raise InvalidInput when a value is impossible or two contradict each other."""
        for word in self.on:
            if word == "drift":
                raise InvalidInput(
                    "update.on names 'drift', which nothing measures yet; it can be 'new-data' and 'schedule'",
                    hint="what watches drift can start an update with: argosy update ENDPOINT --reason drift",
                )
            if word not in (NEW_DATA, SCHEDULE):
                raise InvalidInput(f"update.on names {word!r}; it can be 'new-data' and 'schedule'")
        if len(set(self.on)) < len(self.on):
            raise InvalidInput(f"update.on is {list(self.on)}; it names something twice")
        self._check_times()
        if not 0 <= self.min_new_rows <= 10**12:
            raise InvalidInput(f"update.min_new_rows is {self.min_new_rows}; it must be 0 or more")
        if self.min_new_rows and NEW_DATA not in self.on:
            raise InvalidInput("update.min_new_rows is for new data, but update.on does not name 'new-data'")
        check_priority(self.priority, "update.priority")

    def _check_times(self) -> None:
        given = [name for name in ("every", "at") if getattr(self, name)]
        if SCHEDULE in self.on and len(given) != 1:
            raise InvalidInput(
                f"update.on names 'schedule', which needs one of 'every' and 'at'; {len(given)} are given",
                hint="write every = '1d', or at = 'mon 03:00'",
            )
        if given and SCHEDULE not in self.on:
            raise InvalidInput(f"update.{given[0]} is given, but update.on does not name 'schedule'")
        if self.every and not 60 <= self.every_s <= 366 * 86400:
            raise InvalidInput(f"update.every is {self.every!r}; it must be between 1min and 366d")
        if not 0 <= self.settle_s <= 86400:
            raise InvalidInput(f"update.settle is {self.settle!r}; it must be between 0s and 1d")
        if self.at:
            _read_at(self.at)


def check_priority(priority: int, name: str) -> int:
    """Return a priority that can be; raise InvalidInput otherwise."""
    if not -MOST_PRIORITY <= priority <= MOST_PRIORITY:
        raise InvalidInput(f"{name} is {priority}; it must be between -{MOST_PRIORITY} and {MOST_PRIORITY}")
    return priority


def next_time(config: UpdateConfig, since: float) -> float:
    """Return when an update is due by the schedule, `since` being the last one's start; 0: never.

    >>> next_time(UpdateConfig(on=("schedule",), every="1d"), 1000.0)
    87400.0
    >>> next_time(UpdateConfig(on=("schedule",), at="thu 00:30"), 0.0)  # 1970 began on a Thursday
    1800.0
    """
    if SCHEDULE not in config.on:
        return 0.0
    if config.every:
        return since + config.every_s
    days, hour, minute = _read_at(config.at)
    day = dt.datetime.fromtimestamp(since, dt.UTC).replace(hour=hour, minute=minute, second=0, microsecond=0)
    while day.timestamp() <= since or day.weekday() not in days:
        day += dt.timedelta(days=1)
    return day.timestamp()


def _read_at(text: str) -> tuple[set[int], int, int]:
    found = _AT.fullmatch(text.strip().lower())
    names = found[1].split(",") if found and found[1] else []
    if found is None or any(name not in DAYS for name in names):
        raise InvalidInput(f"update.at is {text!r}; write a time of day in UTC, '03:00', or 'mon,thu 03:00'")
    days = {DAYS.index(name) for name in names} or set(range(7))
    return days, int(found[2]), int(found[3])
