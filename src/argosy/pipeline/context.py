"""What a stage is given: its recipe, the outputs of the stages before it, a folder to work in, somebody to tell."""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from argosy.core.clock import Clock
from argosy.core.digest import canonical
from argosy.core.errors import Internal
from argosy.core.files import resolve_inside
from argosy.core.progress import Reporter
from argosy.pipeline.config import Recipe
from argosy.pipeline.graph import Sources
from argosy.registry.registry import Registry
from argosy.train.hosts import Hosts


class StageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a finished stage leaves: files by digest, and values worth knowing without opening them."""

    outputs: dict[str, str] = {}
    values: dict[str, Any] = {}


@dataclass(frozen=True)
class StageContext:
    """Everything a stage may use. `work` is the stage's own and outlives a crash; `inputs` are finished stages."""

    recipe: Recipe
    base: Path
    keys: dict[str, str]
    sources: Sources
    run: str
    work: Path
    inputs: dict[str, StageRecord]
    registry: Registry
    clock: Clock
    report: Reporter
    home: Path
    """Where this machine keeps what it can find again, such as measurements."""
    hosts: Hosts = field(default_factory=Hosts)
    """Those that train together, and which this is."""

    def input_file(self, stage: str, name: str) -> Path:
        """Return the verified local copy of a file that an earlier stage left."""
        outputs = self.inputs[stage].outputs
        if name not in outputs:
            raise Internal(f"stage '{stage}' left no '{name}'; it left {', '.join(sorted(outputs))}")
        return self.registry.blobs.fetch(outputs[name])

    def input_folder(self, stage: str, folder: str) -> Path:
        """Lay the files that an earlier stage left below `folder/` into this stage's work, and return that folder."""
        target = self.work / folder
        for name in self.inputs[stage].outputs:
            if name.startswith(folder + "/"):
                path = resolve_inside(self.work, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(self.input_file(stage, name), path)
        return target

    def keep(self, *names: str) -> dict[str, str]:
        """Store files of `work` (folders with all they hold) as blobs and return name -> digest."""
        found: dict[str, str] = {}
        for name in names:
            path = self.work / name
            files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
            for file in files:
                found[str(file.relative_to(self.work))] = self.registry.blobs.put(file)
        return found

    def keep_json(self, name: str, value: Any) -> dict[str, str]:
        """Store plain values or a struct as a canonical JSON blob and return name -> digest."""
        return {name: self.registry.blobs.put(canonical(value))}


def link_or_copy(source: Path, target: Path) -> None:
    """Let `target` be the same file as `source`, or one with the same bytes."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)
