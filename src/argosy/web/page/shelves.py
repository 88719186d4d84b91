"""Versions and their reports, runs and their curves, jobs, and the log: what changes slowly."""

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

from nicegui import ui

from argosy.registry.versions import Version
from argosy.web.app import has_report, pictures_of
from argosy.web.feed import Feed, JobRow
from argosy.web.page import charts, look
from argosy.web.page.endpoint import clock_time
from argosy.web.page.pieces import Cell, Chart, Column, Grid, Rebuilt, State, Text, box, command
from argosy.web.runs import Curve, Live, RunRow, curves_of

_LOG: list[dict[str, Any]] = [
    {"name": "seq", "label": "Entry", "field": "seq", "align": "right", "sortable": True},
    {"name": "time", "label": "Time", "field": "time", "align": "left"},
    {"name": "actor", "label": "Who", "field": "actor", "align": "left", "sortable": True},
    {"name": "kind", "label": "What", "field": "kind", "align": "left", "sortable": True},
    {"name": "subject", "label": "About", "field": "subject", "align": "left", "sortable": True},
]
_JOBS = (
    Column("Job"),
    Column("What", is_wide=True),
    Column("State"),
    Column("Needs"),
    Column("Priority", is_number=True),
    Column("In line since"),
    Column("Has run", is_number=True),
    Column("Why", is_wide=True),
)
_SHOWN_VERSIONS = 100


class Versions:
    """Every version: what it is, whether it passed its gates, what was measured, and its reports."""

    def __init__(self, feed: Feed, deploy: Callable[[str], None] | None) -> None:
        self._feed = feed
        self._deploy = deploy
        self._place = Rebuilt("stack")

    def show(self) -> None:
        """Show what was read at the last look."""
        self._place.show(self._feed.scene.read, self._build)

    def _build(self) -> None:
        versions = self._feed.scene.versions
        if not versions:
            _empty("No version yet.", "argosy run", "argosy deploy model.onnx")
        for version in versions[:_SHOWN_VERSIONS]:
            self._card(version)
        if len(versions) > _SHOWN_VERSIONS:
            Text("p", f"The last {_SHOWN_VERSIONS} of {len(versions)}; the others: argosy models list", "quiet")

    def _card(self, version: Version) -> None:
        manifest, ref = version.manifest, str(version)
        with box("article", "card version", aria_label=f"version {ref}"):
            with box("header", "head"):
                with box("div", "name"):
                    Text("h3", ref)
                    State().show("passed" if manifest.evaluation.passed else "missed", _passed(version))
                with box("div", "actions"):
                    if has_report(version):
                        _link("Training report", f"/report?version={quote(ref)}", "article")
                    if self._deploy is not None and manifest.evaluation.passed:
                        ui.button("Deploy", icon="rocket_launch", on_click=lambda: self._ask(ref)).props(
                            "outline dense no-caps"
                        )
            facts = [manifest.role, manifest.task, look.size(manifest.size_bytes), manifest.engine]
            facts.append(f"published {clock_time(manifest.created)}")
            Text("p", " · ".join(facts), "quiet")
            metrics = list(manifest.evaluation.metrics.items())[:8]
            if metrics:
                with box("dl", "figures small"):
                    for name, value in metrics:
                        with box("div"):
                            Text("dt", look.words(name))
                            # What a version found out about itself is yes or no.
                            is_check = manifest.evaluation.kind == "self-check" and value in (0, 1)
                            Text("dd", ("yes" if value else "no") if is_check else look.finite(value))
            if manifest.evaluation.gates:
                _gates(version)
            for name in pictures_of(version):
                with ui.expansion("Compression: size, time and quality of what was tried").classes("more"):
                    picture = box("img", "picture", alt=f"what was tried to compress {ref}", loading="lazy")
                    picture.props["src"] = f"/picture?version={quote(ref)}&name={quote(name)}"

    def _ask(self, ref: str) -> None:
        if self._deploy is not None:
            self._deploy(ref)


def _passed(version: Version) -> str:
    gates = version.manifest.evaluation.gates
    if not gates:
        return "checked itself" if version.manifest.evaluation.kind == "self-check" else "no gates"
    return f"{sum(gate.passed for gate in gates)} of {len(gates)} gates passed"


def _gates(version: Version) -> None:
    grid = Grid(
        (Column("Gate"), Column("Asked", is_number=True), Column("Measured", is_number=True), Column("Outcome")),
        f"Gates of {version}",
    )
    grid.show(
        [
            (
                Cell(gate.name),
                Cell(gate.bound),
                Cell(look.finite(gate.value)),
                Cell("passed", "good") if gate.passed else Cell(f"missed by {look.finite(gate.missed_by)}", "bad"),
            )
            for gate in version.manifest.evaluation.gates
        ]
    )


