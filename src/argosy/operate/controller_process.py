"""The controller's process: elected, ticking until it is stopped or done, and wired to this machine."""

import datetime as dt
import os
import random
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from argosy.cluster import machine
from argosy.core.clock import Clock, SystemClock
from argosy.core.config import Settings, private_folder
from argosy.core.errors import ArgosyError, IntegrityError
from argosy.core.files import FileLock
from argosy.operate.companions import Companions
from argosy.operate.controller import RETRY_S, Deposed, Parts, Reconciler, Report
from argosy.operate.desired import Desired
from argosy.operate.exposition import ControllerMetrics, open_exposition
from argosy.operate.gates import gates_missed
from argosy.operate.jobs.keeper import make_keeper
from argosy.operate.judging import WindowJudge
from argosy.operate.layout import Wanted
from argosy.operate.lease import LOOK_S, Lease, home_id
from argosy.operate.own_metrics import ProcessReadings
from argosy.operate.processes import (
    NAME,
    ControllerConfig,
    controller_lock,
    controller_spec,
    gateway_socket,
    prediction_key,
    process_folder,
)
from argosy.operate.scaling_file import ScalingFile
from argosy.operate.sharing import Machine
from argosy.registry.store import open_store
from argosy.serve.control import FrontConfig, GatewayClient, GatewayConfig, Keeper, ReplicaConfig
from argosy.serve.host import usable_cores
from argosy.serve.profile_store import ProfileStore
from argosy.serve.waking import NAME as BELL
from argosy.serve.waking import Bell
from argosy.serve.wire import Advice

CONTROL_TIMEOUT_S = 2.0
"""A gateway that answers later than this is as good as silent; a healthy one takes a millisecond."""


def main(config: dict[str, Any]) -> int:
    """Run the controller of a home until nothing is wanted of it any more, or another one is elected."""
    settings = msgspec.convert(config, ControllerConfig).settings()
    private_folder(settings.runtime)
    lock = controller_lock(settings)
    if not lock.acquire():
        return 0
    clock = SystemClock()
    metrics = ControllerMetrics(clock)
    report = _reporter(clock, metrics)
    is_stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: is_stopping.append(number))
    reconciler = build_reconciler(settings, clock, report)
    _expose(settings, metrics, report)
    lease = Lease(open_store(settings.store), clock, home_id(settings.home), socket.gethostname())
    bell = Bell(gateway_socket(settings).with_name(BELL))
    try:
        return run(
            reconciler,
            lock,
            lease,
            clock=clock,
            report=report,
            is_stopping=lambda: bool(is_stopping),
            metrics=metrics,
            pause=bell.wait,
        )
    finally:
        lease.release()


def _expose(settings: Settings, metrics: ControllerMetrics, report: Report) -> None:
    """Open the endpoint of the metrics; a controller that can't is no reason to serve nobody."""
    try:
        open_exposition(settings, metrics)
    except (ArgosyError, OSError) as error:
        report("metrics_not_exposed", error=str(error))


def run(
    reconciler: Reconciler,
    lock: FileLock,
    lease: Lease,
    *,
    clock: Clock,
    report: Report,
    is_stopping: Callable[[], bool],
    metrics: ControllerMetrics | None = None,
    pause: Callable[[float], bool] | None = None,
) -> int:
    """Tick until stopped, deposed, or done; before that, wait while another home leads.

    The only place that catches everything: one bad look must not end it. `pause` waits between two ticks, and says
    whether it was woken.
    """

    def sleep(seconds: float) -> bool:
        clock.sleep(seconds)
        return False

    is_elected, waits_for = False, ""
    while not is_stopping():
        try:
            if not is_elected:
                holder = lease.holder(reconciler.log)
                if holder:
                    if holder != waits_for:
                        report("controller_stands_by", leader=holder)
                    waits_for = holder
                    if metrics is not None:
                        metrics.look(reconciler.observed())
                    clock.sleep(LOOK_S)
                    continue
                lease.lead(reconciler.elect(lease.claim))
                is_elected = True
            lease.beat()
            wait = reconciler.tick()
            if metrics is not None:
                metrics.look(reconciler.observed())
        except Deposed as error:
            report("controller_deposed", error=error.message)
            return 0
        except IntegrityError:
            raise
        except Exception as error:  # noqa: BLE001 - the outermost loop
            report("controller_trouble", error=str(error), type=type(error).__name__)
            wait = RETRY_S
        if is_elected and reconciler.is_done and not _is_needed_after_all(reconciler, lock):
            report("controller_done")
            return 0
        if (pause or sleep)(wait):
            reconciler.wake()
    lock.release()
    return 0


def _is_needed_after_all(reconciler: Reconciler, lock: FileLock) -> bool:
    """Give the lock back, and look at the log once more.

    Whoever wishes something writes it first and looks at the lock then. So either they find the lock free and start a
    controller, or their wish was there before it became free, and is seen here.
    """
    lock.release()
    try:
        return reconciler.is_wanted_now() and lock.acquire()
    except ArgosyError:
        return False


