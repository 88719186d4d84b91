"""From `[model]` to a module: built-in families, the user's own functions, and weights on disk."""

import contextlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from argosy.core.config import from_plain
from argosy.core.digest import sha256
from argosy.core.errors import ArgosyError, IntegrityError, InvalidInput, NotFound
from argosy.core.files import write_atomic
from argosy.formats.hf_folder import read_start
from argosy.train import families
from argosy.train.config import ModelConfig
from argosy.train.initial import init_path
from argosy.train.inputs import ModelInput
from argosy.train.lora import adapt
from argosy.train.pretrained import build_pretrained


def build_model(
    config: ModelConfig,
    base: Path,
    given: ModelInput | tuple[int, ...],
    outputs: int,
    seed: int,
    *,
    for_training: bool = True,
) -> nn.Module:
    """Build the model that `config` describes, with first weights that depend on `seed` and on what `init` names.

    `base` is the folder of `argosy.toml`; `given` says what the model gets for one sample, or is that sample's shape.
    It has been tried: it maps two samples to `[2, outputs]`, as a language model to `[2, tokens, outputs]`. With LoRA
    what is not adapted is frozen. Not `for_training`: the plain module, for weights that a training has left.
    Torch's global random state is left as it was. Raises NotFound or InvalidInput, for an error in the user's code
    with its file and line, and PluginError for a library that is missing.
    """
    config.check()
    given = given if isinstance(given, ModelInput) else ModelInput(shape=given)
    init = init_path(config, base)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        head: set[str] | None = None
        if init is not None and init.is_dir():
            start = read_start(init)
            model, head = build_pretrained(start, config.options, given, outputs, with_weights=for_training)
        else:
            model = (_build_users if config.build else _build_family)(config, base, given, outputs)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise InvalidInput(
                f"the model {_named(config)} has no parameters to train",
                hint="assign layers to attributes of the module (self.layer = ...), not to local variables or lists",
                code="no_parameters",
            )
        check_output(model, config, base, given, outputs)
        if for_training and init is not None and init.is_file():
            head = load_start(model, init, outputs) or None
        if for_training and config.lora is not None:
            adapt(model, config.lora, head)
    return model


def _build_family(config: ModelConfig, base: Path, given: ModelInput, outputs: int) -> nn.Module:
    del base
    name = config.family or _usual_family(given, outputs)
    family = families.load_family(name)
    options = from_plain(config.options, family.options, where=f"[model] options of family '{name}'")
    return family.build(options, given, outputs)


def _usual_family(given: ModelInput, outputs: int) -> str:
    if given.is_text:
        return "gpt" if outputs == given.vocabulary else "transformer"
    if given.more:
        return "graph"
    return "resnet" if len(given.shape) == 3 else "mlp"  # channels, height and width


def _build_users(config: ModelConfig, base: Path, given: ModelInput, outputs: int) -> nn.Module:
    module_name, _, function_name = config.build.partition(":")
    module = load_users_module(module_name, base)
    function = getattr(module, function_name, None)
    if not callable(function):
        found = sorted(
            n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__
        )
        raise NotFound(
            f"'{module_name}.py' has no function '{function_name}'; it has: {', '.join(found) or 'none'}",
            hint="correct [model] build in argosy.toml",
        )
    offered = {"input_shape": given.shape, "outputs": outputs, **_of_texts(given), **config.options}
    arguments = _arguments(function, offered, config)
    with users_code(base, f"building the model {_named(config)}"):
        model = function(**arguments)
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"{_named(config)} returned a {type(model).__name__}; it must return a torch.nn.Module")
    return model


def _of_texts(given: ModelInput) -> dict[str, int]:
    return {"vocabulary": given.vocabulary, "pad_id": given.pad_id} if given.is_text else {}


