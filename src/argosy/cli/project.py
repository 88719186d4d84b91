"""`argosy.toml`, whole: the recipe of versions, and how they are served and released."""

from pathlib import Path
from typing import Any

import msgspec

from argosy.core.config import from_plain, read_toml
from argosy.core.errors import InvalidInput
from argosy.operate.config import EndpointConfig, RolloutConfig
from argosy.operate.jobs.config import UpdateConfig
from argosy.pipeline.config import Recipe

FILE_NAME = "argosy.toml"


class Project(Recipe, frozen=True):
    """Every section but `[project]` is optional."""

    endpoint: EndpointConfig | None = None
    """Without this section an endpoint keeps the settings it has."""
    rollout: RolloutConfig | None = None
    update: UpdateConfig | None = None

    def check(self) -> None:
        """Refuse what can be seen to be impossible. Raises InvalidInput."""
        super().check()
        for section in (self.endpoint, self.rollout, self.update):
            check = getattr(section, "check", None)
            if check is not None:
                check()


def load_project(file: Path, changes: list[str] | None = None) -> tuple[Project, Path]:
    """Read and check a project file; return it and the folder its names are relative to.

    `changes` are `section.field=value` of the command line, which win over the file.
    """
    path = file / FILE_NAME if file.is_dir() else file
    project = read_toml(path, Project)
    if changes:
        found = msgspec.to_builtins(project)
        for change in changes:
            _apply(found, change)
        project = from_plain(found, Project, where="--set")
    project.check()
    return project, path.absolute().parent


def serving_rules(changes: list[str]) -> Project:
    """Return the sections `[endpoint]` and `[rollout]` that `changes` alone make, for what is served without a file."""
    found: dict[str, Any] = {"project": {"name": "unnamed"}}
    for change in changes:
        section = change.partition("=")[0].strip().partition(".")[0]
        if section not in ("endpoint", "rollout"):
            raise InvalidInput(
                f"--set {change!r} needs a project file, and there is no '{FILE_NAME}' here; without one, endpoint and "
                "rollout can be set",
                hint="name the project file with --file",
            )
        _apply(found, change)
    project = from_plain(found, Project, where="--set")
    project.check()
    return project


def _apply(found: dict[str, Any], change: str) -> None:
    import tomllib

    name, equals, text = change.partition("=")
    *sections, field = name.strip().split(".")
    if not equals or not sections:
        raise InvalidInput(f"--set {change!r} is not of the form section.field=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word: --set train.optimizer=sgd
    for section in sections:
        found = found.setdefault(section, {})
        if not isinstance(found, dict):
            raise InvalidInput(f"--set {change!r}: '{section}' is not a section")
    found[field] = value
