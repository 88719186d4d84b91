"""`argosy plan --measure` and `argosy advise training`, from a project's folder, with real processes."""

import random

import pytest

TABLE = """[project]
name = "table"
[data]
train = "table.csv"
[train]
epochs = 6
workers = 2
"""


def write_project(folder):
    draw = random.Random(0)
    rows = [[draw.gauss(0, 1) for _ in range(4)] for _ in range(240)]
    lines = ["a,b,c,d,label", *(",".join([*(f"{x:.4f}" for x in row), "yn"[row[0] > row[1]]]) for row in rows)]
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    (folder / "argosy.toml").write_text(TABLE)


@pytest.mark.capability("T8")
def test_a_plan_that_was_never_measured_says_how_to_find_out(installed):
    write_project(installed.folder)
    assert "argosy plan --measure" in installed.ok("plan")
    assert installed.json("plan")["training"] is None


@pytest.mark.slow
@pytest.mark.capability("T8")
def test_a_measured_plan_says_how_long_it_takes_and_why_and_a_second_one_at_once(installed):
    write_project(installed.folder)
    told = installed.ok("plan", "--measure")
    assert "18 steps in 6 epochs" in told
    found = installed.json("plan", "--set", "train.epochs=60")["training"]
    assert (found["steps"], found["epochs"]) == (180, 60)
    assert len(found["why"]) == 3
    ways = {(way["strategy"], way["workers"]): way for way in found["ways"]}
    assert {("single", 1), ("data-parallel", 2), ("parameter-server", 2), ("sharded", 2), ("local-sgd", 2)} <= set(ways)
    assert all(way["step_s"] > 0 and way["memory_bytes"] > 20e6 and way["fits"] for way in found["ways"])
    assert found["checkpoint_bytes"] > 0

    advice = installed.ok("advise", "training", "--hosts", "4", "--link", "100Mbit/s, 5ms")
    assert "local-sgd" in advice
    assert "take it with: [train] strategy =" in advice
    several = installed.json("advise", "training", "--hosts", "4")
    assert {way["hosts"] for way in several["ways"]} == {1, 4}

    installed.ok("train")
    assert installed.json("plan")["training"] is None  # nothing is left to estimate


@pytest.mark.capability("T8")
def test_a_link_that_cannot_be_read_is_refused_with_an_example(installed):
    write_project(installed.folder)
    said = installed.refused("advise", "training", "--hosts", "2", "--link", "fast")
    assert "'fast' is not a bandwidth such as '100Mbit/s'" in said
