"""`explain`: which parts of an input made a version answer as it does."""

from pathlib import Path

import numpy as np

from argosy.cli.output import Output
from argosy.cli.verbs.predict import as_body, read_inputs
from argosy.cli.workspace import Workspace
from argosy.core.clock import SystemClock
from argosy.explain.config import ExplainConfig
from argosy.explain.explainer import Explanation
from argosy.explain.picture import draw
from argosy.pipeline.explanation import explain_row

_SHOWN = 12


def explain(what: str, inputs: str, *, seconds: float, save: Path | None, as_json: bool) -> None:
    """Explain the answer of a version to one row; with `save`, draw it."""
    output = Output(as_json=as_json)
    registry = Workspace().registry
    version = registry.versions.get(what)
    body = as_body(read_inputs(inputs))
    found = explain_row(registry, version, body, ExplainConfig(seconds=seconds), SystemClock())
    explanation = found.explanation
    shape = explanation.groups.shape
    names = list(found.columns) or [_place(explanation, group) for group in range(len(explanation.values))]
    subject = f"label {found.label}" if found.label else found.output
    output.line(f"[bold]{found.version}[/] answers {subject} with {explanation.prediction:.4g}")
    output.line(f"on average it would be {explanation.base:.4g}; the difference comes from:")
    largest = np.argsort(-np.abs(explanation.values))[:_SHOWN]
    rows = [(names[n], f"{explanation.values[n]:+.4f}", f"{explanation.standard_error[n]:.4f}") for n in largest]
    output.table((found.input, "part", "standard error"), rows)
    output.line(f"{explanation.permutations} orders in {explanation.seconds:.1f} s")
    if save is not None:
        draw(explanation, list(found.columns) if found.columns else list(shape), save)
        output.line(f"wrote {save}")
    output.result(
        {
            "version": found.version,
            "output": found.output,
            "label": found.label,
            "prediction": explanation.prediction,
            "base": explanation.base,
            "parts": dict(zip(names, explanation.values.tolist(), strict=True)),
            "standard_errors": dict(zip(names, explanation.standard_error.tolist(), strict=True)),
        }
    )


def _place(explanation: Explanation, group: int) -> str:
    """Return where a group of elements begins, such as `[0, 2, 4]`."""
    where = np.argwhere(explanation.groups == group)
    return str(where[0].tolist()) if len(where) else str(group)
