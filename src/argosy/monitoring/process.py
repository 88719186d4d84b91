"""The monitor's process: it keeps the tools running and their files true, takes alerts, and tells of the machine.

Everything happens in one thread, one thing after another; the threads of the HTTP server only hand over and wait. What
it does is in the log or can be made again, so it may be killed anywhere.
"""

import contextlib
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from argosy.cluster.launcher import Launcher, ProcessInfo, ProcessSpec
from argosy.core.clock import Clock, SystemClock
from argosy.core.config import Config, Settings, private_folder
from argosy.core.errors import ArgosyError, Conflict, IntegrityError, Unavailable
from argosy.core.files import FileLock, write_atomic
from argosy.core.logs import get_logger
from argosy.monitoring import files
from argosy.monitoring.alerts import ACTOR, OUTCOMES, Receiver, answer_of, read_notification
from argosy.monitoring.files import ALERTMANAGER, CONTROLLER, GATEWAY, MONITOR, PROMETHEUS, Ports
from argosy.monitoring.host import RunCounts, host_samples, process_samples, running_stages, stage_samples
from argosy.monitoring.jobs import JobMetrics
from argosy.operate import access
from argosy.operate.desired import Desired
from argosy.operate.jobs.folders import place_of
from argosy.operate.loopback import HOST, Answer, LoopbackServer, monitoring_token, read_taken
from argosy.operate.processes import process_folder
from argosy.operate.transactions import RegistryLike
from argosy.security.api_keys import ApiKey, key_digest, key_id, make_key
from argosy.serve.counters import Counters, expose

NAME = "monitor"
ENTRY = "argosy.monitoring.process:main"
TOOL_ENTRY = "argosy.monitoring.tool:main"
LOOK_S = 1.0
"""Time between two looks at tools and wishes."""
HANDOVER_S = 8.0
"""How long a request waits for its turn; Alertmanager gives up after ten seconds and sends again."""
MAX_BACKOFF_S = 60.0
PROVEN_S = 60.0
"""A tool that ran for so long is started again at once."""
GRACE_S = 10.0
NOWHERE = "argosy-monitoring-only"
"""The endpoint that the monitor's key is for. Nothing is called so: the key reads metrics and can ask no model."""

log = get_logger()


class MonitorConfig(Config, frozen=True):
    """The `config` of a monitor's process."""

    home: str
    store: str
    runtime: str
    ports: Ports
    every_s: float
    programs: dict[str, str]
    """For each tool that is installed, its program."""
    log_level: str = "info"

    def settings(self, actor: str) -> Settings:
        """Return the settings of the home, for writing to the log in `actor`'s name."""
        return Settings(
            home=Path(self.home), store=self.store, runtime=Path(self.runtime), actor=actor, log_level=self.log_level
        )


class _Job(msgspec.Struct):
    """Something a thread of the server wants done by the monitor's thread."""

    work: Callable[[], Answer]
    is_done: threading.Event
    answer: Answer | None = None
    error: ArgosyError | None = None
    is_given_up: bool = False


class Tool:
    """One program that is to run; started again when it ends, each time later."""

    def __init__(self, name: str, launcher: Launcher, clock: Clock, command: list[str]) -> None:
        self.name = name
        self.restarts = 0
        self.info: ProcessInfo | None = None
        self._launcher = launcher
        self._clock = clock
        self._command = command
        self._failures = 0
        self._next_start = 0.0
        self._was_started = False
        self._running_since: float | None = None

    @property
    def is_running(self) -> bool:
        """Whether it ran at the last look."""
        return self.info is not None and self.info.alive

    def ensure(self) -> None:
        """Start it if it does not run and its time has come."""
        now = self._clock.monotonic()
        self.info = self._launcher.get(self.name)
        if self.is_running:
            self._running_since = now if self._running_since is None else self._running_since
            if now - self._running_since > PROVEN_S:
                self._failures = 0
            return
        if self._running_since is not None or self._was_started:
            self._running_since, self._was_started = None, False
            self._failures += 1
            self._next_start = now + min(MAX_BACKOFF_S, 0.5 * 2.0 ** min(self._failures - 1, 9))
            said = self._launcher.log_tail(self.name, 3).strip() if self.info is not None else ""
            log.warning("tool_ended", tool=self.name, failures=self._failures, said=said[-500:])
        if now < self._next_start:
            return
        self.restarts += self._failures > 0
        spec = ProcessSpec(
            name=self.name, role=self.name, entry=TOOL_ENTRY, config={"command": self._command}, env={"GOGC": "50"}
        )
        try:
            self.info = self._launcher.start(spec)
        except Conflict:
            return  # somebody else has started it
        self._was_started = True
        log.info("tool_started", tool=self.name, pid=self.info.pid)

    def reload(self) -> None:
        """Have it read its files again."""
        if self.info is not None and self.info.alive and self.info.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.info.pid, signal.SIGHUP)
            log.info("tool_reloaded", tool=self.name)

    def stop(self) -> None:
        """End it."""
        self._launcher.stop(self.name, GRACE_S)


