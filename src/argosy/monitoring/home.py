"""The monitor of a home: its settings, starting it, stopping it, and asking what it does."""

import json
import socket
import urllib.request
from typing import Any

import msgspec

from argosy.cluster.launcher import Launcher, ProcessSpec
from argosy.core.clock import Clock
from argosy.core.config import Config, Settings, private_folder
from argosy.core.errors import ArgosyError, Conflict, InvalidInput, Unavailable
from argosy.core.files import write_atomic
from argosy.monitoring import files
from argosy.monitoring.files import ALERTMANAGER, PROMETHEUS, TOOLS, Place, Ports
from argosy.monitoring.process import ENTRY, NAME, MonitorConfig, monitor_lock
from argosy.operate.companions import keep_running, let_go
from argosy.operate.desired import Desired
from argosy.operate.loopback import HOST, monitoring_token, read_taken

FIRST_PORT = 8720
EVERY_S = 5.0
PATIENCE_S = 30.0
_ANSWER_S = 3.0
_MOST_BYTES = 4_000_000


class Chosen(Config, frozen=True):
    """What was chosen for the monitor of a home, kept in its folder."""

    ports: Ports
    every_s: float = EVERY_S


def choose(settings: Settings, *, port: int = -1, every_s: float = 0.0) -> Chosen:
    """Return the settings of the monitor: what is given, else what was chosen before, else the defaults; and keep them.

    `port` 0: any free ones, -1: as before. Raises InvalidInput.
    """
    former = _read(settings)
    every_s = every_s or (former.every_s if former else EVERY_S)
    files.check_interval(every_s)
    if not -1 <= port <= 65533:
        raise InvalidInput(f"{port} is not a port that has two more after it; use 1 to 65533, or 0 for free ones")
    if port == 0:
        ports = _free_ports()
    elif port > 0 or former is None:
        first = port if port > 0 else FIRST_PORT
        ports = Ports(prometheus=first, alertmanager=first + 1, receiver=first + 2)
    else:
        ports = former.ports
    chosen = Chosen(ports=ports, every_s=every_s)
    place = files.place_of(settings)
    private_folder(place.folder)
    write_atomic(place.folder / "chosen.json", msgspec.json.encode(chosen), mode=0o600)
    return chosen


def _read(settings: Settings) -> Chosen | None:
    try:
        return msgspec.json.decode((files.place_of(settings).folder / "chosen.json").read_bytes(), type=Chosen)
    except (OSError, msgspec.MsgspecError):
        return None


def _free_ports() -> Ports:
    sockets = [socket.socket() for _ in range(3)]
    try:
        for each in sockets:
            each.bind((HOST, 0))
        one, two, three = (each.getsockname()[1] for each in sockets)
    finally:
        for each in sockets:
            each.close()
    return Ports(prometheus=one, alertmanager=two, receiver=three)


def write_files(settings: Settings, desired: Desired, chosen: Chosen) -> Place:
    """Write every file of the monitor as of now; one that runs keeps them true afterwards."""
    place = files.place_of(settings)
    scrape = files.scrape_of(desired, settings.home / "keys" / "monitoring.key")
    files.write_all(place, chosen.ports, scrape, monitoring_token(settings), chosen.every_s)
    return place


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """What `start` did."""

    is_changed: bool
    """False when it ran with just these settings already."""
    chosen: Chosen
    programs: dict[str, str]
    missing: tuple[str, ...]


def start(settings: Settings, launcher: Launcher, clock: Clock, chosen: Chosen) -> Started:
    """Run the monitor with these settings, and wait until it and its tools answer.

    Raises Unavailable (code `monitor_down`) with what the one that doesn't said.
    """
    programs = {tool: found for tool in TOOLS if (found := files.find_tool(tool))}
    missing = tuple(tool for tool in TOOLS if tool not in programs)
    config = MonitorConfig(
        home=str(settings.home),
        store=settings.store,
        runtime=str(settings.runtime),
        ports=chosen.ports,
        every_s=chosen.every_s,
        programs=programs,
        log_level=settings.log_level,
    )
    plain = msgspec.to_builtins(config)
    private_folder(settings.runtime)
    started_with = settings.runtime / "monitor-config.json"
    text = msgspec.json.encode(config)
    is_same = started_with.exists() and started_with.read_bytes() == text
    is_changed = not (is_same and monitor_lock(settings).is_taken())
    spec = ProcessSpec(name=NAME, role=NAME, entry=ENTRY, config=plain, threads=1)
    if is_changed:
        # While it is exchanged nobody else shall start the former one.
        let_go(settings, NAME)
        if is_same:
            launcher.stop(NAME)  # its tools go on, and the next one takes them over
        else:
            stop(settings, launcher)
            _refuse_taken(chosen.ports, programs)
        write_atomic(started_with, text, mode=0o600)
        try:
            launcher.start(spec)
        except Conflict as error:
            raise Unavailable(
                "another command starts the monitor now", hint="try again", code="monitor_down"
            ) from error
    _wait(settings, launcher, clock, chosen.ports, programs)
    keep_running(settings, spec)
    return Started(is_changed=is_changed, chosen=chosen, programs=programs, missing=missing)