class Runs:
    """What runs now with its curve, and the last runs with their stages."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._now = box("div", "stack")
        self._live: list[tuple[Text, ui.linear_progress, _Curves]] = []
        self._past = Rebuilt("stack")

    def show(self, *, is_dark: bool) -> None:
        """Show what was read at the last look."""
        live = self._feed.scene.live
        if len(live) != len(self._live):
            self._now.clear()
            self._live = []
            with self._now:
                self._live = [_live_card(stage) for stage in live]
        for stage, (says, bar, drawn) in zip(live, self._live, strict=True):
            says.show(_progress(stage))
            bar.value = stage.done / stage.total if stage.total else 0.0
            drawn.show(stage.curves, is_dark=is_dark)
        runs = self._feed.scene.runs
        key = (is_dark, len(live) > 0, [(run.id, run.state, len(run.stages)) for run in runs])
        self._past.show(key, lambda: self._build(runs, is_dark=is_dark))

    def _build(self, runs: Sequence[RunRow], *, is_dark: bool) -> None:
        if not runs and not self._live:
            _empty("No run yet.", "argosy init", "argosy run")
        for run in runs:
            self._card(run, is_dark=is_dark)

    def _card(self, run: RunRow, *, is_dark: bool) -> None:
        with box("article", "card", aria_label=f"run {run.id}"):
            with box("header", "head"), box("div", "name"):
                Text("h3", run.project or run.id)
                if run.state == "finished":
                    State().show("finished")
                elif self._live:
                    State().show("starting", "runs")
                else:
                    State().show("stopped", "not finished")
            said = f"{run.id} · {clock_time(run.started)} · by {run.actor}"
            Text("p", said + (f" · made {', '.join(run.versions)}" if run.versions else ""), "quiet")
            grid = Grid(
                (Column("Stage"), Column("Took", is_number=True), Column("Left", is_wide=True)), f"Stages of {run.id}"
            )
            grid.show(
                [(Cell(s.name, "strong"), Cell(look.duration(s.seconds)), Cell(_worth(s.values))) for s in run.stages]
            )
            if run.history:
                with ui.expansion("Curves of the training").classes("more") as more:
                    inner = box("div")
                more.on_value_change(lambda: self._open(run, inner, is_dark=is_dark))

    def _open(self, run: RunRow, inner: ui.element, *, is_dark: bool) -> None:
        inner.clear()
        with inner:
            _Curves().show(curves_of(run, self._feed.registry.blobs), is_dark=is_dark)


def _live_card(stage: Live) -> "tuple[Text, ui.linear_progress, _Curves]":
    with box("article", "card", aria_label=f"stage {stage.stage}, running"):
        with box("header", "head"), box("div", "name"):
            Text("h3", stage.stage)
            State().show("starting", "runs now")
        says = Text("p", "", "quiet")
        bar = ui.linear_progress(value=0.0, show_value=False).props("rounded")
        bar.props["aria-label"] = f"progress of {stage.stage}"
        return says, bar, _Curves()


def _progress(stage: Live) -> str:
    parts = [stage.message] if stage.message else []
    if stage.total:
        parts.append(f"{stage.unit} {look.count(stage.done)} of {look.count(stage.total)}")
    if stage.left_s >= 0:
        parts.append(f"{look.duration(stage.left_s)} left")
    return ", ".join(parts) or "started"


class _Curves:
    """Losses in one chart, everything else in others: they have other scales."""

    def __init__(self) -> None:
        self._box = box("div", "charts two")
        self._charts: dict[str, Chart] = {}

    def show(self, found: Sequence[Curve], *, is_dark: bool) -> None:
        losses = [curve for curve in found if "loss" in curve.name]
        parts = {"loss": losses} if losses else {}
        parts |= {curve.name: [curve] for curve in found if "loss" not in curve.name}
        for name, part in list(parts.items())[:6]:
            if name not in self._charts:
                with self._box:
                    self._charts[name] = Chart(f"{look.words(name)}, over {part[0].unit}")
            newest = [(look.words(curve.name), look.finite(curve.points[-1][1])) for curve in part]
            self._charts[name].show(charts.of_run(part, is_dark=is_dark), newest)


def _worth(values: dict[str, object]) -> str:
    found = []
    for name, value in values.items():
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float | str)
            or (isinstance(value, str) and len(value) > 40)
        ):
            continue
        said = look.size(float(value)) if name.endswith("_bytes") and not isinstance(value, str) else value
        found.append(f"{look.words(name)} {look.finite(said) if isinstance(said, float) else said}")
    return " · ".join(found[:6])


class JobsShelf:
    """Jobs in line, running and ended."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        with box("article", "card"):
            self._grid = Grid(_JOBS, "Jobs")

    def show(self) -> None:
        """Show what was read at the last look."""
        self._grid.show([_job(job) for job in self._feed.scene.jobs])


def _job(job: JobRow) -> Sequence[Cell]:
    return (
        Cell(job.id, "strong"),
        Cell(job.title),
        Cell(look.words(job.state), look.tone_of(job.state)[0]),
        Cell(job.needs),
        Cell(str(job.priority)),
        Cell(clock_time(job.submitted)),
        Cell(look.duration(job.seconds) if job.seconds else look.UNKNOWN),
        Cell(job.reason),
    )


class LogShelf:
    """The newest entries of the log, to be searched and paged through."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._read = -1
        with box("article", "card"):
            Text(
                "p",
                "Every entry is signed and holds the hash of the one before; check them with: argosy audit verify",
                "quiet",
            )
            search = ui.input("Search").props("dense outlined clearable debounce=200").classes("search")
            self._table = ui.table(columns=_LOG, rows=[], row_key="seq", pagination={"rowsPerPage": 25})
            self._table.props("flat dense").classes("log")
            self._table.bind_filter_from(search, "value", backward=lambda value: value or "")

    def show(self) -> None:
        """Show what was read at the last look."""
        scene = self._feed.scene
        if scene.read != self._read:
            self._read = scene.read
            self._table.rows = [
                {"seq": e.seq, "time": clock_time(e.time), "actor": e.actor, "kind": e.kind, "subject": e.subject[:40]}
                for e in scene.entries
            ]


def _empty(says: str, *commands: str) -> None:
    with box("div", "nothing"):
        Text("p", f"{says} Make one from a terminal:")
        for line in commands:
            command(line)


def _link(text: str, target: str, icon: str) -> None:
    button = ui.button(text, icon=icon).props("outline dense no-caps")
    button.props["href"] = target
    button.props["target"] = "_blank"
