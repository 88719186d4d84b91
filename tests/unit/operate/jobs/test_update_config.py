"""What [update] may say, and when it is due."""

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from argosy.cli.project import Project
from argosy.core.config import from_plain
from argosy.core.errors import InvalidInput
from argosy.operate.jobs.config import DAYS, UpdateConfig, next_time


def read(**section):
    project = from_plain({"project": {"name": "p"}, "update": section}, Project, where="argosy.toml")
    project.check()
    return project.update


def test_an_empty_section_watches_the_data():
    assert read().on == ("new-data",)
    assert read(on=[]).on == ()


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"on": ["drift"]}, "nothing measures yet"),
        ({"on": ["weather"]}, "'new-data' and 'schedule'"),
        ({"on": ["new-data", "new-data"]}, "twice"),
        ({"on": ["schedule"]}, "needs one of 'every' and 'at'"),
        ({"on": ["schedule"], "every": "1d", "at": "03:00"}, "2 are given"),
        ({"every": "1d"}, "does not name 'schedule'"),
        ({"on": ["schedule"], "every": "5s"}, "between 1min and 366d"),
        ({"on": ["schedule"], "every": "often"}, "not a time"),
        ({"on": ["schedule"], "at": "25:00"}, "time of day"),
        ({"on": ["schedule"], "at": "fry 03:00"}, "time of day"),
        ({"settle": "2d"}, "between 0s and 1d"),
        ({"min_new_rows": -1}, "0 or more"),
        ({"on": ["schedule"], "every": "1d", "min_new_rows": 5}, "for new data"),
        ({"priority": 11}, "between -10 and 10"),
        ({"evry": "1d"}, "unknown field"),
    ],
)
def test_what_makes_no_sense_is_refused_and_the_error_says_what_would(section, says):
    with pytest.raises(InvalidInput, match=says):
        read(**section)


@given(st.integers(0, 4 * 10**9), st.integers(0, 23), st.integers(0, 59), st.sets(st.sampled_from(DAYS)))
def test_the_next_time_is_the_first_that_fits_after_the_last(since, hour, minute, days):
    at = f"{','.join(sorted(days))} {hour}:{minute:02}".strip()
    found = next_time(UpdateConfig(on=("schedule",), at=at), since)
    when = dt.datetime.fromtimestamp(found, dt.UTC)
    assert (when.hour, when.minute, when.second) == (hour, minute, 0)
    assert not days or DAYS[when.weekday()] in days
    assert since < found <= since + (7 if days else 1) * 86400
    if len(days) in (0, 7):
        assert found - since <= 86400


def test_without_a_schedule_none_is_ever_due():
    assert next_time(UpdateConfig(), 5.0) == 0.0
