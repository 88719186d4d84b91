"""One endpoint: what runs, how it does, what can be done, and what happened."""

from collections.abc import Callable, Sequence
from datetime import datetime

from nicegui import ui

from argosy.operate.view import EndpointView, VersionView
from argosy.web.actions import Action, Role, offered
from argosy.web.feed import Feed
from argosy.web.history import Line
from argosy.web.page import charts, look
from argosy.web.page.pieces import Cell, Chart, Column, Grid, Rebuilt, State, Text, box
from argosy.web.page.rollout import RolloutPanel

RECENT_S = 10.0
"""Rates that are said in words are means over so long."""
_VERSIONS = (
    Column("Version"),
    Column("Role"),
    Column("Share", is_number=True),
    Column("Traffic", is_number=True),
    Column("p50", is_number=True),
    Column("p95", is_number=True),
    Column("Errors", is_number=True),
    Column("Answered", is_number=True),
    Column("Failed", is_number=True),
    Column("Replicas", is_number=True),
)
_REPLICAS = (
    Column("Replica"),
    Column("Version"),
    Column("State"),
    Column("Process", is_number=True),
    Column("In flight", is_number=True),
    Column("Answered", is_number=True),
    Column("Failed", is_number=True),
    Column("Threads", is_number=True),
    Column("Largest batch", is_number=True),
)
_EVENTS = (Column("Time"), Column("Who"), Column("What happened", is_wide=True))
Ask = Callable[[Action, EndpointView], None]
Deploy = Callable[[str], None]


class EndpointCard:
    """Made once for each endpoint and browser; `show` is called once a second."""

    def __init__(self, name: str, feed: Feed, role: Role, ask: Ask, deploy: Deploy) -> None:
        self._name = name
        self._feed = feed
        self._role = role
        self._ask = ask
        self._deploy = deploy
        with box("article", "card", aria_label=f"endpoint {name}", data_endpoint=name) as self.box:
            with box("header", "head"):
                with box("div", "name"):
                    Text("h2", name)
                    self._state = State()
                self._actions = Rebuilt("actions")
            self._url = Text("p", "", "url quiet")
            self._note = Text("p", "", "note warn")
            self._figures = _Figures()
            self._rollout = Rebuilt()
            self._panel: RolloutPanel | None = None
            with box("div", "last") as self._ended:
                self._last = Text("span", "", "quiet")
                self._outcome = State()
                self._reason = Text("span", "", "quiet")
            self._past = ui.expansion("Evidence of the last rollout", value=False).classes("more")
            with self._past, box("div", "charts two"):
                self._against = Chart("Evidence that it was worse")
                self._good = Chart("Evidence that it was good enough")
            self._past_shown = ("", False)
            self._versions = Grid(_VERSIONS, f"Versions of {name}")
            with box("div", "charts"):
                self._traffic = Chart("Traffic, requests/s")
                self._latency = Chart("Latency p95, ms")
                self._errors = Chart("Errors, % of requests")
            with ui.expansion("Replicas", value=False).classes("more"):
                self._replicas = Grid(_REPLICAS, f"Replicas of {name}")
                self._errors_of = Text("p", "", "bad")
            with ui.expansion("Events", value=False).classes("more"):
                self._events = Grid(_EVENTS, f"Events of {name}")

    def show(self, found: EndpointView, *, now: float, seconds: float, is_dark: bool) -> None:
        """Show what was seen at the last look."""
        self._state.show(found.state)
        self._url.show(found.url or "not served")
        self._note.show(found.note)
        self._note.set_visibility(bool(found.note))
        offers = offered(found, self._role)
        may_deploy = self._role == "operator" and found.rollout is None  # in a rollout it would be refused
        key = (may_deploy, [action.name for action in offers])
        self._actions.show(key, lambda: self._offer(offers, may_deploy=may_deploy))
        self._figures.show(found, [self._line(v) for v in found.versions])
        self._show_rollout(found, is_dark=is_dark)
        self._versions.show([self._version(v, is_dark=is_dark) for v in found.versions])
        self._draw(found, now=now, seconds=seconds, is_dark=is_dark)
        self._replicas.show([row for v in found.versions for row in _replicas(v)])
        errors = [f"{v.ref}: {v.error}" for v in found.versions if v.error]
        self._errors_of.show("; ".join(errors))
        self._events.show([(Cell(clock_time(e.time)), Cell(e.actor), Cell(e.text)) for e in reversed(found.events)])

    def _line(self, version: VersionView) -> Line:
        return self._feed.history.line(self._name, version.ref)

    def _offer(self, actions: Sequence[Action], *, may_deploy: bool) -> None:
        if may_deploy:
            ui.button("Deploy", icon="rocket_launch", on_click=lambda: self._deploy(self._name)).props(
                "outline dense no-caps"
            )
        for action in (a for a in actions if not a.is_grave):
            button = ui.button(action.label, icon=action.icon, on_click=lambda a=action: self._asked(a))
            button.props("outline dense no-caps")
        grave = [action for action in actions if action.is_grave]
        if grave:
            with ui.button(icon="more_vert").props("flat dense round") as more:
                more.props["aria-label"] = f"more actions for {self._name}"
                with ui.menu():
                    for action in grave:
                        ui.menu_item(action.label, on_click=lambda a=action: self._asked(a))

    def _asked(self, action: Action) -> None:
        view = self._feed.scene.view
        found = next((e for e in view.endpoints if e.name == self._name), None) if view else None
        if found is not None:
            self._ask(action, found)

    def _show_rollout(self, found: EndpointView, *, is_dark: bool) -> None:
        rollout = found.rollout
        self._rollout.show(rollout.id if rollout else "", self._build_rollout)
        if rollout is not None and self._panel is not None:
            self._panel.show(rollout, self._feed.evidence.get(self._name), is_dark=is_dark)
        last = found.last if rollout is None else None
        if last is not None:
            self._last.show(f"Last rollout, {last.rollout} to {last.to.ref} at {clock_time(last.time)}:")
            self._outcome.show(last.outcome)
            self._reason.show(last.reason)
        self._ended.set_visibility(last is not None)
        self._show_past(last.rollout if last is not None else "", is_dark=is_dark)

    def _show_past(self, rollout: str, *, is_dark: bool) -> None:
        history = self._feed.evidence.get(self._name)
        points = list(history.points) if history is not None and history.rollout == rollout else []
        self._past.set_visibility(bool(points))
        if history is None or not points or self._past_shown == (rollout, is_dark):
            return
        self._past_shown = (rollout, is_dark)
        at_end = points[-1]
        for chart, side, numbers in (
            (self._against, "against", {**at_end.against, "sum": at_end.total}),
            (self._good, "good", at_end.good),
        ):
            options = charts.growing(points, side, threshold=history.threshold, is_dark=is_dark)
            chart.show(options, [(look.words(name), look.evidence(value)) for name, value in numbers.items()], "")

    def _build_rollout(self) -> None:
        view = self._feed.scene.view
        found = next((e for e in view.endpoints if e.name == self._name), None) if view else None
        self._panel = RolloutPanel(found.rollout) if found is not None and found.rollout is not None else None

    def _version(self, version: VersionView, *, is_dark: bool) -> Sequence[Cell]:
        rate, failed = self._line(version).recent(RECENT_S)
        color, _ = look.line_of(version.role, is_dark=is_dark)
        ready = f"{version.ready} of {version.wanted} ready"
        tone = "" if version.ready >= version.wanted else "bad" if not version.ready else "warn"
        return (
            Cell(version.ref, "strong", color=color),
            Cell(version.role),
            Cell(look.percent(version.share), bar=version.share, color=""),
            Cell(look.rate(rate)),
            Cell(look.milliseconds(version.p50_ms)),
            Cell(look.milliseconds(version.p95_ms)),
            Cell(look.percent(failed), "bad" if failed else ""),
            Cell(look.count(version.requests)),
            Cell(look.count(version.failed), "bad" if version.failed else ""),
            Cell(ready, tone),
        )

    def _draw(self, found: EndpointView, *, now: float, seconds: float, is_dark: bool) -> None:
        lines = [(v.ref, v.role, self._line(v)) for v in found.versions]
        recent = {ref: line.recent(RECENT_S) for ref, _, line in lines}
        p95 = {v.ref: v.p95_ms for v in found.versions}
        told: tuple[tuple[Chart, str, Callable[[str], str]], ...] = (
            (self._traffic, "per_s", lambda ref: look.rate(recent[ref][0])),
            (self._latency, "p95_ms", lambda ref: look.milliseconds(p95[ref])),
            (self._errors, "failed", lambda ref: look.percent(recent[ref][1])),
        )
        empty = "" if any(v.requests for v in found.versions) else "no request yet"
        for chart, field, say in told:
            points = [(ref, role, list(line.points)) for ref, role, line in lines]
            options = charts.over_time(points, field, now=now, seconds=seconds, is_dark=is_dark)
            chart.show(options, [(ref, say(ref)) for ref, _, _ in lines], empty)


