"""`argosy ui` in a real Chromium: an endpoint under real requests, light, dark and narrow, and what is done there.

With ARGOSY_SCREENSHOTS=1 the pictures of the manual are written to docs/images/.
"""

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from argosy.cluster.local import LocalLauncher
from argosy.core.clock import SystemClock
from argosy.core.config import load_settings
from argosy.operate.processes import process_folder
from argosy.registry.registry import open_registry
from argosy.web.page import look
from chromium import browser
from installed import ARGOSY, Installed
from served import Served, constant, until

IS_PICTURED = bool(os.environ.get("ARGOSY_SCREENSHOTS"))
IMAGES = Path(__file__).parents[2] / "docs" / "images"
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


class Traffic:
    """Real requests, until stopped."""

    def __init__(self, url, pause_s=0.01):
        self.url, self.pause_s = urlsplit(url), pause_s
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        connection = http.client.HTTPConnection(self.url.netloc, timeout=10)
        body = json.dumps({"inputs": {"x": [1.0]}})
        while not self.ended.wait(self.pause_s):
            try:
                connection.request("POST", self.url.path, body)
                connection.getresponse().read()
            except (OSError, http.client.HTTPException):
                connection.close()
        connection.close()

    def stop(self):
        self.ended.set()
        self.thread.join(15)


