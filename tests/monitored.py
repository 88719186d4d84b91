"""A controlled home with real Prometheus and Alertmanager beside it, for tests."""

import os
import signal

from argosy.core.clock import SystemClock
from argosy.monitoring import files, home
from argosy.monitoring.home import ask
from controlled import Controlled
from promtools import programs


class Monitored(Controlled):
    """`Controlled`, with the monitor."""

    def __init__(self):
        super().__init__()
        self.place = files.place_of(self.settings)
        self.chosen = None

    def rule(self, name, expression, **labels):
        """Write a rule of the user's own."""
        self.place.own_rules.mkdir(parents=True, exist_ok=True)
        said = ", ".join(f"{key}: {value}" for key, value in labels.items())
        text = f"groups: [{{name: {name}, rules: [{{alert: {name}, expr: {expression!r}, labels: {{{said}}}}}]}}]\n"
        (self.place.own_rules / f"{name}.yml").write_text(text)

    def monitor(self, **changes):
        """Start the monitor on ports of its own, as `argosy monitor up --port 0 --every 1s` does."""
        self.chosen = home.choose(self.settings, port=0, every_s=1.0) if self.chosen is None else self.chosen
        self.look()
        home.write_files(self.settings, self.observer.desired, self.chosen)
        return home.start(self.settings, self.launcher, SystemClock(), self.chosen)

    def view(self):
        return home.look(self.settings, self.launcher)

    def query(self, expression):
        """Return what Prometheus answers now: (labels, value) of each series."""
        from urllib.parse import quote

        found = ask(self.chosen.ports.prometheus, f"/api/v1/query?query={quote(expression)}")
        assert found is not None, f"Prometheus does not answer {expression}"
        assert found["status"] == "success", found
        return [(one["metric"], float(one["value"][1])) for one in found["data"]["result"]]

    def kill_process(self, name):
        pid = self.launcher.get(name).pid
        os.kill(pid, signal.SIGKILL)
        return pid


def add_tools_to_path(monkeypatch):
    """Let this test's processes find Prometheus and Alertmanager."""
    monkeypatch.setenv("PATH", f"{programs()}{os.pathsep}{os.environ['PATH']}")