def _refuse_taken(ports: Ports, programs: dict[str, str]) -> None:
    wanted = {"receiver": ports.receiver} | {tool: getattr(ports, tool) for tool in programs}
    for what, port in wanted.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                raise Conflict(
                    f"port {port} of {HOST}, meant for {what}, can't be taken: {error.strerror}",
                    hint="choose others: argosy monitor up --port 0",
                    code="port_in_use",
                ) from error


def _wait(settings: Settings, launcher: Launcher, clock: Clock, ports: Ports, programs: dict[str, str]) -> None:
    deadline = clock.monotonic() + PATIENCE_S
    paths = {PROMETHEUS: "/-/ready", ALERTMANAGER: "/-/ready"}
    while True:
        late = [] if _is_receiving(settings, ports) else [NAME]
        late += [tool for tool in programs if ask(getattr(ports, tool), paths[tool]) is None]
        if not late:
            return
        error = launcher.error(NAME)
        if error is not None or clock.monotonic() > deadline:
            said = error.message if error is not None else _last_words(launcher, late[0])
            raise Unavailable(
                f"{late[0]} does not run: {said}",
                hint="see its log in the process folder of ARGOSY_RUNTIME; argosy monitor status",
                code="monitor_down",
            )
        clock.sleep(0.1)


def _is_receiving(settings: Settings, ports: Ports) -> bool:
    taken = read_taken(settings.runtime / "monitor-http.json")
    return taken is not None and taken.port == ports.receiver and monitor_lock(settings).is_taken()


def _last_words(launcher: Launcher, name: str) -> str:
    try:
        lines = launcher.log_tail(name, 3).strip().splitlines()
    except ArgosyError:
        lines = []
    return lines[-1][:500] if lines else "it says nothing"


def stop(settings: Settings, launcher: Launcher) -> list[str]:
    """Stop the monitor and its tools; return what ran."""
    let_go(settings, NAME)
    living = [name for name in (NAME, *TOOLS) if (info := launcher.get(name)) is not None and info.alive]
    for name in (NAME, *TOOLS):  # the monitor first: it would start again what is stopped
        launcher.stop(name, 10.0)
    return living


def ask(port: int, path: str) -> Any:
    """Return what a tool on this machine answers: decoded JSON, or its text; None when it does not answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{HOST}:{port}{path}", timeout=_ANSWER_S) as found:
            text = found.read(_MOST_BYTES)
    except OSError:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text.decode("utf-8", "replace")


class TargetView(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that Prometheus reads."""

    job: str
    address: str
    health: str
    error: str


class AlertView(msgspec.Struct, frozen=True, kw_only=True):
    """One alert that is pending or fires."""

    name: str
    state: str
    endpoint: str
    severity: str
    action: str
    summary: str


class MonitorView(msgspec.Struct, frozen=True, kw_only=True):
    """What the monitor does."""

    is_running: bool
    error: str
    folder: str
    urls: dict[str, str]
    """Of the tools that answer."""
    missing: dict[str, str]
    """Tools that are not installed, and what installs them."""
    targets: tuple[TargetView, ...]
    alerts: tuple[AlertView, ...]


def look(settings: Settings, launcher: Launcher) -> MonitorView:
    """Return what runs, what is read and which alerts there are, as Prometheus says."""
    chosen = _read(settings)
    running = monitor_lock(settings).is_taken()
    error = launcher.error(NAME)
    place = files.place_of(settings)
    urls: dict[str, str] = {}
    targets: tuple[TargetView, ...] = ()
    alerts: tuple[AlertView, ...] = ()
    if chosen is not None and running:
        for tool in TOOLS:
            if ask(getattr(chosen.ports, tool), "/-/ready") is not None:
                urls[tool] = f"http://{HOST}:{getattr(chosen.ports, tool)}"
        urls["receiver"] = f"http://{HOST}:{chosen.ports.receiver}/alerts"
        targets = _targets(ask(chosen.ports.prometheus, "/api/v1/targets?state=active"))
        alerts = _alerts(ask(chosen.ports.prometheus, "/api/v1/alerts"))
    return MonitorView(
        is_running=running,
        error=error.message if error is not None and not running else "",
        folder=str(place.folder),
        urls=urls,
        missing={tool: files.install_command(tool) for tool in TOOLS if not files.find_tool(tool)},
        targets=targets,
        alerts=alerts,
    )


def _data(found: Any, name: str) -> list[Any]:
    data = found.get("data") if isinstance(found, dict) else None
    listed = data.get(name) if isinstance(data, dict) else None
    return listed if isinstance(listed, list) else []


def _targets(found: Any) -> tuple[TargetView, ...]:
    return tuple(
        TargetView(
            job=str(one.get("labels", {}).get("job", "")),
            address=str(one.get("scrapeUrl", "")),
            health=str(one.get("health", "")),
            error=str(one.get("lastError", "")),
        )
        for one in _data(found, "activeTargets")
    )


def _alerts(found: Any) -> tuple[AlertView, ...]:
    return tuple(
        AlertView(
            name=str(one["labels"].get("alertname", "")),
            state=str(one.get("state", "")),
            endpoint=str(one["labels"].get("endpoint", "")),
            severity=str(one["labels"].get("severity", "")),
            action=str(one["labels"].get("argosy_action", "none")),
            summary=str(one.get("annotations", {}).get("summary", "")),
        )
        for one in _data(found, "alerts")
    )