class Ui:
    """A running `argosy ui`."""

    def __init__(self, argosy, *flags):
        self.process = subprocess.Popen(
            [ARGOSY, "ui", "--port", "0", "--no-browser", *flags],
            cwd=argosy.folder,
            env=argosy.environment | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said = []
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            self.said.append(line)

    @property
    def link(self):
        """The newest link."""
        assert self.process.poll() is None, "".join(self.said)
        found = re.findall(r"http://\S+token=[\w-]+", "".join(self.said))
        return found[-1] if found else None

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self.process.stdout.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An endpoint `ranker` with two versions that answer alike, the first served, requests coming in, and the page."""
    folder = tmp_path_factory.mktemp("live page")
    if IS_PICTURED:  # it stands on the page
        folder = Path(tempfile.gettempdir()) / "models"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    argosy = Installed(folder / "home", folder)
    settings = load_settings(argosy.environment)
    registry = open_registry(settings, SystemClock())
    for n in range(2):
        Served.publish(SimpleNamespace(registry=registry), constant(1 + n / 1e5), "ranker")
    argosy.ok("deploy", "ranker:1", "--name", "ranker", "--port", "0")
    url = argosy.json("endpoints", "list")["endpoints"][0]["url"]
    traffic, ui = Traffic(url), Ui(argosy)
    try:
        until(lambda: ui.link, 60)
        yield SimpleNamespace(
            argosy=argosy,
            ui=ui,
            url=url,
            traffic=traffic,
            registry=registry,
            launcher=LocalLauncher(process_folder(settings)),
        )
    finally:
        traffic.stop()
        ui.stop()
        argosy("down")


@pytest.fixture(scope="module")
def chromium():
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def page(world, chromium):
    """The page in one browser, and everything that it complains about or asks for."""
    context = chromium.new_context(viewport=WIDE, color_scheme="light", reduced_motion="reduce")
    found = context.new_page()
    found.complaints, found.hosts = [], set()
    found.on("console", lambda m: found.complaints.append(m.text) if m.type in ("error", "warning") else None)
    found.on("pageerror", lambda e: found.complaints.append(str(e)))
    found.on("request", lambda r: found.hosts.add(urlsplit(r.url).hostname))
    found.goto(world.ui.link)
    found.wait_for_selector("article[data-endpoint=ranker]", timeout=60_000)
    yield found
    context.close()


def figure(page, name):
    return (
        page.locator("article[data-endpoint=ranker] .figures").first.locator(f"dt:text-is('{name}') + dd").inner_text()
    )


def row(page, ref):
    table = page.locator(
        "article[data-endpoint=ranker] table", has=page.locator("caption:has-text('Versions of ranker')")
    )
    names = [text.strip() for text in table.locator("th").all_inner_texts()]
    cells = table.locator("tr", has_text=ref).first.locator("td").all_inner_texts()
    return dict(zip(names, (cell.strip() for cell in cells), strict=True))


def health(page):
    """What is said of gateway and controller, without the names of the signs."""
    return page.locator(".health .state > span").all_inner_texts()


def watched(world):
    return world.argosy.json("watch", "ranker", "--once")["endpoints"][0]


def is_shown_as_watched(world, page):
    seen = watched(world)
    version = next(v for v in seen["versions"] if v["role"] == "current")
    shown = row(page, version["ref"])
    return (
        figure(page, "Answered") == look.count(seen["requests"])
        and figure(page, "Failed") == look.count(seen["failed"])
        and figure(page, "Latency p95") == look.milliseconds(seen["p95_ms"])
        and figure(page, "Latency p50") == look.milliseconds(seen["p50_ms"])
        and shown["Answered"] == look.count(version["requests"])
        and shown["p95"] == look.milliseconds(version["p95_ms"])
        and shown["Replicas"] == f"{version['ready']} of {version['wanted']} ready"
        and shown["Share"] == look.percent(version["share"])
    )


@pytest.mark.capability("M3")
def test_what_is_shown_is_what_the_command_line_shows(world, page):
    until(lambda: re.fullmatch(r"[\d.,]+ /s", figure(page, "Traffic")) and figure(page, "Traffic") != "0 /s", 30)
    world.traffic.stop()
    until(lambda: is_shown_as_watched(world, page), 60)
    assert int(figure(page, "Answered").replace(",", "")) > 0
    assert health(page) == ["running", "running"]
    world.traffic = Traffic(world.url)


FORMS = {"rollout": ("light", {"width": 1280, "height": 1320}), "dark": ("dark", {"width": 1280, "height": 1320}),
         "narrow": ("light", NARROW)}  # fmt: skip


def take_pictures(world, page):
    """Write the manual's pictures once there is some evidence to see."""
    until(lambda: watched(world)["rollout"]["windows"] >= 6, 180)
    for name, (scheme, size) in FORMS.items():
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size(size)
        page.mouse.move(0, 0)
        page.wait_for_timeout(2500)  # for the next look to be drawn: a picture has no state to wait for
        page.screenshot(path=IMAGES / f"live-page-{name}.png")
    page.emulate_media(color_scheme="light")
    page.set_viewport_size(WIDE)


@pytest.mark.capability("M3")
@pytest.mark.parametrize(("scheme", "size"), [("light", WIDE), ("dark", WIDE), ("light", NARROW), ("dark", NARROW)])
def test_it_fits_wide_and_narrow_windows_by_day_and_by_night(page, scheme, size):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size(size)
    page.wait_for_selector(f"body.body--{scheme}", timeout=20_000)
    for tab in ("Versions", "Runs", "Log", "Endpoints"):
        page.get_by_role("tab", name=tab).click()
        page.get_by_role("tabpanel").last.wait_for(timeout=20_000)
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], tab
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in re.findall(r"\d+", background)[:3])
    assert brightness > 600 if scheme == "light" else brightness < 150
    page.emulate_media(color_scheme="light")
    page.set_viewport_size(WIDE)


