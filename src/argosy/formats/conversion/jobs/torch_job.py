"""PyTorch modules: run, followed step by step, exported to ONNX; and ONNX graphs as modules. Needs `argosy[train]`."""

import importlib.util
import inspect
import json
import random
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import argosy_child
import numpy as np
import torch

shared = argosy_child.job("shared")

_MODULE_TEMPLATE = '''"""A module that `argosy convert` made of an ONNX graph: `build()` gives it, to train further."""

from pathlib import Path

from safetensors.torch import load_file

from argosy.formats.onnx_module import to_module

HERE = Path(__file__).parent
INPUTS = {inputs}


def build():
    """Return the module with its weights; its forward takes the inputs above, in their order."""
    module = to_module(HERE / "graph.onnx")
    module.load_state_dict(load_file(HERE / "weights.safetensors"))
    return module
'''


def answer(config: dict[str, Any]) -> dict[str, Any]:
    """Build a module, run samples through it, and say what it takes and gives."""
    module, inputs = load(config)
    return run_samples(config, module, inputs, torch_run(module, inputs))


def run_samples(config: dict[str, Any], module: Any, inputs: Any, run: Callable[[Any], Any]) -> dict[str, Any]:
    """Write samples and answers of anything that runs like a module."""
    samples = shared.samples_for(config, inputs)
    shared.answer(config, samples, run, config.get("cuts", ()))
    return {"inputs": inputs, "precision": precision(module), "rows": len(next(iter(samples.values())))}


