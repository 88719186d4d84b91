"""The controller's process: elected, ticking until it is stopped or done, and wired to this machine."""

import datetime as dt
import os
import random
import signal
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from argosy.cluster import machine
from argosy.core.clock import Clock, SystemClock
from argosy.core.config import Settings, private_folder
from argosy.core.errors import ArgosyError, IntegrityError
from argosy.core.files import FileLock
from argosy.operate import commands
from argosy.operate.controller import RETRY_S, Deposed, Parts, Reconciler, Report
from argosy.operate.desired import Desired
from argosy.operate.judging import WindowJudge
from argosy.operate.layout import Wanted
from argosy.operate.processes import (
    NAME,
    ControllerConfig,
    controller_lock,
    gateway_socket,
    prediction_key,
    process_folder,
)
from argosy.serve.control import FrontConfig, GatewayClient, GatewayConfig, ReplicaConfig
from argosy.serve.host import usable_cores
from argosy.serve.profile_store import ProfileStore
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
    report = _reporter(clock)
    is_stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: is_stopping.append(number))
    reconciler = build_reconciler(settings, clock, report)
    return run(reconciler, lock, clock, report, lambda: bool(is_stopping))


def run(reconciler: Reconciler, lock: FileLock, clock: Clock, report: Report, is_stopping: Callable[[], bool]) -> int:
    """Tick until stopped, deposed, or done. The only place that catches everything: one bad look must not end it."""
    is_elected = False
    while not is_stopping():
        try:
            if not is_elected:
                reconciler.elect()
                is_elected = True
            wait = reconciler.tick()
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
        clock.sleep(wait)
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
    socket = str(gateway_socket(settings))

    def make_replica(name: str, want: Wanted) -> dict[str, Any]:
        return msgspec.to_builtins(  # type: ignore[no-any-return]
            ReplicaConfig(
                id=name,
                digest=want.target.digest,
                ref=want.target.ref,
                socket=socket,
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

    def make_gateway(desired: Desired) -> dict[str, Any]:
        return msgspec.to_builtins(  # type: ignore[no-any-return]
            GatewayConfig(
                socket=socket,
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
                log_level=settings.log_level,
            )
        )

    def make_front(desired: Desired, name: str, port: int) -> dict[str, Any]:
        return msgspec.to_builtins(  # type: ignore[no-any-return]
            FrontConfig(
                name=name,
                socket=socket,
                host=desired.host,
                port=port,
                tls_cert=desired.gateway.tls_cert,
                tls_key=desired.gateway.tls_key,
                hosts=desired.gateway.hosts,
                log_level=settings.log_level,
            )
        )

    return Reconciler(
        Parts(
            log=registry.log,
            launcher=LocalLauncher(folder, clock),
            gateway=GatewayClient(socket, timeout_s=CONTROL_TIMEOUT_S),
            clock=clock,
            randomness=random.Random(os.urandom(16)),  # noqa: S311 - back-off and names
            gate_missed=lambda digest: commands.gates_missed(registry.versions.get(digest)),
            make_judge=WindowJudge,
            make_replica=make_replica,
            advised=advised,
            memory_bytes=machine.memory_bytes() // 2,
            at_once=max(1, usable_cores() - 1),
            make_gateway=make_gateway,
            make_front=make_front,
            report=report,
        )
    )


def _reporter(clock: Clock) -> Report:
    """Return a writer of the log lines that structlog would write.

    structlog itself imports rich and asyncio: 0.13 CPU seconds and 10 MB, of 0.25 and 40 that a controller may cost.
    """

    def report(event: str, **fields: Any) -> None:
        when = dt.datetime.fromtimestamp(clock.now(), dt.UTC).isoformat().replace("+00:00", "Z")
        line = {"process": NAME, **fields, "event": event, "level": "info", "timestamp": when}
        sys.stderr.write(msgspec.json.encode(line).decode() + "\n")
        sys.stderr.flush()

    return report
