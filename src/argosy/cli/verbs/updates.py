"""`update` and `updates`, and what `deploy` notes for them."""

import datetime as dt
from pathlib import Path
from typing import Any

from argosy.cli.output import Output
from argosy.cli.project import FILE_NAME, load_project
from argosy.cli.workspace import Workspace
from argosy.core.errors import ArgosyError
from argosy.operate.jobs import commands
from argosy.operate.jobs.folders import place_of
from argosy.operate.jobs.keeper import start_scheduler
from argosy.operate.jobs.sources import data_word, read_data, read_project
from argosy.operate.jobs.updates import due_in_words
from argosy.operate.jobs.view import UpdateView, look_at_update, look_at_updates
from argosy.operate.processes import start_controller
from argosy.registry.versions import Version


def update(endpoint: str, *, file: Path, reason: str, now: bool, as_json: bool) -> None:
    """Ask for an update of an endpoint: its project is run again and what passes its gates is released."""
    output = Output(as_json=as_json)
    workspace = Workspace()
    endpoint = endpoint or load_project(file)[0].project.name
    said = f"asked by {workspace.settings.actor}" + (f": {reason}" if reason else "")
    accepted = commands.ask_update(workspace.registry.log, endpoint, said, now=now)
    start_controller(workspace.settings, workspace.launcher)
    start_scheduler(workspace.settings, workspace.launcher)
    output.line(f"[bold]plan[/] {accepted.summary}")
    output.line(f"next: argosy updates; its job is in argosy jobs, its release in argosy watch {endpoint}")
    output.result(accepted)


def list_updates(*, as_json: bool) -> None:
    """List the endpoints that are made from a project: what updates them, how the last update ended, what is next."""
    output = Output(as_json=as_json)
    workspace = Workspace()
    workspace.jobs.catch_up(workspace.registry.log)
    shown = look_at_updates(workspace.jobs)
    output.result(shown)
    now = workspace.clock.now()
    rows = [
        (
            view.endpoint,
            ", ".join(view.on) or "by hand",
            f"{view.state}: {view.detail}" if view.detail else view.state,
            view.last_in_words,
            due_in_words(view.next_at, now),
        )
        for view in shown
    ]
    if rows:
        output.table(("endpoint", "by", "state", "last update", "next"), rows)
    else:
        output.line("nothing that is deployed comes from a project; argosy deploy --file FOLDER notes it")


def of_endpoint(workspace: Workspace, endpoint: str) -> UpdateView | None:
    """Return the updates of one endpoint, None where it comes from no project."""
    workspace.jobs.catch_up(workspace.registry.log)
    watch = workspace.jobs.watches.get(endpoint)
    return look_at_update(workspace.jobs, watch) if watch is not None else None


def in_rows(view: UpdateView, now: float) -> dict[str, str]:
    """Return an endpoint's updates for its page."""
    last = view.last_in_words
    if view.last is not None:
        last += dt.datetime.fromtimestamp(view.last.time, dt.UTC).strftime(" (%Y-%m-%d %H:%M UTC)")
    rows = {"by": ", ".join(view.on) or "hand", "from": view.file, "last": last}
    rows["state"] = f"{view.state}: {view.detail}" if view.detail else view.state
    return rows | ({"next": due_in_words(view.next_at, now)} if view.next_at else {})


def note_project(workspace: Workspace, endpoint: str, file: Path, version: Version) -> None:
    """Note that an endpoint's version comes from a project, so that it can be made again. Never in a deployment's way.

    What counts as known data is what the version was made from, as its lineage says: data that came since is new.
    """
    path = (file / FILE_NAME if file.is_dir() else file).absolute()
    try:
        known = _made_from(workspace, version)
        rows = -1
        project = read_project(path)
        if known and "://" not in project.train:
            found = read_data(project)
            rows = found.rows if found.digest == known else -1
    except ArgosyError:
        known, rows = "", -1
    commands.watch(
        workspace.registry.log,
        endpoint,
        file=str(path),
        place=place_of(workspace.settings.home),
        data=known,
        rows=rows,
    )
    start_scheduler(workspace.settings, workspace.launcher)


def _made_from(workspace: Workspace, version: Version) -> str:
    key = version.manifest.lineage.stages.get("data", "")
    entry = workspace.registry.log.last("stage.finished", key) if key else None
    if entry is None:
        return ""
    config: dict[str, Any] = entry.data["config"]
    return data_word(str(config.get("train", "")), str(config.get("test", "")))
