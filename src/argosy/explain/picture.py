"""An explanation to look at: bars for a table, a heat map for an image."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from argosy.core.errors import InvalidInput
from argosy.core.files import write_atomic
from argosy.core.plugins import missing
from argosy.explain.explainer import Explanation, Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_BARS = 20
_UP, _DOWN = "#c0392b", "#2c6fbb"


def draw(explanation: Explanation, what: Sequence[str] | Sequence[int], path: Path) -> None:
    """Write a picture (`.png` or `.svg`) of an explanation to `path`.

    `what` is the names of the features, for bars with their standard errors, largest first; or the shape of the
    image ([height, width] or [channels, height, width]), for a heat map. Raises InvalidInput, PluginError.
    """
    if path.suffix not in (".png", ".svg"):
        raise InvalidInput(f"a picture can't be written as '{path.name}'; its name must end with .png or .svg")
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise missing(error, "explain") from error
    # Made without pyplot: no window system is asked for, and nothing is kept in a global list of figures.
    figure = Figure(layout="constrained", dpi=120)
    axes = figure.add_subplot()
    if all(isinstance(entry, str) for entry in what):
        _bars(figure, axes, explanation, list(cast("Sequence[str]", what)))
    else:
        _heat_map(figure, axes, explanation, tuple(int(size) for size in what))
    axes.set_title(f"answer {explanation.prediction:.4g}, on average {explanation.base:.4g}", fontsize="medium")
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix[1:])
    write_atomic(path, picture.getvalue())


def _bars(figure: "Figure", axes: "Axes", explanation: Explanation, names: list[str]) -> None:
    if len(names) != len(explanation.values):
        raise InvalidInput(f"there are {len(names)} names for {len(explanation.values)} explained features")
    shown, values, errors = _largest(names, explanation)
    figure.set_size_inches(7, 1 + 0.3 * len(shown))
    places = np.arange(len(shown))[::-1]
    colours = [_UP if value >= 0 else _DOWN for value in values]
    axes.barh(places, values, xerr=errors, color=colours, error_kw={"elinewidth": 1})
    axes.set_yticks(places, shown)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("change of the answer by this feature, with standard error")


def _largest(names: list[str], explanation: Explanation) -> tuple[list[str], Floats, Floats]:
    order = np.argsort(-np.abs(explanation.values), kind="stable")
    values, errors = explanation.values[order], explanation.standard_error[order]
    shown = [names[i] for i in order]
    if len(shown) <= _MOST_BARS:
        return shown, values, errors
    kept = _MOST_BARS - 1
    rest = f"{len(shown) - kept} others"
    # Their errors add up at most like this; that they partly cancel is not relied on.
    return (
        [*shown[:kept], rest],
        np.append(values[:kept], values[kept:].sum()),
        np.append(errors[:kept], errors[kept:].sum()),
    )


def _heat_map(figure: "Figure", axes: "Axes", explanation: Explanation, shape: tuple[int, ...]) -> None:
    groups = explanation.groups
    if len(shape) not in (2, 3) or groups.size != int(np.prod(shape)):
        raise InvalidInput(
            f"an explanation of {groups.size} elements is not an image of shape {list(shape)}",
            hint="give [height, width] or [channels, height, width]",
        )
    sizes = np.bincount(groups.ravel())
    # A patch's value is spread over its pixels; channels of a pixel are added up.
    density = (explanation.values / sizes)[groups].reshape(-1, *shape[-2:]).sum(axis=0)
    most = float(np.abs(density).max()) or 1.0
    image = axes.imshow(density, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="change of the answer per pixel")
    axes.set_xticks([])
    axes.set_yticks([])