class _Figures:
    """The few numbers that are looked at first."""

    def __init__(self) -> None:
        self._shown: dict[str, Text] = {}
        with box("dl", "figures"):
            for name in ("Traffic", "Latency p50", "Latency p95", "Errors", "Waiting", "Answered", "Failed"):
                with box("div"):
                    Text("dt", name)
                    self._shown[name] = Text("dd", look.UNKNOWN)

    def show(self, found: EndpointView, lines: Sequence[Line]) -> None:
        recent = [line.recent(RECENT_S) for line in lines]
        known = [(rate, failed) for rate, failed in recent if rate is not None]
        rate = sum(rate for rate, _ in known) if known else None
        failed = sum(rate * (failed or 0.0) for rate, failed in known) / rate if rate else None
        shown = {
            "Traffic": (look.rate(rate), ""),
            "Latency p50": (look.milliseconds(found.p50_ms), ""),
            "Latency p95": (look.milliseconds(found.p95_ms), ""),
            "Errors": (look.percent(failed), "bad" if failed else ""),
            "Waiting": (look.count(found.waiting), ""),
            "Answered": (look.count(found.requests), ""),
            "Failed": (look.count(found.failed), "bad" if found.failed else ""),
        }
        for name, (text, tone) in shown.items():
            self._shown[name].show(text, tone)


def _replicas(version: VersionView) -> Sequence[Sequence[Cell]]:
    return [
        (
            Cell(replica.name, "mono"),
            Cell(version.ref),
            Cell(replica.state, look.tone_of(replica.state)[0]),
            Cell(str(replica.pid)),
            Cell(look.count(replica.in_flight)),
            Cell(look.count(replica.answered)),
            Cell(look.count(replica.failed), "bad" if replica.failed else ""),
            Cell(str(replica.threads or look.UNKNOWN)),
            Cell(str(replica.max_batch or look.UNKNOWN)),
        )
        for replica in version.replicas
    ]


def clock_time(seconds: float) -> str:
    """Return the local time of day, with the day when it is not today's."""
    found, now = datetime.fromtimestamp(seconds).astimezone(), datetime.now().astimezone()
    return found.strftime("%H:%M:%S" if found.date() == now.date() else "%Y-%m-%d %H:%M")
