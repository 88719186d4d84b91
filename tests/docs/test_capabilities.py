"""The page of capabilities has every row once, and claims only what a test shows."""

import ast
import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]

IDS = [
    *("D1", "D2", "D3", "B1", "B2", "E1"),
    *("T1", "T2", "T3", "T4", "T5", "T6", "T7", "T8", "T9"),
    *("C1", "C2", "C3", "C4", "C5", "C6", "C7"),
    *("F1", "F2", "F3", "F4"),
    *("V1", "V2", "V3", "V4", "V5"),
    *("I1", "I2", "I3", "I4", "I5"),
    *("K1", "K2", "K3", "K4", "K5"),
    *("R1", "R2", "R3", "R4", "R5", "R6", "R7", "M1", "M2", "M3", "H1"),
    *("X1", "Z1", "Z2", "Z3", "Z4", "Z5", "A1"),
]
STATES = ("works", "in small", "not yet")


def rows():
    page = (ROOT / "docs" / "capabilities.md").read_text()
    return re.findall(r"^\| ([A-Z]\d) \| (.+?) \| \*\*(.+?)\*\* \| (.*)\|$", page, re.MULTILINE)


def marked():
    """Return the ids that tests carry, by reading the tests and not by running them."""
    found = Counter()
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "capability":
                found.update(argument.value for argument in node.args if isinstance(argument, ast.Constant))
    return found


def test_every_row_stands_there_exactly_once_with_a_known_state():
    found = rows()
    assert [identity for identity, *_ in found] == IDS
    assert {state for _, _, state, _ in found} <= set(STATES)


def test_every_claim_says_how_to_see_it_and_what_is_missing():
    for identity, _, state, how in rows():
        if state != "not yet":
            assert "`" in how or "](" in how, f"{identity} names no command, setting or page"


def test_every_claim_is_shown_by_a_test():
    shown = marked()
    claimed = {identity for identity, _, state, _ in rows() if state != "not yet"}
    assert claimed - set(shown) == set(), 'mark the tests that show these with @pytest.mark.capability("ID")'


def test_every_mark_names_a_row_that_is_claimed():
    claimed = {identity for identity, _, state, _ in rows() if state != "not yet"}
    assert set(marked()) - claimed == set(), "say in docs/capabilities.md what of these works"
