"""Pictures of explanations."""

import sys

import numpy as np
import pytest

from argosy.core.errors import InvalidInput, PluginError
from argosy.explain.explainer import Explanation, square_patches
from argosy.explain.picture import draw

pytestmark = pytest.mark.capability("X1")


def explanation(values, groups):
    values = np.asarray(values, np.float64)
    return Explanation(
        values=values,
        base=0.25,
        prediction=0.25 + values.sum(),
        standard_error=np.abs(values) / 10,
        permutations=100,
        seconds=1.0,
        groups=groups,
    )


def test_bars_name_the_largest_features_and_add_up_the_rest(tmp_path):
    path = tmp_path / "bars.svg"
    values = np.arange(30) - 10.0
    draw(explanation(values, np.arange(30)), [f"feature {i}" for i in range(30)], path)
    text = path.read_text()
    # matplotlib writes each label as a comment before its glyphs
    assert "<!-- feature 29 -->" in text
    assert "<!-- feature 10 -->" not in text
    assert "<!-- 11 others -->" in text
    assert "<!-- answer" in text


def test_a_heat_map_is_a_png_of_the_image(tmp_path):
    path = tmp_path / "map.png"
    groups = square_patches((3, 8, 8), 2)
    draw(explanation(np.linspace(-1, 1, 16), groups), (3, 8, 8), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("what", "name", "says"),
    [
        (["one"], "a.png", "1 names for 4"),
        ((3, 3), "a.png", "not an image of shape"),
        ((4,), "a.png", "not an image of shape"),
        (["a", "b", "c", "d"], "a.gif", "png or .svg"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path, what, name, says):
    with pytest.raises(InvalidInput, match=says):
        draw(explanation([1, 2, 3, 4], np.arange(4)), what, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PluginError) as caught:
        draw(explanation([1.0], np.arange(1)), ["a"], tmp_path / "a.png")
    assert "argosy[explain]" in caught.value.hint
