"""Argosy takes a large model from data to a running, watched, reversible service, from one file."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argosy.client import AsyncClient, Client, Prediction

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "Prediction", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the client when it is first asked for: every process of Argosy imports this module."""
    if name in __all__:
        import importlib

        return getattr(importlib.import_module("argosy.client"), name)
    raise AttributeError(f"module 'argosy' has no attribute {name!r}")
