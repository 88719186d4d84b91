"""What is asked before something is done. Nothing acts without a second click that says what it will do."""

import asyncio
from collections.abc import Callable

from nicegui import ui

from argosy.core.errors import ArgosyError, InvalidInput
from argosy.operate.config import RolloutConfig
from argosy.operate.transactions import Accepted
from argosy.operate.view import EndpointView
from argosy.web.actions import Action, Operator, question
from argosy.web.feed import Feed
from argosy.web.page.pieces import Text, box, command

_STEPS, _SWITCH = "By canary steps, judged", "Switch at once, when it is ready"


class Dialogs:
    """The dialogs of one browser."""

    def __init__(self, feed: Feed, operator: Operator) -> None:
        self._feed = feed
        self._operator = operator

    def ask(self, action: Action, endpoint: EndpointView) -> None:
        """Ask whether to do `action`, and do it."""
        with ui.dialog() as dialog, ui.card().classes("dialog"):
            Text("h2", action.label)
            Text("p", question(action, endpoint))
            with box("div", "same"):
                Text("span", "The same in a terminal:", "quiet")
                command(action.command.format(endpoint=endpoint.name))
            trouble = Text("p", "", "bad")
            trouble.props["role"] = "alert"
            with box("div", "buttons"):
                ui.button("Cancel", on_click=dialog.close).props("flat no-caps")
                do = ui.button(action.label, icon=action.icon).props("unelevated no-caps")
                do.props["color"] = "negative" if action.is_grave else "primary"
            do.on_click(lambda: self._do(dialog, do, trouble, lambda: self._operator.act(action.name, endpoint.name)))
        _open(dialog)

    def deploy(self, *, endpoint: str = "", ref: str = "") -> None:
        """Ask what to deploy and how, and do it."""
        versions = [str(v) for v in self._feed.scene.versions if v.manifest.evaluation.passed]
        usual = RolloutConfig()
        with ui.dialog() as dialog, ui.card().classes("dialog"):
            Text("h2", "Deploy a version")
            chosen = ui.select(
                versions, value=ref or (versions[0] if versions else None), label="Version", with_input=True
            )
            named = ui.input("Endpoint", value=endpoint, placeholder="the name of the version's model")
            way = ui.radio([_STEPS, _SWITCH], value=_STEPS)
            with box("div", "fields") as fields:
                steps = ui.input("Steps, % of the requests", value=", ".join(f"{s:g}" for s in usual.steps))
                dwell = ui.input("Least time at each step", value=usual.dwell)
                alarm = ui.input("False alarms, at most", value=f"{usual.false_alarm:g}")
                limit = ui.input("Time limit", value=usual.time_limit)
            fields.bind_visibility_from(way, "value", value=_STEPS)
            Text("p", "The first version of an endpoint is served as soon as it is ready.", "quiet")
            trouble = Text("p", "", "bad")
            trouble.props["role"] = "alert"

            def rules() -> RolloutConfig | None:
                if way.value != _STEPS:
                    return None
                return rollout_rules(str(steps.value), str(dwell.value), str(alarm.value), str(limit.value))

            def run() -> Accepted:
                if not chosen.value:
                    raise InvalidInput("there is no version to deploy", hint="make one with: argosy run")
                return self._operator.deploy(str(chosen.value), str(named.value or "").strip(), rules())

            with box("div", "buttons"):
                ui.button("Cancel", on_click=dialog.close).props("flat no-caps")
                do = ui.button("Deploy", icon="rocket_launch").props("unelevated no-caps color=primary")
            do.on_click(lambda: self._do(dialog, do, trouble, run))
        _open(dialog)

    async def bring_back(self) -> None:
        """Start the controller, and what was deployed, again."""
        try:
            accepted = await asyncio.to_thread(self._operator.bring_back)
        except ArgosyError as error:
            ui.notify(_said(error), type="negative", multi_line=True)
        else:
            ui.notify(accepted.summary, type="positive")

    async def _do(self, dialog: ui.dialog, button: ui.button, trouble: Text, run: Callable[[], Accepted]) -> None:
        button.disable()
        trouble.show("")
        try:
            accepted = await asyncio.to_thread(run)
        except ArgosyError as error:
            trouble.show(_said(error))
            button.enable()
            return
        dialog.close()
        undo = f". Undo: {accepted.undo}" if accepted.undo else ""
        ui.notify(f"{accepted.summary}{undo}", type="positive" if accepted.is_changed else "info", multi_line=True)


def rollout_rules(steps: str, dwell: str, alarm: str, limit: str) -> RolloutConfig:
    """Return the rules of a rollout from what was typed. Raises InvalidInput, saying which is wrong."""
    try:
        found = RolloutConfig(
            steps=tuple(float(step.strip().removesuffix("%")) for step in steps.split(",") if step.strip()),
            dwell=dwell.strip(),
            false_alarm=_share(alarm),
            time_limit=limit.strip(),
        )
    except ValueError as error:
        raise InvalidInput(
            f"steps are {steps!r} and false alarms {alarm!r}; they must be numbers",
            hint="for example 5, 25, 50 and 0.01",
        ) from error
    found.check()
    return found


def _share(text: str) -> float:
    text = text.strip()
    return float(text[:-1].strip()) / 100 if text.endswith("%") else float(text)


def _said(error: ArgosyError) -> str:
    return f"{error.message}{f' ({error.hint})' if error.hint else ''}"


def _open(dialog: ui.dialog) -> None:
    dialog.on("hide", dialog.delete)
    dialog.open()
