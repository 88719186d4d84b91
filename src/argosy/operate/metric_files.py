"""The Python files of a rollout's own metrics: into the registry, so that a later edit changes no rollout under way."""

import ast
from collections.abc import Callable
from pathlib import Path

import msgspec

from argosy.core.errors import InvalidInput, NotFound
from argosy.operate.config import OwnMetric, RolloutConfig

_MOST_CODE_BYTES = 1 << 20


def refuse_unfiled(rollout: RolloutConfig) -> None:
    """Raise InvalidInput for a metric whose file is not in the registry."""
    for name, own in rollout.metrics.items():
        if own.python and not own.code:
            raise InvalidInput(
                f"rollout.metrics.{name}.code is empty: the file of '{own.python}' is not in the registry",
                hint="argosy deploy files it; from Python: operate.metric_files.file_metrics",
            )


def file_metrics(rollout: RolloutConfig, folder: Path, put: Callable[[bytes], str]) -> RolloutConfig:
    """Return the rollout with the code of its own metrics in the registry, read from the files beside argosy.toml.

    Raises NotFound and InvalidInput.
    """
    filed = {}
    for name, own in rollout.metrics.items():
        filed[name] = msgspec.structs.replace(own, code=_filed(name, own, folder, put)) if own.python else own
    return msgspec.structs.replace(rollout, metrics=filed) if filed else rollout


def _filed(name: str, own: OwnMetric, folder: Path, put: Callable[[bytes], str]) -> str:
    module, _, function = own.python.partition(":")
    path = folder / f"{module}.py"
    try:
        data = path.read_bytes()
        tree = ast.parse(data)
    except OSError as error:
        raise NotFound(f"rollout.metrics.{name}.python is '{own.python}', but there is no '{path}'") from error
    except (SyntaxError, ValueError) as error:
        raise InvalidInput(f"rollout.metrics.{name}: '{path}' is no Python: {error}") from error
    if len(data) > _MOST_CODE_BYTES:
        raise InvalidInput(f"rollout.metrics.{name}: '{path}' has {len(data)} bytes; at most {_MOST_CODE_BYTES}")
    names = {getattr(node, "name", "") for node in tree.body}
    names |= {
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    if function not in names:
        raise InvalidInput(f"rollout.metrics.{name}: '{path}' has no function '{function}'")
    return put(data)
