"""The decision page shows the table that runs."""

from pathlib import Path

from argosy.operate.rollout import TABLE, table_as_markdown

PAGE = Path(__file__).parents[2] / "docs" / "decisions" / "0004-controller.md"


def test_the_page_shows_the_table_that_runs():
    text = PAGE.read_text()
    assert table_as_markdown() in text
    assert f"the table has {len(TABLE)} rows" in text