@pytest.mark.capability("M3", "R2")
def test_a_rollout_is_started_followed_and_aborted_as_on_the_command_line(world, page):
    card = page.locator("article[data-endpoint=ranker]")
    card.get_by_role("button", name="Deploy", exact=True).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Version").click()
    page.get_by_role("option", name="ranker:2").click()
    dialog.get_by_role("textbox", name="Steps").fill("50, 10")
    dialog.get_by_role("button", name="Deploy").click()
    refused = dialog.get_by_role("alert")
    until(lambda: "greater than the one before" in refused.inner_text(), 20)
    assert watched(world)["rollout"] is None  # nothing was begun by what was refused
    dialog.get_by_role("textbox", name="Steps").fill("50, 75" if IS_PICTURED else "50")
    dialog.get_by_role("button", name="Deploy").click()
    panel = card.get_by_role("region", name="rollout").or_(card.locator("section.rollout"))
    panel.first.wait_for(timeout=30_000)
    seen = until(lambda: (r := watched(world)["rollout"]) and r["phase"] == "canary" and r, 60)
    assert (seen["base"], seen["to"], seen["steps"][0]) == ("ranker:1", "ranker:2", 50.0)
    until(lambda: panel.first.locator(".steps .now").all_inner_texts() == ["50 %"], 20)
    until(
        lambda: (
            row(page, "ranker:2")["Share"] == "50 %" and int(row(page, "ranker:2")["Answered"].replace(",", "")) > 0
        ),
        30,
    )
    until(lambda: "of 100" in panel.first.locator("table").inner_text(), 40)  # a window was judged
    if IS_PICTURED:
        take_pictures(world, page)
    card.get_by_role("button", name="Abort rollout").click()
    until(lambda: "'ranker' stays with 'ranker:1'" in dialog.inner_text(), 20)
    assert "argosy abort ranker" in dialog.inner_text()
    dialog.get_by_role("button", name="Cancel").click()
    assert watched(world)["rollout"] is not None  # asked, and not done
    card.get_by_role("button", name="Abort rollout").click()
    dialog.get_by_role("button", name="Abort rollout").click()
    last = until(lambda: (e := watched(world))["rollout"] is None and e["last"], 60)
    assert (last["outcome"], last["to"]["ref"]) == ("rolled_back", "ranker:2")
    until(lambda: "rolled back" in card.locator(".last").inner_text(), 20)
    past = card.get_by_role("button", name="Evidence of the last rollout")
    until(past.is_visible, 20)
    past.click()
    card.get_by_text("Evidence that it was worse", exact=True).wait_for(timeout=20_000)
    past.click()
    actions = [(e.data["action"], e.actor) for e in registry_entries(world) if e.subject == "ranker"]
    assert [action for action, _ in actions] == ["deploy", "deploy", "abort"]
    assert len({actor for _, actor in actions}) == 1


def registry_entries(world):
    world.registry.log.refresh()
    return list(world.registry.log.entries(kind="endpoint.desired"))


@pytest.mark.capability("M3")
def test_versions_and_log_are_there_and_searched_by_keyboard(page):
    page.get_by_role("tab", name="Versions").focus()
    page.keyboard.press("Enter")
    until(lambda: page.locator("article.version h3").all_inner_texts() == ["ranker:2", "ranker:1"], 20)
    page.get_by_role("tab", name="Log").click()
    until(lambda: "endpoint.desired" in page.locator(".log").inner_text(), 20)
    page.get_by_label("Search").fill("version.published")
    until(lambda: "endpoint.desired" not in page.locator(".log").inner_text(), 20)
    assert page.locator(".log tbody tr").count() == 2
    page.get_by_label("Search").fill("")
    page.get_by_role("tab", name="Endpoints").click()


@pytest.mark.slow
@pytest.mark.capability("M3")
def test_it_says_what_is_down_goes_on_when_it_is_back_and_can_start_it(world, page):
    for name in ("controller", "gateway"):  # each would start the other again
        os.kill(world.launcher.get(name).pid, signal.SIGKILL)
    banner = page.locator(".banner")
    until(lambda: "Gateway and controller are down" in banner.inner_text(), 30)
    assert health(page) == ["down", "down"]
    page.get_by_role("button", name="Start it").click()
    until(lambda: not banner.is_visible() and health(page) == ["running", "running"], 60)
    until(lambda: figure(page, "Traffic") not in (look.UNKNOWN, "0 /s"), 60)  # requests are seen again


@pytest.mark.slow
def test_a_page_that_only_looks_offers_nothing_that_acts(world, chromium):
    ui = Ui(world.argosy, "--read-only")
    try:
        link = until(lambda: ui.link, 60)
        context = chromium.new_context(viewport=WIDE)
        page = context.new_page()
        page.goto(link)
        page.wait_for_selector("article[data-endpoint=ranker]", timeout=60_000)
        assert "read only" in page.locator(".health").inner_text()
        buttons = set(page.get_by_role("button").all_inner_texts())
        assert not any(word in text for text in buttons for word in ("Deploy", "Promote", "Undo", "Start"))
        again = context.browser.new_context().new_page()
        assert again.goto(link).status == 401  # the link was used
        context.close()
    finally:
        ui.stop()


def test_nothing_was_complained_about_and_nothing_was_asked_from_elsewhere(page):
    assert page.complaints == []
    assert page.hosts == {"127.0.0.1"}