class Monitor:
    """What the process does; `look` once a second, `do` what the server hands over."""

    def __init__(
        self,
        config: MonitorConfig,
        registry: RegistryLike,
        receiver: Receiver,
        launcher: Launcher,
        clock: Clock,
    ) -> None:
        self._config = config
        self._settings = config.settings(NAME)
        self._registry = registry
        self._receiver = receiver
        self._launcher = launcher
        self._clock = clock
        self._place = files.place_of(self._settings)
        self._token = monitoring_token(self._settings)
        self._key = self._settings.home / "keys" / "monitoring.key"
        self._counters = Counters()
        self._runs = RunCounts()
        self._jobs = JobMetrics(place_of(self._settings.home))
        self._desired = Desired()
        self._trouble = ""
        commands = {PROMETHEUS: files.prometheus_command, ALERTMANAGER: files.alertmanager_command}
        self.tools = [
            Tool(name, launcher, clock, make(config.programs[name], self._place, config.ports))
            for name, make in commands.items()
            if config.programs.get(name)
        ]
        for outcome in OUTCOMES:
            self._counters.count("argosy_alerts_received_total", outcome, by=0.0)

    def look(self) -> None:
        """Follow what is wanted of the gateway, and see to the tools. A store that fails holds up nothing."""
        try:
            self._registry.log.refresh()
            self._desired.catch_up(self._registry.log)
            self._grant()
            self._trouble = ""
        except IntegrityError:
            raise
        except ArgosyError as error:
            if error.message != self._trouble:
                log.warning("log_unreadable", error=error.message, code=error.code)
            self._trouble = error.message
        changed = self.write()
        for tool in self.tools:
            tool.ensure()
            if self._files_of(tool) & set(changed):
                tool.reload()

    def write(self) -> list[Path]:
        """Make the files true; return those of which the tools must be told."""
        changed = files.write_all(
            self._place,
            self._config.ports,
            files.scrape_of(self._desired, self._key),
            self._token,
            self._config.every_s,
        )
        controller = read_taken(self._settings.runtime / "controller-http.json")
        addresses = {
            GATEWAY: files.gateway_target(self._desired),
            CONTROLLER: f"{HOST}:{controller.port}" if controller is not None and self._desired.is_running else "",
            MONITOR: f"{HOST}:{self._config.ports.receiver}",
        }
        files.write_targets(self._place, addresses)
        return changed

    def _files_of(self, tool: Tool) -> set[Path]:
        place = self._place
        return {place.prometheus, place.rules} if tool.name == PROMETHEUS else {place.alertmanager}

    def _grant(self) -> None:
        """Have a key that reads metrics, where the gateway asks for keys."""
        grants = self._desired.access
        if not grants.is_on:
            return
        text = self._key.read_text().strip() if self._key.exists() else ""
        known = grants.by_name.get(NAME)
        if text and known is not None and known.digest == key_digest(text):
            return
        if not key_id(text):
            text = make_key().text
            private_folder(self._key.parent)
            # Before it is granted: killed in between, the next look grants this one.
            write_atomic(self._key, text.encode(), mode=0o600)
        if known is not None:
            access.revoke(self._registry, NAME)
        key = ApiKey(key_id(text), text, key_digest(text))
        access.grant(self._registry, NAME, endpoints=[NOWHERE], clock=self._clock, key=key)
        self._desired.catch_up(self._registry.log)

    def alerts(self, body: bytes) -> Answer:
        """Act on a notification of Alertmanager's."""
        done = self._receiver.take(read_notification(body))
        for one in done:
            self._counters.count("argosy_alerts_received_total", one.outcome)
            if one.outcome == "rolled_back":
                log.info("alert_acted", alert=one.alert, endpoint=one.endpoint)
        return answer_of(done), "application/json"

    def metrics(self) -> Answer:
        """Return the metrics of the machine, its processes, its runs and its jobs."""
        home = self._settings.home
        processes = self._launcher.list()
        samples = [
            *self._counters.samples(),
            *host_samples(home),
            *process_samples(processes),
            *stage_samples(running_stages(home)),
            *self._runs.samples(self._registry.log),
            *self._jobs.samples(self._registry.log, processes, self._clock.now()),
        ]
        for tool in self.tools:
            samples.append(("argosy_monitor_up", (tool.name,), float(tool.is_running)))
            samples.append(("argosy_monitor_restarts_total", (tool.name,), float(tool.restarts)))
        return expose("monitor", samples)

    def refused(self, code: str) -> None:
        """Count a request that was refused."""
        self._counters.count("argosy_alert_requests_refused_total", code)

    def stop(self) -> None:
        """End the tools."""
        for tool in self.tools:
            tool.stop()


