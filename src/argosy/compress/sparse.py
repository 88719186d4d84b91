"""Weights with many zeros, stored as the others and a bit for each place; the graph makes whole tensors of them.

Runtimes do this once, when they load the file: everything it is made of is constant, so it is folded away, and what
runs is the dense graph. A float32 tensor with 90 % zeros takes 0.13 of its size so; ONNX's own sparse tensors, which
spend 8 bytes on each place, would take 0.3, and are read by fewer programs.
"""

from typing import Any

import numpy as np

# Fewer come by themselves when numbers are rounded to 8 bits; engines know such tensors best as they are.
_LEAST_ZEROS = 0.45
# A runtime unpacks while it loads, but nothing that would take more than 64 MB (formats/onnx_runtime.py): a larger
# tensor would be unpacked in every run.
_SMALLEST, _LARGEST = 1024, 2**24


def stored_sparse(content: bytes) -> bytes:
    """Return an ONNX file in which tensors with many zeros are packed; the same bytes where there are none."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load_model_from_string(content)
    graph = model.graph
    packed: list[Any] = []
    names: set[str] = {name for node in graph.node for name in (*node.input, *node.output)}
    kept = []
    constants: dict[str, Any] = {}
    given = {value.name for value in graph.input}
    for tensor in graph.initializer:
        array = numpy_helper.to_array(tensor)
        is_of_weights = array.dtype in (np.float32, np.int8, np.uint8) and _SMALLEST <= array.size <= _LARGEST
        # What an earlier call has packed, and what callers may replace, stays as it is.
        if not is_of_weights or ".sparse." in tensor.name or tensor.name in given:
            kept.append(tensor)
            continue
        zeros = 1 - np.count_nonzero(array) / array.size
        bits = array.size / 8
        if zeros < _LEAST_ZEROS or (1 - zeros) * array.nbytes + bits > 0.9 * array.nbytes:
            kept.append(tensor)
            continue
        packed += _decoder(tensor.name, array, names, constants)
    if not packed:
        return content
    del graph.initializer[:]
    held = {tensor.name for tensor in kept}
    graph.initializer.extend([*kept, *(tensor for name, tensor in constants.items() if name not in held)])
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*packed, *nodes])
    return bytes(model.SerializeToString(deterministic=True))


def _decoder(name: str, array: np.ndarray, names: set[str], constants: dict[str, Any]) -> list[Any]:
    """Nodes that make `array` again, called `name`, of the bits and the values that aren't zero."""
    from onnx import helper, numpy_helper

    base = f"{name}.sparse"
    while any(used.startswith(base) for used in names):
        base += "_"
    flat = array.reshape(-1)
    is_there = flat != 0
    shared: dict[str, np.ndarray] = {
        "sparse.divisors": np.array([[128, 64, 32, 16, 8, 4, 2, 1]], np.int32),
        "sparse.two": np.array(2, np.int32),
        "sparse.flat": np.array([-1], np.int64),
        "sparse.axis": np.array(0, np.int64),
        "sparse.zero": np.array([0], np.int64),
    }
    own: dict[str, np.ndarray] = {
        f"{base}.bits": np.packbits(is_there)[:, None],
        f"{base}.values": np.concatenate([np.zeros(1, array.dtype), flat[is_there]]),
        f"{base}.size": np.array([array.size], np.int64),
        f"{base}.shape": np.array(array.shape, np.int64),
    }
    for key, value in {**shared, **own}.items():
        constants.setdefault(key, numpy_helper.from_array(value, key))
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Cast", [f"{base}.bits"], "bytes", {"to": 6}),
        ("Div", [f"{base}.bytes", "sparse.divisors"], "shifted", {}),
        ("Mod", [f"{base}.shifted", "sparse.two"], "table", {}),
        ("Reshape", [f"{base}.table", "sparse.flat"], "all", {}),
        ("Slice", [f"{base}.all", "sparse.zero", f"{base}.size"], "mask", {}),
        ("CumSum", [f"{base}.mask", "sparse.axis"], "count", {}),
        ("Mul", [f"{base}.count", f"{base}.mask"], "place", {}),
        ("Gather", [f"{base}.values", f"{base}.place"], "dense", {}),
    ]
    nodes = [
        helper.make_node(kind, inputs, [f"{base}.{output}"], name=f"{base}.{output}", **settings)
        for kind, inputs, output, settings in steps
    ]
    return [*nodes, helper.make_node("Reshape", [f"{base}.dense", f"{base}.shape"], [name], name=f"{base}.whole")]
