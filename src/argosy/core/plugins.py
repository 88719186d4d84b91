"""One table per extension point: built-in implementations as strings, installed ones by entry point."""

import importlib
from typing import Generic, TypeVar, cast

from argosy.core.errors import NotFound, PluginError

T = TypeVar("T")


class Plugins(Generic[T]):
    """Names and where their implementations are; nothing is imported before it is asked for.

    `group` is the entry-point group in which other packages add to the table. `extras` says which extra of Argosy
    installs what a built-in implementation needs.

    >>> table = Plugins[type]("argosy.examples", {"ordered": "collections:OrderedDict"})
    >>> table.load("ordered").__name__
    'OrderedDict'
    """

    def __init__(self, group: str, builtin: dict[str, str], *, extras: dict[str, str] | None = None) -> None:
        self.group = group
        self._builtin = builtin
        self._extras = extras or {}

    def names(self) -> list[str]:
        """Return every known name, sorted."""
        from importlib import metadata  # 50 ms of imports, so only when the built-in table is not enough

        installed = {entry.name for entry in metadata.entry_points(group=self.group)}
        return sorted(installed | set(self._builtin))

    def load(self, name: str) -> T:
        """Import and return the implementation called `name`.

        Raises NotFound with the known names, or PluginError with the extra to install.
        """
        where = self._builtin.get(name)
        if where is None:
            from importlib import metadata

            found = [entry for entry in metadata.entry_points(group=self.group) if entry.name == name]
            if not found:
                kind = self.group.rpartition(".")[2]
                raise NotFound(
                    f"{name!r} is not one of the known {kind}: {', '.join(self.names())}", known=self.names()
                )
            where = found[0].value
        return cast("T", load_object(where, extra=self._extras.get(name, "")))


def load_object(where: str, *, extra: str = "") -> object:
    """Import `module:name`; a missing library becomes a PluginError that names `argosy[extra]`."""
    module, _, attribute = where.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise missing(error, extra) from error


def missing(error: ModuleNotFoundError, extra: str) -> PluginError:
    """Say which extra brings the module that was not found."""
    return PluginError(
        f"this needs '{error.name}', which is not installed",
        hint=f"install it with: pip install 'argosy[{extra}]'"
        if extra
        else f"install it with: pip install {error.name}",
        code="missing_extra",
        module=str(error.name),
    )
