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
from argosy.train import families
from argosy.train.config import ModelConfig
from argosy.train.inputs import ModelInput


def build_model(
    config: ModelConfig, base: Path, given: ModelInput | tuple[int, ...], outputs: int, seed: int
) -> nn.Module:
    """Build the model that `config` describes, with first weights that depend on `seed` alone.

    `base` is the folder of `argosy.toml`; `given` says what the model gets for one sample, or is that sample's shape.
    It has been tried: it maps two samples to `[2, outputs]`, as a language model to `[2, tokens, outputs]`. Torch's
    global random state is left as it was. Raises NotFound or InvalidInput, for an error in the user's code with its
    file and line.
    """
    config.check()
    given = given if isinstance(given, ModelInput) else ModelInput(shape=given)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        build = _build_users if config.build else _build_family
        model = build(config, base, given, outputs)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise InvalidInput(
                f"the model {_named(config)} has no parameters to train",
                hint="assign layers to attributes of the module (self.layer = ...), not to local variables or lists",
                code="no_parameters",
            )
        check_output(model, config, base, given, outputs)
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
    offered = {"input_shape": given.shape, "outputs": outputs, **config.options}
    arguments = _arguments(function, offered, config)
    with users_code(base, f"building the model {_named(config)}"):
        model = function(**arguments)
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"{_named(config)} returned a {type(model).__name__}; it must return a torch.nn.Module")
    return model


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
    return f"'{config.build or config.family or 'auto'}'"


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
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        found = load(path.read_bytes())
    except FileNotFoundError as error:
        raise NotFound(f"there are no weights at '{path}'") from error
    except SafetensorError as error:
        raise IntegrityError(f"'{path.name}' is not a whole safetensors file: {error}", path=str(path)) from error
    expected = module.state_dict()
    wrong = [
        name
        for name in sorted(expected.keys() | found.keys())
        if name not in found or name not in expected or found[name].shape != expected[name].shape
    ]
    if wrong:
        raise InvalidInput(
            f"'{path.name}' holds the weights of another model: {len(wrong)} tensors differ, the first is '{wrong[0]}'",
            code="other_model",
        )
    module.load_state_dict(found)
