"""Puts the live page together: the guard before it, the admin API, and NiceGUI with what it serves."""

from collections.abc import Callable

from nicegui import app as library
from nicegui import background_tasks, ui
from starlette.applications import Starlette

from argosy.cluster.launcher import Launcher
from argosy.core.clock import Clock
from argosy.core.config import Settings
from argosy.operate.view import Observer
from argosy.registry.registry import Registry
from argosy.web.actions import Operator, Role
from argosy.web.app import Admin, create_app
from argosy.web.feed import Feed
from argosy.web.guard import Guard, check_routes
from argosy.web.jobs import jobs_of
from argosy.web.page.shell import Page
from argosy.web.runs import running_stages

_MARK = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><path fill="#0b63a5" '
    'd="M15 3v18H5Q13 14 15 3zm2 4q8 6 9 14h-9zM4 24h24q-3 5-8 5h-8q-5 0-8-5z"/></svg>'
)


def make_page(
    *,
    registry: Registry,
    observer: Observer,
    launcher: Launcher,
    settings: Settings,
    clock: Clock,
    address: str,
    role: Role,
    tell: Callable[[str], None],
) -> Guard:
    """Return the ASGI application of the page. Once per process: the library keeps its pages in its modules.

    Raises Internal when a route has no policy.
    """
    jobs = jobs_of(settings.home, launcher, clock)
    feed = Feed(registry, observer, clock, lambda: running_stages(launcher, settings.home), jobs)
    operator = Operator(settings, launcher, clock, role)
    app = create_app(Admin(registry, observer, lambda: running_stages(launcher, settings.home)))
    _attach(app, feed, operator, str(settings.home))
    check_routes(app.routes)
    return Guard(app, address, on_enter=tell)


def _attach(app: Starlette, feed: Feed, operator: Operator, home: str) -> None:
    @ui.page("/", title="Argosy", dark=None, favicon=_MARK, language="en-US", reconnect_timeout=30.0)
    async def index() -> None:
        await Page(feed, operator, home).settle()

    library.on_startup(lambda: background_tasks.create(feed.run(), name="argosy feed"))
    # No compression: everything stays on this machine. No Tailwind, which compiles styles in the browser.
    ui.run_with(app, tailwind=False, show_welcome_message=False, gzip_middleware_factory=None)  # type: ignore[arg-type]
    # Long polling would need requests that change something; the guard lets none in.
    library.config.socket_io_js_transports = ["websocket"]
