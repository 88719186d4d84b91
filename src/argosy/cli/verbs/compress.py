"""`compress`: a version or a model file within a budget, or by the passes that are named."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from argosy.cli.output import Output
from argosy.cli.run_view import RunView
from argosy.cli.verbs.import_model import import_model
from argosy.cli.verbs.models import compression_table, main_metrics
from argosy.cli.workspace import Workspace
from argosy.compress.config import PASS_NAMES, CompressConfig
from argosy.compress.report import CompressResult
from argosy.core.errors import InvalidInput
from argosy.core.files import write_atomic
from argosy.core.progress import Progress
from argosy.registry.versions import MODEL_FILE, Version

if TYPE_CHECKING:
    from argosy.pipeline.material import Material


def compress(
    model: str,
    *,
    config: CompressConfig,
    data: str,
    label: str,
    passes: list[str],
    save: Path | None,
    name: str,
    as_json: bool,
) -> None:
    """Compress a version or a file; publish the result as its sibling, and with `save` write it to a folder."""
    from argosy.pipeline.compressing import compress_version, published

    output = Output(as_json=as_json)
    config.check()
    recipe = [read_pass(text) for text in passes]
    workspace = Workspace()
    version = _version(output, workspace, model, name)
    material, folder = _material(workspace, version, config, data=data, label=label, may_generate=bool(recipe))
    asked = f"passes: {', '.join(passes)}" if recipe else str(config.budget())
    output.line(f"[bold]{version}[/]: {asked}")
    output.line(f"[dim]judged on {material.origin}[/]")
    with RunView(output, workspace.clock, {"compress": "search the passes within the budget"}) as view:
        view(Progress(stage="compress", message="started"))
        result = compress_version(workspace.registry, version, material, config, folder, view, recipe)
        found: Version | None = None
        if result.chosen is not None:
            found = published(
                workspace.registry,
                version,
                material,
                result,
                view,
                max_drop=1.0 if recipe else config.budget().max_drop,
                now=workspace.clock.now(),
            )
        view(Progress(stage="compress", message="finished", values=result.values()))
    compression_table(output, result.rows(), brief=True)
    if noise := result.noise():
        output.line(f"[dim]{noise}[/]")
    if save is not None:
        _save(save, result, found, workspace)
        output.line(f"wrote '{save}'")
    if found is None:
        raise _refusal(result, is_asked_for=bool(recipe))
    evaluation = found.manifest.evaluation
    mark = "[green]kept on the test part[/]" if evaluation.passed else "[red]not kept on the test part[/]"
    if recipe:
        mark = "on the test part"  # who names passes has asked for no bound
    output.line(f"{result.says}")
    if result.hint:
        output.line(f"[dim]{result.hint}[/]")
    output.line(f"[bold]{found}[/]  {main_metrics(evaluation)}  {mark}")
    output.line(f"next: argosy deploy {found}; all that was tried: argosy models report {found} --save report")
    output.result(
        {
            "version": str(found),
            "digest": found.digest,
            "parent": str(version),
            "passed": evaluation.passed,
            "test": evaluation.metrics,
            "engine": found.manifest.engine,
            **result.values(),
            "says": result.says,
            "hint": result.hint,
            "interrupted": result.interrupted,
            "candidates": len(result.candidates),
            "rows": result.rows(),
        }
    )


def advise(model: str, *, data: str, label: str, max_drop: str, as_json: bool) -> None:
    """Say which method pays for a model, from short measurements on it."""
    from argosy.compress.advice import advise as measure

    output = Output(as_json=as_json)
    config = CompressConfig(max_drop=max_drop)
    config.check()
    workspace = Workspace()
    version = _version(output, workspace, model, "")
    material, folder = _material(workspace, version, config, data=data, label=label, may_generate=True)
    output.line(f"[dim]judged on {material.origin}[/]")
    with RunView(output, workspace.clock, {"compress": "measure what pays"}) as view:
        view(Progress(stage="compress", message="started"))
        path = workspace.registry.versions.file_path(version)
        found = measure(path, material, config, folder, view)
        view(Progress(stage="compress", message="finished"))
    columns = ("method", "smaller", "faster", "drop", "agreement")
    rows = [option.row() for option in found.options]
    output.table(columns, [tuple(row[column] for column in columns) for row in rows])
    for line in found.says:
        output.line(line)
    output.line(f"next: argosy compress {version} --max-drop {max_drop} --size … --latency-p95 …")
    output.result(msgspec.to_builtins(found))


def _material(
    workspace: Workspace, version: Version, config: CompressConfig, *, data: str, label: str, may_generate: bool
) -> "tuple[Material, Path]":
    """Return what a version is judged by, and the folder in which its tries are found again."""
    from argosy.pipeline.compressing import material_of, search_folder

    work = workspace.settings.home / "work" / "compress"
    material = material_of(
        workspace.registry,
        version,
        data,
        label=label,
        base=Path.cwd(),
        work=work / version.digest[7:23],
        seed=config.seed,
        may_generate=may_generate,
    )
    return material, work / search_folder(version, material, config)


def _refusal(result: CompressResult, *, is_asked_for: bool) -> InvalidInput:
    """Return the error that says why there is no smaller model, with the nearest one."""
    facts = {"nearest": result.nearest_values(), "candidates": len(result.candidates)}
    if is_asked_for:
        return InvalidInput(result.says, hint=result.hint, code="pass_failed", **facts)
    return InvalidInput(result.says, hint=result.hint, code="budget_out_of_reach", **facts)


def read_pass(text: str) -> tuple[str, dict[str, Any]]:
    """Read `name` or `name:setting=value,…`; raise InvalidInput for what isn't one."""
    name, _, rest = text.partition(":")
    if name not in PASS_NAMES:
        from argosy.compress.table import PASSES

        if name not in PASSES.names():
            raise InvalidInput(f"there is no pass {name!r}; there are: {', '.join(PASS_NAMES)}", known=PASS_NAMES)
    settings: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, is_given, value = part.partition("=")
        if not is_given:
            raise InvalidInput(f"{text!r}: {part!r} is no setting", hint="write them as slim:ratio=0.5")
        settings[key.strip()] = _value(value.strip())
    return name, settings


def _value(text: str) -> bool | float | int | str:
    if text.lower() in ("true", "false", "yes", "no"):
        return text.lower() in ("true", "yes")
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _version(output: Output, workspace: Workspace, model: str, name: str) -> Version:
    """Return the version that is named; a file becomes one first."""
    imported = import_model(output, workspace, model, name)
    if imported is not None:
        return imported
    versions = workspace.registry.versions
    version = versions.load(versions.get(model).digest)
    parent = version.manifest.lineage.parent
    if version.manifest.role != "compressed" or not parent:
        return version
    original = versions.load(parent)
    # What was lost once would be the measure of what may be lost: the original is.
    output.line(f"[dim]{version} is compressed already; {original}, which it was made of, is taken[/]")
    return original


def _save(folder: Path, result: Any, version: Version | None, workspace: Workspace) -> None:
    from argosy.core.digest import canonical

    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "compression.json", canonical(result.report()))
    result.draw(folder / "compression.png")
    if version is not None:
        write_atomic(folder / MODEL_FILE, workspace.registry.versions.open_file(version))
