"""Digests of what a recipe points to: data files, and the user's code that builds the model."""

import ast
import subprocess
from pathlib import Path

from argosy.core.digest import digest_of, digest_tree, sha256_file
from argosy.core.errors import Conflict, InvalidInput
from argosy.data.location import located
from argosy.data.tokenizer import KINDS, TOKENIZER_FILE
from argosy.pipeline.config import Recipe
from argosy.pipeline.graph import Sources
from argosy.train.initial import init_digest


def read_sources(recipe: Recipe, base: Path) -> Sources:
    """Return the digests of data and code. Raises NotFound or InvalidInput when they aren't there."""
    if recipe.data is None:
        raise InvalidInput(
            f"project {recipe.project.name!r} has no [data] section, so there is nothing to run",
            hint='add a section [data] with: train = "data.csv"',
        )
    test = recipe.data.test
    return Sources(
        data=data_digest(base, recipe.data.train),
        test=data_digest(base, test) if test else "",
        code=code_digest(recipe, base),
        init=init_digest(recipe.model, base),
        tokenizer=tokenizer_digest(recipe, base),
    )


def refuse_changed(stage: str, recipe: Recipe, base: Path, sources: Sources) -> None:
    """Raise Conflict when what `stage` reads is not what the run's keys were made of, because it was edited since."""
    if stage == "data" and recipe.data is not None:
        named = {recipe.data.train: sources.data, recipe.data.test: sources.test}
        changed = [name for name, digest in named.items() if name and data_digest(base, name) != digest]
        if tokenizer_digest(recipe, base) != sources.tokenizer:
            changed.append(recipe.data.tokenizer or recipe.model.init)
    elif stage in ("train", "convert", "compress"):
        changed = [recipe.model.build] if code_digest(recipe, base) != sources.code else []
        if init_digest(recipe.model, base) != sources.init:
            changed.append(recipe.model.init)
    else:
        changed = []
    if changed:
        raise Conflict(
            f"'{changed[0]}' changed while the run was going on, so stage '{stage}' would not be what its key says",
            hint="run again: what does not depend on it is not done twice",
            code="source_changed",
        )


def code_digest(recipe: Recipe, base: Path) -> str:
    """Return one digest over the user's own modules that build the model."""
    return digest_of({name: sha256_file(path) for name, path in local_modules(recipe, base).items()})


def tokenizer_digest(recipe: Recipe, base: Path) -> str:
    """Return the digest of the tokenizer that texts are prepared with, or '' where it is trained on them.

    That of `[model] init` counts whether there are texts or not: only reading the data would tell.
    """
    named = recipe.data.tokenizer if recipe.data is not None else ""
    if not named:
        return init_digest(recipe.model, base)
    path = base / Path(named).expanduser()
    if named in KINDS or not path.exists():
        return ""  # a name that leads nowhere is an error of the stage
    return digest_tree(path, TOKENIZER_FILE) if path.is_dir() else sha256_file(path)


def data_digest(base: Path, name: str) -> str:
    """Return the digest of a file or an object in a store, or of every file in a folder. Raises NotFound."""
    with located(name, base) as path:
        return digest_tree(path, "*") if path.is_dir() else sha256_file(path)


def local_modules(recipe: Recipe, base: Path) -> dict[str, Path]:
    """Return the user's own modules that build the model: the one named in `[model] build` and what it imports."""
    module = recipe.model.build.partition(":")[0]
    found: dict[str, Path] = {}
    waiting = [module] if module else []
    while waiting:
        name = waiting.pop().removesuffix(".py")
        path = base / (name.replace(".", "/") + ".py")
        if name in found or not path.is_file():
            continue
        found[name] = path
        waiting += _imports(path)
    return found


def _imports(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise InvalidInput(f"'{path.name}' is not Python: {error}", path=str(path)) from error
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    return names


def code_commit(base: Path) -> str:
    """Return the commit of the repository around `base`, with `+changes` when the tree differs, or ''."""
    commit = _git(base, "rev-parse", "HEAD")
    if not commit:
        return ""
    return commit + ("+changes" if _git(base, "status", "--porcelain", "--untracked-files=no", "--", ".") else "")


def _git(base: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(base), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
