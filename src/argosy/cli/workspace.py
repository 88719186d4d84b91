"""The objects of this machine, wired together once per command and made only when asked for."""

import random
import secrets
from functools import cached_property
from typing import NamedTuple

from argosy.cluster.launcher import Launcher
from argosy.core.clock import Clock, SystemClock
from argosy.core.config import Settings, load_settings, private_folder
from argosy.core.errors import Unavailable
from argosy.operate.jobs.fold import Jobs
from argosy.operate.lease import home_id
from argosy.operate.processes import gateway_socket, prediction_key, process_folder
from argosy.operate.scaling_file import ScalingFile
from argosy.operate.view import Observer
from argosy.pipeline.engine import Engine
from argosy.registry.registry import Registry, open_registry
from argosy.serve.control import GatewayClient


class GatewayAddress(NamedTuple):
    """How to reach the gateway from its own machine, where its public name may lead elsewhere or nowhere."""

    url: str
    host: str
    port: int
    name: str
    """What to call it."""
    certificate: str
    """Path of its own certificate, which is believed besides those of the system; empty: no TLS."""


class Workspace:
    """Settings, registry, launcher and engine of one `ARGOSY_HOME`."""

    def __init__(self, settings: Settings | None = None, clock: Clock | None = None) -> None:
        self.settings = settings or load_settings()
        self.clock = clock or SystemClock()
        self.randomness = random.Random(secrets.randbits(64))  # noqa: S311 names, not secrets

    @cached_property
    def registry(self) -> Registry:
        """Blobs, log and versions."""
        private_folder(self.settings.home)
        registry = open_registry(self.settings, self.clock)
        registry.log.refresh()
        return registry

    @cached_property
    def launcher(self) -> Launcher:
        """Starts processes on this machine."""
        from argosy.cluster.local import LocalLauncher

        private_folder(self.settings.runtime)
        return LocalLauncher(process_folder(self.settings), self.clock)

    @cached_property
    def engine(self) -> Engine:
        """Plans and executes runs."""
        return Engine(self.registry, self.launcher, self.clock, self.settings, self.randomness)

    @cached_property
    def observer(self) -> Observer:
        """Looks at what runs."""
        gateway = GatewayClient(str(gateway_socket(self.settings)))
        scaling = ScalingFile(self.settings.runtime).read
        return Observer(
            self.registry.log,
            self.launcher,
            gateway,
            self.clock.now,
            scaling=scaling,
            home=home_id(self.settings.home),
        )

    @cached_property
    def jobs(self) -> Jobs:
        """Jobs and updates, as far as they were read; `catch_up` reads on."""
        found = Jobs()
        found.catch_up(self.registry.log)
        return found

    def gateway_address(self) -> GatewayAddress:
        """Return how this machine reaches the gateway. Raises Unavailable when nothing is served from this home."""
        view = self.observer.look()
        if not view.url or view.gateway != "running":
            raise Unavailable(
                f"nothing is served from '{self.settings.home}' now (gateway: {view.gateway})",
                hint="deploy something with: argosy deploy model.onnx; or bring back what was: argosy up",
                code="not_serving",
            )
        settings = self.observer.desired.gateway
        name, _, port = view.url.partition("//")[2].rpartition(":")
        return GatewayAddress(
            url=view.url,
            host={"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host),  # noqa: S104 - compared
            port=int(port),
            name=name,
            certificate=settings.tls_cert,
        )

    def prediction_key(self) -> bytes:
        """Return the secret that tags the ids of this home's predictions."""
        return bytes.fromhex(prediction_key(self.settings))
