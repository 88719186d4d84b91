"""The part of `argosy.toml` that decides what a run makes: the recipe of a version."""

from typing import Any

import msgspec

from argosy.compress.config import CompressConfig
from argosy.core.config import Config
from argosy.core.errors import InvalidInput
from argosy.data.config import DataConfig
from argosy.evaluate.config import EvaluateConfig
from argosy.train.config import ModelConfig, TrainConfig

_NAME = r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"


class ProjectConfig(Config, frozen=True):
    """Who this is about. The name becomes the name of versions and of the endpoint."""

    name: str
    """Lower-case letters, digits, dot, dash and underscore, at most 63; it appears in URLs and file names."""


class Recipe(Config, frozen=True):
    """The sections that a run depends on; each sits beside the code it configures."""

    project: ProjectConfig
    data: DataConfig | None = None
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    compress: CompressConfig | None = None
    evaluate: EvaluateConfig = EvaluateConfig()

    def check(self) -> None:
        """Refuse what can be seen to be impossible before anything runs. Raises InvalidInput."""
        check_name(self.project.name)
        for section in (self.data, self.model, self.train, self.compress, self.evaluate):
            check = getattr(section, "check", None)
            if check is not None:
                check()
        if self.compress is not None and self.data is not None and self.data.task == "language-model":
            raise InvalidInput(
                "there is a [compress] section, but a language model can't be compressed yet",
                hint="remove the section",
            )


def check_name(name: str) -> str:
    """Return `name` if it can name a project, model or endpoint; raise InvalidInput otherwise."""
    import re

    if not re.fullmatch(_NAME, name):
        raise InvalidInput(
            f"{name!r} can't be a name; use 1 to 63 lower-case letters, digits, '.', '-' and '_', "
            "beginning and ending with a letter or digit",
            name=name,
        )
    return name


def plain(section: Any, kind: type[msgspec.Struct] | None = None) -> Any:
    """Return a section as plain values with every default written out, for digests and for showing.

    `kind`: only the fields that this class has, when `section` is of a class that adds some.
    """
    if section is None:
        return None
    return {f.name: _plain_value(getattr(section, f.name)) for f in msgspec.structs.fields(kind or section)}


def _plain_value(value: Any) -> Any:
    return plain(value) if isinstance(value, msgspec.Struct) else msgspec.to_builtins(value)