def build_reconciler(settings: Settings, clock: Clock, report: Report) -> Reconciler:
    """Wire a reconciler to this machine."""
    from argosy.cluster.local import LocalLauncher
    from argosy.registry.registry import open_registry

    registry = open_registry(settings, clock)
    folder = process_folder(settings)
    meeting = str(gateway_socket(settings))

    def make_replica(name: str, want: Wanted) -> dict[str, Any]:
        return msgspec.to_builtins(  # type: ignore[no-any-return]
            ReplicaConfig(
                id=name,
                digest=want.target.digest,
                ref=want.target.ref,
                socket=meeting,
                store=settings.store,
                home=str(settings.home),
                threads=want.threads,
                memory_bytes=want.memory_bytes,
                calibrate_s=want.calibrate_s,
                record=str(folder / name / "record.json"),
                log_level=settings.log_level,
            )
        )

    profiles = ProfileStore(settings.home)

    def advised(digest: str) -> Advice | None:
        profile = profiles.read(digest)
        return profile.advice if profile is not None else None

    expected: dict[str, int] = {}
    cores = usable_cores()

    def replica_memory(digest: str) -> int:
        if digest not in expected:
            profile = profiles.read(digest)
            if profile is not None:
                expected[digest] = profile.memory_bytes
                return profile.memory_bytes
            # Before it was measured: its files are in memory once at least.
            files = registry.versions.get(digest).manifest.files.values()
            return sum(file.size_bytes for file in files)
        return expected[digest]

    def make_gateway(desired: Desired) -> dict[str, Any]:
        return msgspec.to_builtins(  # type: ignore[no-any-return]
            GatewayConfig(
                socket=meeting,
                state=str(settings.runtime / "routes.json"),
                key=prediction_key(settings),
                host=desired.host,
                port=desired.bound_port or desired.port,
                grpc_port=desired.grpc_port,
                grpc_before=desired.bound_grpc_port,
                tls_cert=desired.gateway.tls_cert,
                tls_key=desired.gateway.tls_key,
                hosts=desired.gateway.hosts,
                fronts=desired.gateway.fronts,
                is_guarded=desired.access.is_on,
                keeper=Keeper(folder=str(folder), spec=msgspec.to_builtins(controller_spec(settings))),
                log_level=settings.log_level,
            )
        )

    def make_front(desired: Desired, name: str, port: int) -> dict[str, Any]:
        return msgspec.to_builtins(  # type: ignore[no-any-return]
            FrontConfig(
                name=name,
                socket=meeting,
                host=desired.host,
                port=port,
                tls_cert=desired.gateway.tls_cert,
                tls_key=desired.gateway.tls_key,
                hosts=desired.gateway.hosts,
                log_level=settings.log_level,
            )
        )

    launcher = LocalLauncher(folder, clock)
    keep_scheduler = make_keeper(settings, registry.log, launcher, clock, report)
    companions = Companions(settings, launcher, clock, report)

    def keep_others() -> None:
        keep_scheduler()
        companions.keep()

    return Reconciler(
        Parts(
            log=registry.log,
            launcher=launcher,
            gateway=GatewayClient(meeting, timeout_s=CONTROL_TIMEOUT_S, role=NAME),
            clock=clock,
            randomness=random.Random(os.urandom(16)),  # noqa: S311 - back-off and names
            gate_missed=lambda digest: gates_missed(registry.versions.get(digest)),
            make_judge=WindowJudge,
            make_replica=make_replica,
            advised=advised,
            memory_bytes=machine.memory_bytes() // 2,
            machine=lambda: Machine(machine.memory_bytes(), machine.free_memory_bytes(), cores),
            replica_memory=replica_memory,
            publish_scaling=ScalingFile(settings.runtime).write,
            at_once=max(1, usable_cores() - 1),
            make_gateway=make_gateway,
            make_front=make_front,
            report=report,
            readings=ProcessReadings(launcher, clock, settings.runtime / "metrics", registry.blobs.get),
            keep_others=keep_others,
        )
    )


def _reporter(clock: Clock, metrics: ControllerMetrics) -> Report:
    """Return a writer of the log lines that structlog would write.

    structlog itself imports rich and asyncio: 0.13 CPU seconds and 10 MB, of 0.25 and 40 that a controller may cost.
    """

    def report(event: str, **fields: Any) -> None:
        metrics.note(event, **fields)
        when = dt.datetime.fromtimestamp(clock.now(), dt.UTC).isoformat().replace("+00:00", "Z")
        line = {"process": NAME, **fields, "event": event, "level": "info", "timestamp": when}
        sys.stderr.write(msgspec.json.encode(line).decode() + "\n")
        sys.stderr.flush()

    return report
