"""The page as a whole: what everything is told by, and one object per browser that keeps it live."""

from importlib import resources
from typing import Any

from nicegui import ui

from argosy.operate.view import SystemView
from argosy.web.actions import Operator, needs_controller
from argosy.web.feed import LOOK_EVERY_S, Feed
from argosy.web.page.dialogs import Dialogs
from argosy.web.page.endpoint import EndpointCard
from argosy.web.page.pieces import State, Text, box, command
from argosy.web.page.shelves import JobsShelf, LogShelf, Runs, Versions

_SPANS = {300: "5 minutes", 900: "15 minutes", 3600: "1 hour"}
_THEMES = {
    None: ("brightness_auto", "as the system has it"),
    False: ("light_mode", "light"),
    True: ("dark_mode", "dark"),
}
_TELL_SCHEME = """
const night = matchMedia('(prefers-color-scheme: dark)');
const tell = () => emitEvent('scheme', night.matches);
night.addEventListener('change', tell);
tell();
"""


class Page:
    """What one browser sees."""

    def __init__(self, feed: Feed, operator: Operator, home: str) -> None:
        self._feed = feed
        self._operator = operator
        self._dialogs = Dialogs(feed, operator)
        self._cards: dict[str, EndpointCard] = {}
        self._seconds = 300
        self._system_is_dark = False
        self._theme = ui.dark_mode(None)
        ui.add_css((resources.files("argosy.web.page") / "page.css").read_text())
        ui.on("scheme", self._note_scheme)
        ui.colors(primary="#0b63a5", positive="#1a7f37", negative="#b3192e", info="#0b63a5", warning="#8a5a00")
        self._head(home)
        self._banner = Text("p", "", "banner")
        self._banner.props["role"] = "alert"
        self._build_tabs()
        self._timer = ui.timer(LOOK_EVERY_S, self.show)
        self.show()

    @property
    def is_dark(self) -> bool:
        """Whether the page is shown dark now."""
        return self._system_is_dark if self._theme.value is None else bool(self._theme.value)

    async def settle(self) -> None:
        """Ask the browser, once it is connected, whether it likes it dark."""
        await ui.context.client.connected()
        ui.run_javascript(_TELL_SCHEME)

    def _note_scheme(self, event: Any) -> None:
        self._system_is_dark = bool(event.args)
        self.show()

    def _head(self, home: str) -> None:
        with box("header", "top"):
            with box("div", "brand"):
                Text("h1", "Argosy")
                Text("span", home, "quiet home")
            with box("div", "health", role="status"):
                with box("span", "part"):
                    Text("span", "gateway", "quiet")
                    self._gateway = State()
                with box("span", "part"):
                    Text("span", "controller", "quiet")
                    self._controller = State()
                self._start = ui.button("Start it", icon="play_arrow", on_click=self._dialogs.bring_back)
                self._start.props("outline dense no-caps")
                if self._operator.role == "viewer":
                    Text("span", "read only", "badge")
                self._theme_button = ui.button(icon="brightness_auto", on_click=self._next_theme).props(
                    "flat dense round"
                )
                self._theme_button.props["aria-label"] = "colours: as the system has it"

    def _next_theme(self) -> None:
        following = {None: False, False: True, True: None}[self._theme.value]
        self._theme.value = following
        icon, says = _THEMES[following]
        self._theme_button.props["icon"] = icon
        self._theme_button.props["aria-label"] = f"colours: {says}"
        self._theme_button.update()
        self.show()

    def _build_tabs(self) -> None:
        with (
            ui.tabs()
            .props("align=left dense no-caps inline-label mobile-arrows outside-arrows")
            .classes("tabs") as tabs
        ):
            for name in ("Endpoints", "Versions", "Runs", "Jobs", "Log"):
                tab = ui.tab(name)
                if name == "Jobs":
                    self._jobs_tab = tab
        with ui.tab_panels(tabs, value="Endpoints", animated=False).classes("panels"):
            with ui.tab_panel("Endpoints"):
                self._build_endpoints()
            with ui.tab_panel("Versions"):
                deploy = None if self._operator.role == "viewer" else (lambda ref: self._dialogs.deploy(ref=ref))
                self._versions = Versions(self._feed, deploy)
            with ui.tab_panel("Runs"):
                self._runs = Runs(self._feed)
            with ui.tab_panel("Jobs"):
                self._jobs = JobsShelf(self._feed)
            with ui.tab_panel("Log"):
                self._log = LogShelf(self._feed)

    def _build_endpoints(self) -> None:
        with box("div", "tools") as self._tools:
            span = ui.select(_SPANS, value=self._seconds, label="Charts show").props("dense outlined options-dense")
            span.classes("span").on_value_change(self._set_span)
            if self._operator.role == "operator":
                button = ui.button("Deploy a version", icon="rocket_launch", on_click=lambda _: self._dialogs.deploy())
                button.props("unelevated no-caps color=primary")
        self._endpoints = box("div", "stack")
        with box("div", "nothing") as self._nothing:
            Text("p", "Nothing is deployed. Begin from a terminal with any ONNX file:")
            command("argosy deploy model.onnx")

    def _set_span(self, event: Any) -> None:
        self._seconds = int(event.value)
        self.show()

    def show(self) -> None:
        """Bring everything up to the last look."""
        scene = self._feed.scene
        self._banner.show(_trouble(scene.trouble, scene.view), "warn")
        self._banner.set_visibility(bool(self._banner.text))
        self._jobs_tab.set_visibility(bool(scene.jobs))
        self._start.set_visibility(
            scene.view is not None and needs_controller(scene.view) and self._operator.role == "operator"
        )
        if scene.view is not None:
            self._gateway.show(scene.view.gateway)
            self._controller.show(scene.view.controller)
            self._show_endpoints(scene.view)
        self._versions.show()
        self._runs.show(is_dark=self.is_dark)
        self._jobs.show()
        self._log.show()

    def _show_endpoints(self, view: SystemView) -> None:
        names = [endpoint.name for endpoint in view.endpoints]
        for name in [name for name in self._cards if name not in names]:
            self._cards.pop(name).box.delete()
        for endpoint in view.endpoints:
            if endpoint.name not in self._cards:
                with self._endpoints:
                    self._cards[endpoint.name] = EndpointCard(
                        endpoint.name, self._feed, self._operator.role, self._dialogs.ask, self._deploy_to
                    )
            card = self._cards[endpoint.name]
            card.show(endpoint, now=view.time, seconds=self._seconds, is_dark=self.is_dark)
        self._nothing.set_visibility(not names)
        self._tools.set_visibility(bool(names))

    def _deploy_to(self, endpoint: str) -> None:
        self._dialogs.deploy(endpoint=endpoint)


def _trouble(trouble: str, view: SystemView | None) -> str:
    if trouble:
        return f"Nothing new is seen: {trouble}. It is tried again every second."
    if view is None:
        return "Looking for the first time."
    told = [error for error in (view.gateway_error, view.controller_error) if error]
    why = f" ({'; '.join(told)})" if told else ""
    if view.leader:
        return f"The controller on '{view.leader}' acts for all homes on this store. Replicas shown are this home's."
    if view.gateway == "down" and needs_controller(view):
        return f"Gateway and controller are down{why}: nothing is served. Start them here, or with: argosy up"
    if view.gateway == "down":
        return f"The gateway does not answer{why}. The controller starts it again; callers are refused until then."
    if needs_controller(view):
        return f"The controller is down{why}. Endpoints go on serving, but no rollout moves until it is back."
    return ""
