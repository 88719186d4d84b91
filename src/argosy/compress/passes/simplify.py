"""A graph with less to do in each run: sizes that exporters compute again and again, and sums of residuals.

Exporters write `view(batch, tokens, heads, size)` as a dozen small operations on sizes. What they come to is seen in
runs of several shapes, and put down as numbers: the same size as the input's (0), a fixed one, the one that is left
(-1). The result is then held against the graph before, on a shape that it hasn't seen.

A sum in front of a layer norm is written as `Sum` instead of `Add`: ONNX Runtime would fuse the latter with the norm
to one operation whose kernel for processors takes longer than both (measured with 1.32 on 3968 rows of 384: 6.7 ms
for the fused one, 0.7 ms for the norm and 0.9 ms for the sum).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from argosy.compress.passes.masks import with_drawn_masks, with_fixed_rows, with_plain_masks
from argosy.formats.conversion.jobs.recurrent import needed

if TYPE_CHECKING:
    import onnx

_NORMS = ("LayerNormalization", "SimplifiedLayerNormalization")
# The same operations on the same numbers; only their order in a sum may differ.
_TOLERANCE = 1e-5
_FEWEST_RUNS = 3


def simplified(content: bytes, runs: Sequence[dict[str, np.ndarray]]) -> bytes:
    """Return a graph that does the same with fewer operations; the same bytes where nothing can be made simpler.

    `runs` are inputs of several shapes, the last to prove it with. Sizes stay as they are where there are less than
    three, and the graph stays where it can't be run in these shapes.
    """
    try:
        return _simplified(content, runs)
    except Exception:  # noqa: BLE001 - whatever the runtime says of a graph or of the shapes; it was good enough as it is
        return content


def _simplified(content: bytes, runs: Sequence[dict[str, np.ndarray]]) -> bytes:
    import onnx

    model = onnx.load_model_from_string(content)
    changed = _with_sums(model)
    if len(runs) >= _FEWEST_RUNS:
        runs = with_drawn_masks(runs)
        changed += with_plain_masks(model, runs[:-1], _values)
        changed += with_fixed_rows(model, runs[:-1], _values)
        changed += _with_sizes(model, runs[:-1])
    if not changed:
        return content
    _drop_unused(model)
    found: bytes = model.SerializeToString(deterministic=True)
    return found if _agree(content, found, runs[-1:]) else content


def _with_sums(model: "onnx.ModelProto") -> int:
    made = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name for tensor in model.graph.initializer}
    count = 0
    for node in model.graph.node:
        before = made.get(node.input[0]) if node.op_type in _NORMS else None
        if before is not None and before.op_type == "Add" and not constants & set(before.input):
            before.op_type = "Sum"
            count += 1
    return count


def _with_sizes(model: "onnx.ModelProto", runs: Sequence[dict[str, np.ndarray]]) -> int:
    """Give reshapes fixed sizes where several runs agree on what these are."""
    from onnx import numpy_helper

    fixed = {tensor.name for tensor in model.graph.initializer}
    fixed |= {name for node in model.graph.node if node.op_type == "Constant" for name in node.output}
    todo = [
        node
        for node in model.graph.node
        if node.op_type == "Reshape" and node.input[1] not in fixed and not any(a.i for a in node.attribute)
    ]
    if not todo:
        return 0
    wanted = list(dict.fromkeys(name for node in todo for name in node.input))
    seen = _values(model, wanted, runs)
    count = 0
    for node in todo:
        asked = [values[node.input[1]] for values in seen]
        sizes = _sizes([values[node.input[0]].shape for values in seen], asked)
        if sizes is None:
            continue
        name = f"{node.output[0]}/sizes"
        model.graph.initializer.append(numpy_helper.from_array(np.array(sizes, np.int64), name))
        node.input[1] = name
        count += 1
    return count


def _sizes(shapes: Sequence[tuple[int, ...]], asked: Sequence[np.ndarray]) -> list[int] | None:
    """Return what a reshape can be told instead of sizes computed anew; None where that is not clear."""
    found = []
    for place in range(len(asked[0])):
        values = [int(sizes[place]) for sizes in asked]
        if place < min(map(len, shapes)) and all(v == s[place] for v, s in zip(values, shapes, strict=True)):
            found.append(0)
        elif len(set(values)) == 1 and values[0] > 0:
            found.append(values[0])
        else:
            found.append(-1)
    return found if found.count(-1) <= 1 else None


def _values(
    model: "onnx.ModelProto", names: Sequence[str], runs: Sequence[dict[str, np.ndarray]]
) -> list[dict[str, np.ndarray]]:
    """Return values from inside each run."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    given = {value.name for value in (*model.graph.input, *model.graph.output)}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in given)
    session, found = _session(copy.SerializeToString()), []
    for run in runs:
        own = {name: run[name] for name in names if name in run}
        asked = [name for name in names if name not in own]
        found.append(own | dict(zip(asked, session.run(asked, run), strict=True)))
    return found


def _agree(before: bytes, after: bytes, runs: Sequence[dict[str, np.ndarray]]) -> bool:
    session = _session(before)
    wanted = [session.run(None, run) for run in runs]
    try:
        session = _session(after)
        got = [session.run(None, run) for run in runs]
    except Exception:  # noqa: BLE001 - a wrong size fails in whichever operation meets it first
        return False
    pairs = [pair for want, have in zip(wanted, got, strict=True) for pair in zip(want, have, strict=True)]
    return all(_is_same(want, have) for want, have in pairs)


def _is_same(want: np.ndarray, have: np.ndarray) -> bool:
    if want.shape != have.shape or want.size == 0 or want.dtype.kind != "f":
        return bool(np.array_equal(want, have))
    scale = max(1.0, float(np.abs(want).max()))
    return bool(np.abs(want.astype(np.float64) - have).max() <= _TOLERANCE * scale)


def _session(content: bytes) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _drop_unused(model: "onnx.ModelProto") -> None:
    graph = model.graph
    nodes, names = needed(graph.node, [value.name for value in graph.output])
    kept = [type(node).FromString(node.SerializeToString()) for node in nodes]
    weights = [
        type(tensor).FromString(tensor.SerializeToString()) for tensor in graph.initializer if tensor.name in names
    ]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(weights)
