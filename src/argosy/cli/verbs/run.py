"""`init`, `run` and the stages by name."""

import tempfile
from pathlib import Path
from typing import Any

import msgspec

from argosy.cli.output import Output
from argosy.cli.project import FILE_NAME, Project, load_project
from argosy.cli.run_view import RunView
from argosy.cli.verbs.models import compression_table, main_metrics
from argosy.cli.workspace import Workspace
from argosy.core.errors import ArgosyError, Conflict, InvalidInput
from argosy.core.units import format_time
from argosy.pipeline.engine import RunResult
from argosy.pipeline.traced import traced_run
from argosy.registry.versions import Version
from argosy.train.hosts import Hosts


class GateFailed(ArgosyError):
    """The version that was published missed a gate, so it can't be deployed."""

    code = "gate_failed"


def run(file: Path, changes: list[str] | None, *, until: str, as_json: bool, deploy: bool = False) -> None:
    """Execute what isn't done, show it live, and end with the versions and what to do with them.

    `deploy`: release what passed its gates, as `argosy deploy` does; the one JSON document is the deployment's then.
    """
    if deploy and until != "publish":
        raise InvalidInput(f"--deploy needs a version, but --until {until} ends before there is one")
    output = Output(as_json=as_json)
    project, base = load_project(file, changes)
    workspace = Workspace()
    result = carried_out(output, workspace, project, base, until)
    if "compress" in result.executed:
        search = msgspec.json.decode(workspace.registry.blobs.get(result.records["compress"].outputs["report.json"]))
        compression_table(output, search["rows"], brief=True)
    versions = _versions(workspace, result)
    _show_versions(output, versions)
    if not deploy:
        output.result(as_plain(result, versions))
    for version in versions[-1:]:
        _check_gates(version)
    if versions:
        output.line(f"executed {len(result.executed)} stages in {format_time(result.seconds)}")
    if versions and deploy:
        from argosy.cli.verbs.deploy import release

        release(versions[-1], file=file, changes=changes, as_json=as_json)
    elif versions:
        output.line(f"next: argosy deploy {versions[-1]}" + (f" --file '{file}'" if file != Path() else ""))


def carried_out(
    output: Output, workspace: Workspace, project: Project, base: Path, until: str, *, hosts: Hosts | None = None
) -> RunResult:
    """Say what is to do, do it, and show it live; return what was done."""
    planned = workspace.engine.plan(project, base, until)
    open_steps = [step.stage for step in planned.steps if not step.is_done]
    output.line(
        f"[bold]{project.project.name}[/]: to run: {', '.join(open_steps)}"
        if open_steps
        else f"[bold]{project.project.name}[/]: everything is done already"
    )
    does = {step.stage: step.does for step in planned.steps}
    with RunView(output, workspace.clock, does) as view, traced_run(project.project.name, view) as report:
        return workspace.engine.run(project, base, report, until, hosts=hosts)


def _versions(workspace: Workspace, result: RunResult) -> list[Version]:
    if "publish" not in result.records:
        return []
    return [workspace.registry.versions.get(name) for name in result.records["publish"].values["versions"]]


def _show_versions(output: Output, versions: list[Version]) -> None:
    for version in versions:
        manifest = version.manifest
        evaluation = manifest.evaluation
        mark = "[green]passed its gates[/]" if evaluation.passed else "[red]failed its gates[/]"
        size = manifest.size_bytes
        output.line(f"[bold]{version}[/] {manifest.role:<10} {size / 1e3:.0f} kB  {main_metrics(evaluation)}  {mark}")


def _check_gates(version: Version) -> None:
    missed = [gate for gate in version.manifest.evaluation.gates if not gate.passed]
    if missed:
        says = "; ".join(f"{g.name} {g.value:.4g}, asked {g.bound}, missed by {g.missed_by:.3g}" for g in missed)
        raise GateFailed(
            f"{version} failed its gates: {says}",
            hint=f"it is kept for inspection (argosy models show {version}) and can't be deployed",
            version=str(version),
        )


def as_plain(result: RunResult, versions: list[Version]) -> dict[str, Any]:
    """Return what a run did, for `--json`."""
    return {
        "run": result.run,
        "executed": result.executed,
        "cached": result.cached,
        "seconds": round(result.seconds, 3),
        "values": {name: record.values for name, record in result.records.items()},
        "versions": [
            {
                "version": str(v),
                "digest": v.digest,
                "role": v.manifest.role,
                "size_bytes": v.manifest.size_bytes,
                "passed": v.manifest.evaluation.passed,
                "metrics": v.manifest.evaluation.metrics,
            }
            for v in versions
        ],
    }


def init(data: Path | None, *, name: str, label: str, as_json: bool) -> None:
    """Write `argosy.toml` for the data given, or a commented one to fill in."""
    from argosy.core.files import create_exclusive
    from argosy.pipeline.config import check_name

    output = Output(as_json=as_json)
    path = Path.cwd() / FILE_NAME
    chosen = check_name(name or _as_name(Path.cwd().name))
    text = _template(chosen, data, label)
    try:
        create_exclusive(path, text.encode())
    except Conflict as error:
        raise Conflict(f"there is an '{FILE_NAME}' here already", hint="edit it, or remove it first") from error
    output.line(f"wrote [bold]{FILE_NAME}[/]\n\n{text}")
    output.line("next: argosy plan, then argosy run")
    output.result({"file": str(path), "project": chosen})


def _as_name(text: str) -> str:
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in text.lower()).strip("-")
    return kept[:63].strip("-") or "project"


def _template(name: str, data: Path | None, label: str) -> str:
    if data is not None and not label and _is_prose(data):
        return _PROSE.format(name=name, data=data)
    guessed = label or (_guess_label(data) if data is not None else "label")
    source = str(data) if data is not None else "data.csv"
    return (
        f'[project]\nname = "{name}"\n\n'
        f'[data]\ntrain = "{source}"\nlabel = "{guessed}"\n\n'
        "[train]\nepochs = 30\n\n"
        '[evaluate]\naccuracy = ">= 0.8"\n'
    )


_PROSE = """[project]
name = "{name}"

[data]
task = "language-model"
train = "{data}"
tokenizer = "bpe"
vocabulary = 2048
context = 128

[model]
family = "gpt"

[train]
epochs = 1
batch_size = 8
learning_rate = 2e-3
schedule = "cosine"
warmup = 0.05
clip = 1.0
"""


def _is_prose(path: Path) -> bool:
    """Whether a file or folder is running text. A `.txt` whose first lines have equally many separators is a table."""
    if path.is_dir():
        return any(file.suffix.lower() == ".txt" for file in path.iterdir())
    if path.suffix.lower() not in (".txt", ".md") or not path.is_file():
        return False
    with path.open("rb") as stream:
        lines = [line for line in stream.read(1 << 14).decode("utf-8", "replace").splitlines() if line.strip()][:5]
    counts = [{line.count(separator) for line in lines} for separator in ",;\t|"]
    return not any(len(found) == 1 and found != {0} for found in counts)


def _guess_label(data: Path) -> str:
    """Return the column that usually holds the answer: one called so, else the last."""
    from argosy.data.scratch import Scratch
    from argosy.data.sources import read

    table = read(str(data), Path.cwd(), scratch=Scratch(Path(tempfile.gettempdir())))
    names = list(table.columns)
    usual = [n for n in names if n.lower() in ("label", "labels", "target", "class", "y", "outcome")]
    return usual[0] if usual else names[-1]
