"""A home with a real controller, gateway and replicas, and steady traffic, for tests that kill parts of it."""

import contextlib
import os
import signal
import threading
import time

from argosy.cluster.local import LocalLauncher
from argosy.core.clock import SystemClock
from argosy.operate.processes import (
    controller_lock,
    gateway_socket,
    process_folder,
    start_controller,
    stop_everything,
)
from argosy.operate.view import Observer
from argosy.serve.control import GatewayClient
from served import Served, until


class Controlled(Served):
    """`Served`, with the controller in charge."""

    def __init__(self):
        super().__init__()
        self.launcher = LocalLauncher(process_folder(self.settings))
        self.socket = str(gateway_socket(self.settings))
        self.client = GatewayClient(self.socket)
        self.observer = Observer(self.registry.log, self.launcher, self.client, time.time)

    def start(self):
        return start_controller(self.settings, self.launcher)

    def look(self):
        found = self.observer.look()
        if found.url:
            self.port = int(found.url.rpartition(":")[2])
        return found

    def endpoint(self, name="m"):
        return next(endpoint for endpoint in self.look().endpoints if endpoint.name == name)

    def ended(self, rollout, seconds=40.0):
        """Wait for a rollout's end, the controller being restarted whenever it is found dead; return how it ended."""

        def is_over():
            last = self.endpoint().last
            return last if last is not None and last.rollout == rollout else None

        return until(is_over, seconds)

    def serving(self, ref):
        """Wait until requests are answered by a version, all replicas ready."""

        def is_served():
            found = self.endpoint()
            current = [version.ref for version in found.versions if version.role == "current"]
            return found.state == "ready" and current == [ref]

        until(is_served)
        return self

    def kill(self, role):
        """kill -9 one process of a role; return its pid."""
        info = next(info for info in self.launcher.list(role) if info.alive)
        os.kill(info.pid, signal.SIGKILL)
        return info.pid

    def down(self):
        return stop_everything(self.registry, self.launcher, self.settings, SystemClock())

    def close(self):
        with contextlib.suppress(Exception):
            self.down()
        super().close()

    def is_controlled(self):
        return controller_lock(self.settings).is_taken()


class Traffic:
    """Requests one after the other from some threads; counts what came back."""

    def __init__(self, home, threads=2, value=-1.0):
        self.home = home
        self.value = value
        self.answers = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self):
        while not self._stop.is_set():
            try:
                status, _, body = self.home.infer([[self.value]])
                found = body["outputs"][0]["data"][0] if status == 200 else body
            except OSError as error:
                status, found = 0, str(error)
            self.answers.append((time.monotonic(), status, found))

    @property
    def failed(self):
        return [answer for answer in self.answers if answer[1] != 200]

    def since(self, moment):
        return [found for when, status, found in self.answers if when >= moment and status == 200]