def load(config: dict[str, Any]) -> tuple[Any, list[dict[str, Any]]]:
    """Return the module that a file's function builds, in inference mode, and its inputs in the order of `forward`."""
    path = Path(config["path"])
    code = _import(path)
    build = getattr(code, config["entry"], None)
    if not callable(build):
        raise argosy_child.Refused(
            f"'{path.name}' has no function '{config['entry']}'",
            hint="name the function that returns the module: file.py:function",
            code="model_code_failed",
        )
    # A module without weights of its own gets the same random ones whenever it is built.
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - for code that uses the old generator
    random.seed(0)
    try:
        module = build()
    except Exception as error:
        raise argosy_child.Refused(
            f"{config['entry']}() of '{path.name}' fails: {_where(error, path)}", code="model_code_failed"
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise argosy_child.Refused(
            f"{config['entry']}() of '{path.name}' returns {type(module).__name__}, not a torch.nn.Module",
            code="model_code_failed",
        )
    if config.get("weights"):
        _load_weights(module, Path(config["weights"]))
    module.eval()
    return module, _in_order(module, given_inputs(config, getattr(code, "INPUTS", None)))


def _import(path: Path) -> Any:
    # Last, so that a file beside it never stands for a library.
    sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        raise argosy_child.Refused(
            f"'{path.name}' can't be imported: {_where(error, path)}", code="model_code_failed"
        ) from error
    return module


def _where(error: BaseException, path: Path) -> str:
    frames = [one for one in traceback.extract_tb(error.__traceback__) if Path(one.filename).parent == path.parent]
    line = f" (line {frames[-1].lineno} of '{Path(frames[-1].filename).name}')" if frames else ""
    return f"{type(error).__name__}: {str(error)[:300]}{line}"


def _load_weights(module: Any, path: Path) -> None:
    from safetensors.torch import load_file

    found = load_file(path)
    kept = module.state_dict(keep_vars=True)
    shared_by: dict[int, list[str]] = {}
    for name, tensor in kept.items():
        shared_by.setdefault(tensor.data_ptr() if tensor.numel() else id(tensor), []).append(name)
    try:
        wrong = module.load_state_dict(found, strict=False)
    except RuntimeError as error:
        raise argosy_child.Refused(
            f"the weights don't fit the module: {str(error)[:400]}", code="weights_differ"
        ) from error
    # Of tied weights a file keeps one, under whichever name.
    tied = {name for names in shared_by.values() if set(names) & set(found) for name in names}
    absent = [name for name in wrong.missing_keys if name not in tied]
    if absent or wrong.unexpected_keys:
        told = [f"the module has '{name}', the file has not" for name in absent[:2]]
        told += [f"the file has '{name}', the module has not" for name in wrong.unexpected_keys[:2]]
        raise argosy_child.Refused(
            f"the weights in '{path.name}' are not those of the module: {'; '.join(told)}", code="weights_differ"
        )


def given_inputs(config: dict[str, Any], declared: Any = None) -> list[dict[str, Any]]:
    """Return the inputs as the user gave them, as the code declares them, or as the samples have them."""
    if config.get("inputs"):
        return list(config["inputs"])
    if isinstance(declared, Mapping):
        return [shared.describe(name, shape, dtype) for name, (shape, dtype) in declared.items()]
    if config.get("samples"):
        arrays = shared.load(Path(config["samples"]))
        return [shared.describe(name, (-1, *a.shape[1:]), a.dtype.name) for name, a in arrays.items()]
    raise argosy_child.Refused(
        "what the model takes is not known: its code doesn't say",
        hint="say it with --input x:batch,3,224,224:float32, or give real samples with --samples samples.npz",
        code="inputs_unknown",
    )


def _in_order(module: Any, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    order = list(inspect.signature(module.forward).parameters)
    names = {one["name"] for one in inputs}
    return sorted(inputs, key=lambda one: order.index(one["name"])) if names <= set(order) else inputs


def tensors(samples: Mapping[str, np.ndarray], inputs: list[dict[str, Any]]) -> list[Any]:
    """Return arrays as tensors by position, in the datatypes of the inputs."""
    found = []
    for one in inputs:
        tensor = torch.from_numpy(np.ascontiguousarray(samples[one["name"]]))
        found.append(tensor.to(torch.bfloat16) if one["dtype"] == "bfloat16" else tensor)
    return found


def flat(found: Any) -> dict[str, Any]:
    """Return whatever a module gives as named tensors."""
    if isinstance(found, torch.Tensor):
        return {"output": found}
    if isinstance(found, Mapping):
        return {
            f"{name}{'' if key == 'output' else '.' + key}": t
            for name, one in found.items()
            for key, t in flat(one).items()
        }
    if isinstance(found, (tuple, list)):
        parts = [tensor for one in found for tensor in flat(one).values()]
        return {f"output_{at}" if len(parts) > 1 else "output": tensor for at, tensor in enumerate(parts)}
    if found is None:
        return {}
    raise argosy_child.Refused(
        f"the model gives a {type(found).__name__}, and only tensors can be converted",
        hint="wrap it in a module whose forward returns tensors",
        code="outputs_unsupported",
    )


def torch_run(module: Any, inputs: list[dict[str, Any]]) -> Callable[[Any], Any]:
    """Return a function of arrays that runs a module."""

    def run(samples: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.no_grad():
            found = flat(module(*tensors(samples, inputs)))
        return {name: as_array(tensor) for name, tensor in found.items()}

    return run


def as_array(tensor: Any) -> np.ndarray:
    """Return a tensor as an array; bfloat16 as float32."""
    tensor = tensor.detach().cpu()
    return np.asarray((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())


def precision(module: Any) -> str:
    """Return the coarsest floating datatype of a module's parameters."""
    kinds = {str(p.dtype).removeprefix("torch.") for p in module.parameters() if p.is_floating_point()}
    return next((kind for kind in ("bfloat16", "float16", "float32", "float64") if kind in kinds), "")


class Flat(torch.nn.Module):
    """A module whose outputs are a tensor or a tuple of tensors, whatever they were."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *arrays: Any) -> Any:
        """Run it."""
        found = tuple(flat(self.inner(*arrays)).values())
        return found if len(found) > 1 else found[0]


def exportable(module: Any, example: list[Any]) -> tuple[Any, list[str]]:
    """Return the module, wrapped if its outputs are nested, and the outputs' names."""
    with torch.no_grad():
        found = module(*example)
    names = list(flat(found))
    plain = isinstance(found, torch.Tensor) or (
        isinstance(found, tuple) and len(found) > 1 and all(isinstance(one, torch.Tensor) for one in found)
    )
    return (module if plain else Flat(module)), names


def examples(config: dict[str, Any], inputs: list[dict[str, Any]], rows: int = 4) -> list[Any]:
    """Return a few of the samples as tensors."""
    samples = shared.load(Path(config["folder"]) / "samples.npz")
    return tensors({name: array[:rows] for name, array in samples.items()}, inputs)


def to_onnx(config: dict[str, Any]) -> dict[str, Any]:
    """Export a module to one ONNX file."""
    from argosy.formats.onnx_export import onnx_bytes

    module, inputs = load(config)
    example = examples(config, inputs)
    watching = argosy_child.job("torch_watch")
    where = watching.value_dependence(module, example, Path(config["path"]).parent)
    if where:
        raise watching.control_flow(
            where, "write it with torch.where or torch.cond; or convert to TorchScript (.pt) first, and that to ONNX"
        )
    free_lengths = _frees_lengths(inputs)
    module, names = exportable(module, example)
    named = dict(zip((one["name"] for one in inputs), example, strict=True))
    Path(config["target"]).write_bytes(onnx_bytes(module, named, output=names, free_lengths=free_lengths))
    return {}


def _frees_lengths(inputs: list[dict[str, Any]]) -> bool:
    free = [{at for at, size in enumerate(one["shape"]) if size < 0 and at > 0} for one in inputs]
    if all(not one for one in free):
        return False
    if all(one == {1} for one in free):
        return True
    raise argosy_child.Refused(
        "only the batch can be free, or the batch and the second dimension of every input",
        hint="give the other dimensions a size: --input x:batch,3,224,224:float32",
        code="inputs_unknown",
    )


def from_onnx(config: dict[str, Any]) -> dict[str, Any]:
    """Write a folder with a module of an ONNX graph: code, graph and weights."""
    from safetensors.torch import save_file

    from argosy.formats.onnx_module import to_module

    place = Path(config["target"])
    place.mkdir()
    content = Path(config["path"]).read_bytes()
    (place / "graph.onnx").write_bytes(content)
    module = to_module(content)
    state = {name: tensor.detach().clone().contiguous() for name, tensor in module.state_dict().items()}
    save_file(state, place / "weights.safetensors", metadata={"format": "pt"})
    inputs = {one["name"]: (one["shape"], one["dtype"]) for one in config["signature"]["inputs"]}
    (place / "model.py").write_text(_MODULE_TEMPLATE.format(inputs=json.dumps(inputs)))
    return {}


def trace(config: dict[str, Any]) -> dict[str, Any]:
    """Follow a module's run on samples."""
    module, inputs = load(config)
    return dict(argosy_child.job("torch_watch").follow(config, module, inputs))
