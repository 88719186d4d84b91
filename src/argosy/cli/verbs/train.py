"""`train`: up to the weights, and a report to look at."""

import os
from pathlib import Path
from typing import NamedTuple

from argosy.cli.output import Output
from argosy.cli.project import load_project
from argosy.cli.verbs.run import as_plain, carried_out
from argosy.cli.workspace import Workspace
from argosy.core.errors import InvalidInput
from argosy.core.files import write_atomic
from argosy.core.units import format_time
from argosy.pipeline.context import StageRecord
from argosy.pipeline.engine import RunResult
from argosy.pipeline.stages.publish import KEPT
from argosy.pipeline.stages.train import HISTORY, PAGE, PICTURE, WEIGHTS
from argosy.train.hosts import Hosts
from argosy.train.network.handshake import new_token
from argosy.train.network.ports import free_address

_VARIABLE = "ARGOSY_TRAIN_TOKEN"


class Place(NamedTuple):
    """How many hosts train together, which this is, and where they meet."""

    hosts: int
    host: int
    at: str


def train(
    folder: Path,
    changes: list[str] | None,
    *,
    strategy: str,
    workers: int,
    place: Place,
    save: Path | None,
    as_json: bool,
) -> None:
    """Train what the project's file describes; end with where weights and report are."""
    output = Output(as_json=as_json)
    chosen = [f"train.strategy={strategy}"] if strategy else []
    chosen += [f"train.workers={workers}"] if workers else []
    project, base = load_project(folder, [*(changes or []), *chosen])
    workspace = Workspace()
    hosts = _hosts(output, place)
    hosts.check(project.train)
    result = carried_out(output, workspace, project, base, "train", hosts=hosts)
    record = result.records["train"]
    target = save or workspace.settings.home / "trainings" / f"{project.project.name}-{_short(record)}"
    written = _written(workspace, _files(result), target)
    _show(output, record, written)
    output.result({**as_plain(result, []), "files": {name: str(path) for name, path in written.items()}})
    named = f" --file '{folder}'" if folder != Path() else ""
    output.line(f"next: argosy run{named}")


def _hosts(output: Output, place: Place) -> Hosts:
    """Return the hosts that train together; on the first one say what to run on the others."""
    if place.hosts == 1 and not place.host:
        if place.at:
            raise InvalidInput("--at is for trainings over several machines", hint="add --hosts 2")
        return Hosts()
    token, at = os.environ.get(_VARIABLE, ""), place.at
    if place.host:
        if not at:
            raise InvalidInput("this machine lacks the address of the first one", hint="add --at, as that one says")
        if not token:
            raise InvalidInput(
                "this machine lacks the token of the training", hint=f"set {_VARIABLE}, as the first machine says"
            )
        return Hosts(count=place.hosts, number=place.host, address=at, token=token)
    if not at:
        at = free_address()
    if not (place.at and token):
        if output.as_json:
            raise InvalidInput(
                "with --json nothing would say what the other machines need",
                hint=f"give --at and set {_VARIABLE} on all of them",
            )
        token = token or new_token()
        which = "--host 1" if place.hosts == 2 else f"--host 1 to {place.hosts - 1}"
        output.line(
            "on the other machines run the same command, in a copy of this folder, with\n"
            f"  {_VARIABLE}={token}\n  {which} --at {at}"
        )
    return Hosts(count=place.hosts, number=0, address=at, token=token)


def _short(record: StageRecord) -> str:
    return record.outputs[WEIGHTS].removeprefix("sha256:")[:8]


def _files(result: RunResult) -> dict[str, str]:
    """Return name and digest of what the training left, and of what it needs of the data, such as a tokenizer."""
    trained, data = result.records["train"].outputs, result.records["data"].outputs
    kept = {name.removeprefix(KEPT): digest for name, digest in data.items() if name.startswith(KEPT)}
    return {name: trained[name] for name in (PAGE, PICTURE, WEIGHTS, HISTORY)} | kept


def _written(workspace: Workspace, files: dict[str, str], place: Path) -> dict[str, Path]:
    """Write files to `place`, verified; return where each is."""
    found = {}
    for name, digest in files.items():
        found[name] = place / name
        write_atomic(found[name], workspace.registry.blobs.get(digest))
    return found


def _show(output: Output, record: StageRecord, written: dict[str, Path]) -> None:
    values = record.values
    metrics = "  ".join(
        f"{name.replace('_', ' ')} {value:.4g}"
        for name, value in values.items()
        if isinstance(value, float) and name != "seconds"
    )
    output.line(f"[bold]trained[/]  {values['epochs']} epochs in {format_time(values['seconds'])}  {metrics}")
    output.line(f"  report   {written[PAGE]}")
    output.line(f"  picture  {written[PICTURE]}")
    output.line(f"  weights  {written[WEIGHTS]}")