def _arguments(function: Callable[..., Any], offered: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    unknown = [] if takes_all else [name for name in config.options if name not in named]
    if unknown:
        raise InvalidInput(
            f"[model] options has {', '.join(repr(n) for n in unknown)}, but {_named(config)} takes only: "
            f"{', '.join(named) or 'nothing'}"
        )
    required = [n for n in named if parameters[n].default is inspect.Parameter.empty and n not in offered]
    if required:
        raise InvalidInput(
            f"{_named(config)} needs {', '.join(repr(n) for n in required)}, which [model] options does not have",
            hint="Argosy itself gives 'input_shape' and 'outputs'; add the rest to [model] options",
        )
    return {name: value for name, value in offered.items() if takes_all or name in named}


def load_users_module(name: str, base: Path) -> ModuleType:
    """Import `name` from the folder `base` and nowhere else. Its own imports find their neighbours in `base`.

    Raises NotFound, or InvalidInput with the user's file and line when importing fails.
    """
    path = base.joinpath(*name.split(".")).with_suffix(".py")
    if not path.is_file():
        raise NotFound(
            f"[model] build names the module '{name}', but there is no '{path.name}' in '{path.parent}'",
            hint="put the file beside argosy.toml or correct [model] build",
        )
    # A module of the same name may be loaded from another project's folder: the place is part of the name.
    unique = f"argosy_user_{sha256(str(path.absolute()).encode())[7:19]}_{path.stem}"
    spec = importlib.util.spec_from_file_location(unique, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module
    if str(base) not in sys.path:
        sys.path.insert(0, str(base))
    try:
        with users_code(base, f"importing '{path.name}'"):
            spec.loader.exec_module(module)
    except ArgosyError:
        del sys.modules[unique]
        raise
    return module


@contextlib.contextmanager
def users_code(base: Path, doing: str, *, only_theirs: bool = False) -> Iterator[None]:
    """Turn whatever the user's code raises into InvalidInput that shows the user's file and line, not our stack.

    With `only_theirs` an error that passed through no file of the user's stays as it is.
    """
    try:
        yield
    except ArgosyError:
        raise
    except Exception as error:
        place = _place(error, base)
        if only_theirs and not place:
            raise
        raise InvalidInput(f"{doing} failed{place}: {type(error).__name__}: {error}", code="user_code") from error


def _place(error: Exception, base: Path) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f" at {Path(error.filename).name}, line {error.lineno}"
    root = base.absolute()
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_users(Path(f.filename).absolute(), root)]
    if not frames:
        return ""
    last = frames[-1]
    return f" at {Path(last.filename).absolute().relative_to(root)}, line {last.lineno} ({last.line})"


def _is_users(path: Path, root: Path) -> bool:
    # A project's folder may hold its environment, and Argosy itself.
    libraries = {"site-packages", "dist-packages", Path(contextlib.__file__).parent.name}
    return root in path.parents and _OURS not in path.parents and libraries.isdisjoint(path.parts)


_OURS = Path(families.__file__).absolute().parents[2]
"""Where Argosy's own code is."""


def check_output(model: nn.Module, config: ModelConfig, base: Path, given: ModelInput, outputs: int) -> None:
    """Run two samples through `model` and raise InvalidInput unless `[2, outputs]` comes out.

    A language model, whose outputs are its tokens, gives `[2, tokens, outputs]`.
    """
    was_training = model.training
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    example = given.example(dtype)
    expected = [2, example[0].shape[1], outputs] if given.is_text and outputs == given.vocabulary else [2, outputs]
    model.eval()
    try:
        with torch.no_grad(), users_code(base, f"running the model {_named(config)} on 2 samples of {given}"):
            found = model(*example)
    finally:
        model.train(was_training)
    shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if shape != expected:
        raise InvalidInput(
            f"the model {_named(config)} gave {shape} for 2 samples of {given}; expected {expected}",
            hint="the last layer must give one number per class, or one number for regression",
            code="output_shape",
        )


def _named(config: ModelConfig) -> str:
    return f"'{config.build or config.family or config.init or 'auto'}'"


def save_weights(module: nn.Module, path: Path) -> None:
    """Write all parameters and buffers of `module` to a safetensors file, atomically."""
    write_atomic(path, weights_to_bytes(module.state_dict()))


def weights_to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Return tensors in the safetensors format; the same values always give the same bytes."""
    from safetensors.torch import save

    # Copies, because the format refuses tensors that share memory, such as tied weights.
    return save({name: tensors[name].detach().clone().contiguous() for name in sorted(tensors)})


def load_weights(module: nn.Module, path: Path) -> None:
    """Fill `module` with the weights in a safetensors file.

    Raises IntegrityError if the file is damaged, InvalidInput if it belongs to another model.
    """
    found, expected = _read_weights(path), module.state_dict()
    wrong = _differing(found, expected)
    if wrong:
        raise InvalidInput(
            f"'{path.name}' holds the weights of another model: {len(wrong)} tensors differ, the first is '{wrong[0]}'",
            code="other_model",
        )
    module.load_state_dict(found)


def load_start(model: nn.Module, path: Path, outputs: int) -> set[str]:
    """Fill `model` with a safetensors file of the same model; return the parameters that begin anew.

    Those are the last ones where the file has another number of classes: their first size is `outputs`. Raises
    InvalidInput when anything else differs, IntegrityError for a damaged file.
    """
    found, expected = _read_weights(path), model.state_dict()
    anew = {
        name
        for name, tensor in expected.items()
        if name in found
        and found[name].shape != tensor.shape
        and tensor.shape[:1] == (outputs,)
        and found[name].shape[1:] == tensor.shape[1:]
    }
    wrong = [name for name in _differing(found, expected) if name not in anew]
    if wrong:
        have, want = (list(t[wrong[0]].shape) if wrong[0] in t else "none" for t in (found, expected))
        raise InvalidInput(
            f"[model] init names '{path.name}', which holds the weights of another model: {len(wrong)} tensors differ, "
            f"the first is '{wrong[0]}' ({have} in the file, {want} in the model)",
            hint="build the model as it was built when the file was made",
            code="other_model",
        )
    model.load_state_dict({name: expected[name] if name in anew else found[name] for name in expected})
    return anew


def _read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(path.read_bytes())
    except FileNotFoundError as error:
        raise NotFound(f"there are no weights at '{path}'") from error
    except SafetensorError as error:
        raise IntegrityError(f"'{path.name}' is not a whole safetensors file: {error}", path=str(path)) from error


def _differing(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    return [
        name
        for name in sorted(expected.keys() | found.keys())
        if name not in found or name not in expected or found[name].shape != expected[name].shape
    ]
