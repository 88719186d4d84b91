"""The objects of this machine, wired together once per command and made only when asked for."""

import random
import secrets
from functools import cached_property

from argosy.cluster.launcher import Launcher
from argosy.core.clock import Clock, SystemClock
from argosy.core.config import Settings, load_settings, private_folder
from argosy.pipeline.engine import Engine
from argosy.registry.registry import Registry, open_registry


class Workspace:
    """Settings, registry, launcher and engine of one `ARGOSY_HOME`."""

    def __init__(self, settings: Settings | None = None, clock: Clock | None = None) -> None:
        self.settings = settings or load_settings()
        self.clock = clock or SystemClock()
        self.randomness = random.Random(secrets.randbits(64))

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

        return LocalLauncher(private_folder(self.settings.runtime) / "processes", self.clock)

    @cached_property
    def engine(self) -> Engine:
        """Plans and executes runs."""
        return Engine(self.registry, self.launcher, self.clock, self.settings, self.randomness)