class Desk:
    """Where threads of the server hand jobs to the monitor's thread. At most as many wait as the server lets in."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()

    def ask(self, work: Callable[[], Answer]) -> Answer:
        """Have `work` done, and return or raise what it does; Unavailable when its turn does not come."""
        job = _Job(work, threading.Event())
        self._jobs.put(job)
        if not job.is_done.wait(HANDOVER_S):
            job.is_given_up = True
            raise Unavailable("the monitor is busy; send it again", retry_after_s=5.0)
        if job.error is not None:
            raise job.error
        if job.answer is None:
            raise Unavailable("the monitor is ending", retry_after_s=5.0)
        return job.answer

    def do(self, wait_s: float) -> bool:
        """Do the next job, if one comes within `wait_s`; return whether there was one."""
        try:
            job = self._jobs.get(timeout=wait_s)
        except queue.Empty:
            return False
        if job is None or job.is_given_up:
            return True
        try:
            job.answer = job.work()
        except ArgosyError as error:
            job.error = error
        except Exception as error:
            log.exception("request_failed")
            job.error = Unavailable(f"it could not be done: {type(error).__name__}", retry_after_s=5.0)
        finally:
            job.is_done.set()
        return True

    def wake(self) -> None:
        """End the present wait; may be called by a handler of a signal."""
        self._jobs.put(None)


def monitor_lock(settings: Settings) -> FileLock:
    """Return the lock that the one monitor of a home holds."""
    return FileLock(settings.runtime / "monitor.lock")


def main(config: dict[str, Any]) -> int:
    """Keep the tools of a home running until told to end; then end them."""
    from argosy.cluster.local import LocalLauncher
    from argosy.registry.registry import open_registry

    found = msgspec.convert(config, MonitorConfig)
    settings = found.settings(NAME)
    private_folder(settings.runtime)
    lock = monitor_lock(settings)
    if not lock.acquire():
        return 0
    desk = Desk()
    is_stopping: list[int] = []

    def stop(number: int, frame: object) -> None:
        del frame
        is_stopping.append(number)
        desk.wake()

    signal.signal(signal.SIGTERM, stop)
    clock = SystemClock()
    monitor = Monitor(
        found,
        open_registry(settings, clock),
        Receiver(open_registry(found.settings(ACTOR), clock), clock),
        LocalLauncher(process_folder(settings), clock),
        clock,
    )
    server = LoopbackServer(
        {
            ("GET", "/metrics"): lambda _: desk.ask(monitor.metrics),
            ("POST", "/alerts"): lambda body: desk.ask(lambda: monitor.alerts(body)),
        },
        token=monitoring_token(settings).read_text(),
        place=settings.runtime / "monitor-http.json",
        port=found.ports.receiver,
        refused=monitor.refused,
    ).start()
    try:
        run(monitor, desk, clock, lambda: bool(is_stopping))
    finally:
        server.close()
        monitor.stop()
        lock.release()
    return 0


def run(monitor: Monitor, desk: Desk, clock: Clock, is_stopping: Callable[[], bool]) -> None:
    """Look and do until told to stop. The only place that catches everything: one bad look must not end it."""
    next_look = clock.monotonic()
    while not is_stopping():
        now = clock.monotonic()
        if now >= next_look:
            next_look = now + LOOK_S
            try:
                monitor.look()
            except IntegrityError:
                raise
            except Exception as error:  # noqa: BLE001 - the outermost loop
                sys.stderr.write(f"monitor_trouble: {type(error).__name__}: {error}\n")
        desk.do(max(0.01, next_look - clock.monotonic()))
