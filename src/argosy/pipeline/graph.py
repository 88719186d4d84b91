"""The graph of stages and their keys. Pure: the same recipe, code and data always give the same keys."""

from typing import Any

import msgspec

from argosy.core.digest import digest_of
from argosy.core.errors import InvalidInput
from argosy.pipeline.config import Recipe, plain


class Stage(msgspec.Struct, frozen=True):
    """A function from versions to versions. `revision` goes up whenever its code would give another result."""

    name: str
    needs: tuple[str, ...]
    revision: int
    entry: str
    does: str


STAGES: tuple[Stage, ...] = (
    Stage("data", (), 2, "argosy.pipeline.stages.data:run", "read, split, fit the preparation"),
    Stage("train", ("data",), 2, "argosy.pipeline.stages.train:run", "train the model"),
    Stage("convert", ("data", "train"), 1, "argosy.pipeline.stages.convert:run", "export to ONNX, check parity"),
    Stage("compress", ("data", "train", "convert"), 1, "argosy.pipeline.stages.compress:run", "compress to the budget"),
    Stage(
        "evaluate",
        ("data", "convert", "compress"),
        1,
        "argosy.pipeline.stages.evaluate:run",
        "measure on the test part, check the gates",
    ),
    Stage(
        "publish",
        ("data", "train", "convert", "compress", "evaluate"),
        1,
        "argosy.pipeline.stages.publish:run",
        "sign and publish the versions",
    ),
)


class Sources(msgspec.Struct, frozen=True, kw_only=True):
    """What a recipe points to outside of itself, by digest."""

    data: str
    test: str
    code: str
    init: str = ""
    """What `[model] init` names."""
    tokenizer: str = ""
    """What texts are split into tokens with, unless it is trained on them."""


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A stage of one recipe: its key and everything the key is the digest of."""

    stage: Stage
    key: str
    config: dict[str, Any]
    inputs: dict[str, str]


def stages_of(recipe: Recipe, until: str = "publish") -> list[Stage]:
    """Return the stages that `recipe` asks for, in order, up to and including `until`. Raises InvalidInput."""
    known = [stage.name for stage in STAGES]
    if until not in known:
        raise InvalidInput(f"{until!r} is not a stage; the stages are {', '.join(known)}")
    if until == "compress" and recipe.compress is None:
        raise InvalidInput("there is nothing to compress to", hint="add a [compress] section to argosy.toml")
    wanted = STAGES[: known.index(until) + 1]
    return [stage for stage in wanted if stage.name != "compress" or recipe.compress is not None]


def steps_of(recipe: Recipe, sources: Sources, until: str = "publish") -> list[Step]:
    """Return the steps of a run in the order in which they can be done."""
    steps: dict[str, Step] = {}
    for stage in stages_of(recipe, until):
        config = _config_of(stage.name, recipe, sources)
        inputs = {need: steps[need].key for need in stage.needs if need in steps}
        key = digest_of({"stage": stage.name, "revision": stage.revision, "config": config, "inputs": inputs})
        steps[stage.name] = Step(stage=stage, key=key, config=config, inputs=inputs)
    return list(steps.values())


def _config_of(stage: str, recipe: Recipe, sources: Sources) -> dict[str, Any]:
    """Return what the result of a stage depends on, besides its inputs.

    Names of files are left out: what they hold is in `sources`.
    """
    if stage == "data":
        section = {k: v for k, v in plain(recipe.data).items() if k not in ("train", "test")}
        with_tokenizer = {"tokenizer": sources.tokenizer} if sources.tokenizer else {}
        return {"data": section, "train": sources.data, "test": sources.test, **with_tokenizer}
    if stage == "train":
        section = {k: v for k, v in plain(recipe.model).items() if k != "init"}
        start = {"init": sources.init} if sources.init else {}
        train = {k: v for k, v in plain(recipe.train).items() if k != "log"}
        return {"model": section, "train": train, "code": sources.code, **start}
    if stage == "compress":
        return {"compress": plain(recipe.compress)}
    if stage == "evaluate":
        return {"evaluate": plain(recipe.evaluate)}
    if stage == "publish":
        return {"project": plain(recipe.project)}
    return {}


def difference(former: dict[str, Any], now: dict[str, Any], path: str = "") -> list[str]:
    """Return the dotted names of the values that differ, for saying why a stage runs again.

    >>> difference({"train": {"epochs": 3, "seed": 0}}, {"train": {"epochs": 4, "seed": 0}})
    ['train.epochs']
    """
    found: list[str] = []
    for name in sorted(former.keys() | now.keys()):
        one, other = former.get(name), now.get(name)
        where = f"{path}.{name}" if path else name
        if isinstance(one, dict) and isinstance(other, dict):
            found += difference(one, other, where)
        elif one != other:
            found.append(where)
    return found
