"""LiteRT (TensorFlow Lite) files: made of ONNX by onnx2tf, run, followed tensor by tensor. Needs the tool `litert`."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import argosy_child
import numpy as np

shared = argosy_child.job("shared")

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def from_onnx(config: dict[str, Any]) -> dict[str, Any]:
    """Convert an ONNX file, its inputs and outputs in the layout they have."""
    import onnx
    import onnx2tf

    path = Path(config["folder"]) / "tmp" / "written-out.onnx"
    model = argosy_child.job("recurrent").written_out(onnx.load(config["path"]))
    _count_from_the_front(model)
    onnx.save(model, path)
    graph = model.graph
    place = Path(config["folder"]) / "onnx2tf"
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [one for one in graph.input if one.name not in weights]
    wide = [one.name for one in inputs if len(one.type.tensor_type.shape.dim) >= 3]
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            onnx2tf.convert(
                input_onnx_file_path=str(path),
                output_folder_path=str(place),
                keep_ncw_or_nchw_or_ncdhw_input_names=wide or None,
                keep_shape_absolutely_input_names=[one.name for one in inputs],
                not_use_onnxsim=True,
                non_verbose=True,
            )
    except BaseException as error:
        raise _failed(error, said.getvalue(), graph) from error
    made = next(place.glob("*_float32.tflite"), None)
    if made is None:
        raise _failed(RuntimeError("no file was written"), said.getvalue(), graph)
    made.replace(config["target"])
    return {}


def _count_from_the_front(model: Any) -> None:
    """Write places that are counted from the end as others: LiteRT's Gather knows none of them."""
    import onnx
    from onnx import numpy_helper

    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    known = {value.name: value.type.tensor_type.shape.dim for value in (*inferred.input, *inferred.value_info)}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    for number, node in enumerate(model.graph.node):
        places = constants.get(node.input[1]) if node.op_type == "Gather" else None
        if places is None or not (places < 0).any():
            continue
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        shape = known.get(node.input[0], [])
        size = shape[axis].dim_value if len(shape) > axis >= -len(shape) else 0
        if size:
            name = f"{node.input[1]}/from-the-front-{number}"
            model.graph.initializer.append(numpy_helper.from_array(np.where(places < 0, places + size, places), name))
            node.input[1] = name


def _failed(error: BaseException, said: str, graph: Any) -> Any:
    """Return what onnx2tf says in pages, as one line that names the operator."""
    text = _COLOURS.sub("", said)
    found = re.search(r"onnx_op_name:\s*(\S+)", text)
    node = next((one for one in graph.node if found and one.name == found[1]), None)
    why = " ".join(str(error).split())[:300]
    if node is None:
        return argosy_child.Refused(
            f"onnx2tf can't convert the model: {type(error).__name__}: {why}", code="export_failed"
        )
    return argosy_child.Refused(
        f"onnx2tf can't convert the operator {node.op_type} at '{node.name}': {why}",
        hint="replace that layer; models of Keras's and SavedModels go to .tflite without ONNX",
        code="unsupported_operator",
    )


def _open(config: dict[str, Any], *, keeps: bool = False) -> Any:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    # Delegates keep no tensors inside.
    kind = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES if keeps else OpResolverType.AUTO
    try:
        return Interpreter(
            config["path"], experimental_preserve_all_tensors=keeps, experimental_op_resolver_type=kind, num_threads=1
        )
    except (ValueError, RuntimeError) as error:
        raise argosy_child.Refused(
            f"the LiteRT file can't be loaded: {str(error)[:300]}", code="model_damaged"
        ) from error


def _details(machine: Any) -> tuple[list[Any], list[Any]]:
    """Return inputs and outputs in the order of the converted graph."""

    def number(one: Any) -> tuple[int, str]:
        found = re.search(r":(\d+)$", one["name"])
        return int(found[1]) if found else 0, one["name"]

    outputs = sorted(machine.get_output_details(), key=number)
    return machine.get_input_details(), outputs


def _name(detail: Any) -> str:
    return str(detail["name"]).removeprefix("serving_default_").partition(":")[0]


def _order(details: list[Any], names: list[str]) -> list[Any]:
    """Return the inputs in the order of `names`; TensorFlow keeps names with some letters replaced."""
    known = {re.sub(r"\W", "_", _name(one)): one for one in details}
    wanted = [re.sub(r"\W", "_", name) for name in names]
    return [known[name] for name in wanted] if set(wanted) <= set(known) else details


def _unsupported(error: Exception) -> Any:
    flex = sorted(set(re.findall(r"Flex\w+", str(error))))
    named = f"operators that only TensorFlow itself has: {', '.join(flex)}" if flex else str(error)[:300]
    return argosy_child.Refused(
        f"LiteRT can't run the file: it needs {named}",
        hint="replace the layers that need them, such as recurrent ones with a free batch",
        code="unsupported_operator",
    )


def _invoke(machine: Any, rows: dict[str, np.ndarray]) -> None:
    given = _order(_details(machine)[0], list(rows))
    try:
        for one, array in zip(given, rows.values(), strict=True):
            machine.resize_tensor_input(one["index"], array.shape)
        machine.allocate_tensors()
    except RuntimeError as error:
        raise _unsupported(error) from error
    for one, array in zip(given, rows.values(), strict=True):
        machine.set_tensor(one["index"], array.astype(one["dtype"]))
    machine.invoke()


def answer(config: dict[str, Any]) -> dict[str, Any]:
    """Run samples through a file."""
    machine = _open(config)
    inputs = config["signature"]["inputs"]
    samples = shared.samples_for(config, inputs)

    def run(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        _invoke(machine, rows)
        return {f"output_{at}": machine.get_tensor(one["index"]) for at, one in enumerate(_details(machine)[1])}

    shared.answer(config, samples, run, config.get("cuts", ()))
    return {"inputs": inputs, "precision": "", "rows": len(next(iter(samples.values())))}


def trace(config: dict[str, Any]) -> dict[str, Any]:
    """Keep every tensor of a run."""
    machine = _open(config, keeps=True)
    _invoke(machine, shared.load(Path(config["samples"])))
    found = shared.Trace()
    for one in machine.get_tensor_details():
        with contextlib.suppress(ValueError):
            found.add(one["name"], "tensor", [], one["name"], machine.get_tensor(one["index"]))
    found.write(Path(config["trace"]))
    return {}
