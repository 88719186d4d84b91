"""Argosy takes a large model from data to a running, watched, reversible service, from one file."""

from argosy.core.version import __version__

# What type checkers take for true. `typing` itself would cost every process 10 ms.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from argosy.cli.python import abort, deploy, pause, plan, predict, promote, resume, rollback, run, watch, why
    from argosy.client import AsyncClient, Client, Prediction
    from argosy.core.errors import Refused
    from argosy.formats.python_model import (
        BOOL,
        FP16,
        FP32,
        FP64,
        INT8,
        INT16,
        INT32,
        INT64,
        UINT8,
        UINT16,
        UINT32,
        UINT64,
        Bytes,
        Columns,
        Files,
        Image,
        ImageFile,
        Model,
        RowModel,
        Shape,
        Text,
    )

__all__ = [
    "BOOL", "FP16", "FP32", "FP64", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64",
    "AsyncClient", "Bytes", "Client", "Columns", "Files", "Image", "ImageFile", "Model", "Prediction", "Refused",
    "RowModel", "Shape", "Text", "__version__",
    "abort", "deploy", "pause", "plan", "predict", "promote", "resume", "rollback", "run", "watch", "why",
]  # fmt: skip

_CLIENT = ("AsyncClient", "Client", "Prediction")


def __getattr__(name: str) -> object:
    """Import the client, the verbs, or what models are written with, when it is first asked for.

    Every process of Argosy imports this module, so it must stay light.
    """
    if name in __all__:
        import importlib

        where = "argosy.client" if name in _CLIENT else "argosy.formats.python_model"
        if name.islower():  # the verbs of the command line
            where = "argosy.cli.python"
        found: object = getattr(importlib.import_module(where), name)
        return found
    raise AttributeError(f"module 'argosy' has no attribute {name!r}")
