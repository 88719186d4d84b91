"""The first layer that differs, found by converting pieces of a model."""

import numpy as np
import pytest

from argosy.formats.conversion.halving import first_wrong
from argosy.formats.conversion.locate import Step

DRAW = np.random.default_rng(0)


class Pieces:
    """A conversion that spoils some steps, and with them everything made of them."""

    def __init__(self, steps, values, spoiled):
        self.steps, self.values, self.spoiled = steps, values, set(spoiled)
        self.asked = []

    def is_wrong(self, number):
        step = self.steps[number]
        made = {one.gives: at for at, one in enumerate(self.steps)}
        return step.layer in self.spoiled or any(self.is_wrong(made[name]) for name in step.takes if name in made)

    def __call__(self, number):
        self.asked.append(self.steps[number].layer)
        value = self.values[str(number)]
        return {"out": value * 1.5 + 1 if self.is_wrong(number) else value}


def graph(*described):
    """Steps of texts such as `join: left right`."""
    steps = []
    for text in described:
        name, _, takes = text.partition(":")
        steps.append(Step(name, "op", takes.split(), name))
    values = {str(at): DRAW.standard_normal((1, 4, 3)).astype(np.float32) for at, _ in enumerate(steps)}
    return steps, values


@pytest.mark.parametrize("spoiled", [0, 1, 7, 62, 98, 99])
def test_in_a_chain_of_a_hundred_layers_few_pieces_are_converted(spoiled):
    steps, values = graph("l0: x", *(f"l{at}: l{at - 1}" for at in range(1, 100)))
    pieces = Pieces(steps, values, [f"l{spoiled}"])
    found = first_wrong(steps, values, pieces, tolerance=1e-3)
    assert (found.layer, found.number, found.steps) == (f"l{spoiled}", spoiled, 100)
    assert len(pieces.asked) <= 9
    assert len(set(pieces.asked)) == len(pieces.asked)


BRANCHES = ["stem: x", "left: stem", "left2: left", "right: stem", "right2: right", "join: left2 right2", "head: join"]


@pytest.mark.parametrize("spoiled", ["stem", "left", "left2", "right", "right2", "join", "head"])
def test_branches_are_followed(spoiled):
    steps, values = graph(*BRANCHES)
    assert first_wrong(steps, values, Pieces(steps, values, [spoiled]), tolerance=1e-3).layer == spoiled


def test_nothing_is_blamed_where_all_outputs_come_out_right():
    steps, values = graph(*BRANCHES)
    assert first_wrong(steps, values, Pieces(steps, values, []), tolerance=1e-3) is None


def test_the_one_wrong_output_of_several_is_followed():
    steps, values = graph("stem: x", "one: stem", "two: stem", "three: two")
    assert first_wrong(steps, values, Pieces(steps, values, ["two"]), tolerance=1e-3).layer == "two"


def test_values_that_tell_nothing_are_passed_over():
    steps, values = graph("a: x", "sizes: a", "b: sizes", "c: b")
    values["1"] = np.array([3, 4])
    pieces = Pieces(steps, values, ["a"])
    assert first_wrong(steps, values, pieces, tolerance=1e-3).layer == "a"
    assert "sizes" not in pieces.asked


def test_what_depends_on_no_input_is_not_converted():
    steps, values = graph("table:", "turned: table", "join: turned x", "head: join")
    pieces = Pieces(steps, values, ["join"])
    assert first_wrong(steps, values, pieces, tolerance=1e-3).layer == "join"
    assert set(pieces.asked) <= {"join", "head"}
