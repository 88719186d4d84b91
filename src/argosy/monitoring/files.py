"""The files that Prometheus, Alertmanager and Grafana read, in the folder `monitoring` of a home.

A file whose first line holds `MARK` is Argosy's and is kept up to date; without that line it is yours and left alone.
"""

import json
import shutil
import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import msgspec

from argosy.core.config import Settings
from argosy.core.errors import InvalidInput
from argosy.core.files import write_atomic
from argosy.monitoring.dashboards import DASHBOARDS, as_grafana
from argosy.operate.desired import Desired
from argosy.operate.loopback import HOST

MARK = "Written by argosy monitor. Delete this line to keep changes of your own."
PROMETHEUS, ALERTMANAGER, GRAFANA = "prometheus", "alertmanager", "grafana"
TOOLS = {PROMETHEUS: ("prometheus",), ALERTMANAGER: ("prometheus-alertmanager", "alertmanager")}
"""What the monitor keeps running, and what its program is called: on Debian, elsewhere."""
INSTALL = {
    PROMETHEUS: "apt-get install --no-install-recommends prometheus",
    ALERTMANAGER: "apt-get install --no-install-recommends prometheus-alertmanager",
}
KEPT_DAYS = 15
KEPT_SIZE = "2GB"
"""What Prometheus keeps at most; some 5 million series-hours at one look every five seconds."""
GATEWAY, CONTROLLER, MONITOR = "argosy-gateway", "argosy-controller", "argosy-monitor"


class Ports(msgspec.Struct, frozen=True, kw_only=True):
    """Where the three listen, on 127.0.0.1."""

    prometheus: int
    alertmanager: int
    receiver: int


class Scrape(msgspec.Struct, frozen=True, kw_only=True):
    """How the gateway is reached; what is empty is not needed."""

    scheme: str = "http"
    key_file: str = ""
    ca_file: str = ""
    server_name: str = ""


class Place:
    """The folder, and what is where in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prometheus = folder / "prometheus.yml"
        self.alertmanager = folder / "alertmanager.yml"
        self.rules = folder / "rules" / "argosy.yml"
        self.own_rules = folder / "rules.d"
        self.targets = folder / "targets"
        self.data = folder / "data"
        self.grafana = folder / "grafana"

    def target(self, job: str) -> Path:
        """Return the file that says where a job is."""
        return self.targets / f"{job}.json"


def place_of(settings: Settings) -> Place:
    """Return the place of a home."""
    return Place(settings.home / "monitoring")


def find_tool(tool: str) -> str:
    """Return the program of a tool, empty when it is not installed. Debian's folders need not be in PATH."""
    more = "/usr/bin:/usr/local/bin:/usr/sbin"
    return next((found for name in TOOLS[tool] if (found := shutil.which(name) or shutil.which(name, path=more))), "")


def check_interval(seconds: float) -> None:
    """Raise InvalidInput for an interval between two looks that makes no sense."""
    if not 0.2 <= seconds <= 300:
        raise InvalidInput(f"looking every {seconds:g} s is not possible; use 200ms to 5min")


def write_all(place: Place, ports: Ports, scrape: Scrape, token_file: Path, every_s: float) -> list[Path]:
    """Write every file that is missing or not up to date; return those that changed."""
    texts = {
        place.prometheus: prometheus_yml(place, ports, scrape, token_file, every_s),
        place.alertmanager: alertmanager_yml(ports, token_file),
        place.rules: rules_yml(),
        **grafana_files(place, ports),
    }
    for folder in (place.own_rules, place.targets, place.data):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return [path for path, text in texts.items() if _write(path, text)]


def _write(path: Path, text: str) -> bool:
    try:
        found = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        found = None
    except (OSError, UnicodeDecodeError):
        return False
    if found == text or (found is not None and MARK not in found[:400]):
        return False
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomic(path, text.encode(), mode=0o600)
    return True


def is_kept(path: Path) -> bool:
    """Return whether a file is the user's own, and so left alone."""
    try:
        return MARK not in path.read_text(encoding="utf-8")[:400]
    except (OSError, UnicodeDecodeError):
        return False


def write_targets(place: Place, addresses: Mapping[str, str]) -> None:
    """Say where each job is; one that is nowhere has no target."""
    for job in (GATEWAY, CONTROLLER, MONITOR):
        address = addresses.get(job, "")
        text = json.dumps([{"targets": [address]}] if address else [], indent=1)
        path = place.target(job)
        if not path.exists() or path.read_text() != text:
            write_atomic(path, text.encode(), mode=0o600)


def scrape_of(desired: Desired, key_file: Path) -> Scrape:
    """Return how to reach the gateway as it is wanted now."""
    gateway = desired.gateway
    return Scrape(
        scheme="https" if gateway.has_tls else "http",
        key_file=str(key_file) if desired.access.is_on else "",
        # The certificate itself: what a gateway shows must be just that, whoever signed it.
        ca_file=gateway.tls_cert,
        server_name=gateway.names[0] if gateway.has_tls and gateway.names else "",
    )


def gateway_target(desired: Desired) -> str:
    """Return host and port of the gateway from this machine, empty when none is wanted or its port isn't known yet."""
    port = desired.bound_port or desired.port
    if not desired.is_running or not port:
        return ""
    host = {"0.0.0.0": HOST, "::": "::1", "localhost": HOST}.get(desired.host, desired.host)  # noqa: S104 - compared
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def prometheus_yml(place: Place, ports: Ports, scrape: Scrape, token_file: Path, every_s: float) -> str:
    """Return Prometheus's configuration."""
    every = _duration(every_s)
    secret = f"    authorization: {{credentials_file: {_quoted(token_file)}}}\n"
    gateway = f"    scheme: {scrape.scheme}\n"
    if scrape.key_file:
        gateway += f"    authorization: {{credentials_file: {_quoted(scrape.key_file)}}}\n"
    if scrape.ca_file:
        name = f", server_name: {_quoted(scrape.server_name)}" if scrape.server_name else ""
        gateway += f"    tls_config: {{ca_file: {_quoted(scrape.ca_file)}{name}}}\n"
    jobs = ((GATEWAY, gateway), (CONTROLLER, secret), (MONITOR, secret))
    return (
        f"# {MARK}\n"
        f"global:\n  scrape_interval: {every}\n  scrape_timeout: {every}\n  evaluation_interval: {every}\n"
        f"rule_files:\n  - {_quoted(place.rules)}\n  - {_quoted(place.own_rules / '*.yml')}\n"
        "alerting:\n  alertmanagers:\n    - static_configs:\n"
        f"        - targets: [{_quoted(f'{HOST}:{ports.alertmanager}')}]\n"
        "scrape_configs:\n"
        + "".join(
            f"  - job_name: {job}\n    sample_limit: 50000\n    body_size_limit: 50MB\n"
            f"    file_sd_configs:\n      - files: [{_quoted(place.target(job))}]\n        refresh_interval: 5s\n{more}"
            for job, more in jobs
        )
    )


def alertmanager_yml(ports: Ports, token_file: Path) -> str:
    """Return Alertmanager's configuration: everything goes to Argosy, what is to act without delay."""
    return (
        f"# {MARK}\n"
        "# To be told by mail or chat, delete the line above and add receivers of your own beside 'argosy'.\n"
        "route:\n"
        "  receiver: argosy\n"
        "  group_by: [alertname, endpoint]\n"
        "  group_wait: 5s\n  group_interval: 1m\n  repeat_interval: 4h\n"
        "  routes:\n"
        "    - matchers: ['argosy_action=~\"rollback|failover\"']\n"
        "      receiver: argosy\n"
        "      group_wait: 0s\n      group_interval: 5s\n      repeat_interval: 1h\n"
        "receivers:\n"
        "  - name: argosy\n"
        "    webhook_configs:\n"
        f"      - url: {_quoted(f'http://{HOST}:{ports.receiver}/alerts')}\n"
        "        send_resolved: true\n        max_alerts: 100\n"
        f"        http_config: {{authorization: {{type: Bearer, credentials_file: {_quoted(token_file)}}}}}\n"
    )


def rules_yml() -> str:
    """Return the rules that come with Argosy."""
    return f"# {MARK}\n" + resources.files("argosy.monitoring").joinpath("rules.yml").read_text(encoding="utf-8")


def grafana_files(place: Place, ports: Ports) -> dict[Path, str]:
    """Return Grafana's provisioning and dashboards by path."""
    provisioning, shown = place.grafana / "provisioning", place.grafana / "dashboards"
    source = (
        f"# {MARK}\napiVersion: 1\ndatasources:\n"
        "  - name: Argosy\n    uid: argosy\n    type: prometheus\n    access: proxy\n"
        f"    url: {_quoted(f'http://{HOST}:{ports.prometheus}')}\n"
    )
    provider = (
        f"# {MARK}\napiVersion: 1\nproviders:\n"
        f"  - name: argosy\n    folder: Argosy\n    type: file\n    options: {{path: {_quoted(shown)}}}\n"
    )
    files = {
        provisioning / "datasources" / "argosy.yml": source,
        provisioning / "dashboards" / "argosy.yml": provider,
    }
    for name, board in DASHBOARDS.items():
        files[shown / f"{name}.json"] = json.dumps({"description": MARK} | as_grafana(name, board), indent=1) + "\n"
    return files


def prometheus_command(program: str, place: Place, ports: Ports) -> list[str]:
    """Return what starts Prometheus."""
    return [
        program,
        f"--config.file={place.prometheus}",
        f"--storage.tsdb.path={place.data / PROMETHEUS}",
        f"--storage.tsdb.retention.time={KEPT_DAYS}d",
        f"--storage.tsdb.retention.size={KEPT_SIZE}",
        f"--web.listen-address={HOST}:{ports.prometheus}",
        "--log.level=warn",
    ]


def alertmanager_command(program: str, place: Place, ports: Ports) -> list[str]:
    """Return what starts Alertmanager, alone: without a cluster it listens nowhere else."""
    return [
        program,
        f"--config.file={place.alertmanager}",
        f"--storage.path={place.data / ALERTMANAGER}",
        f"--web.listen-address={HOST}:{ports.alertmanager}",
        "--cluster.listen-address=",
        "--log.level=warn",
    ]


def install_command(tool: str) -> str:
    """Return what installs a tool here."""
    return (
        INSTALL[tool]
        if sys.platform == "linux" and Path("/usr/bin/apt-get").exists()
        else f"see prometheus.io/download: {tool}"
    )


def _duration(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"


def _quoted(text: object) -> str:
    """Return a YAML string; JSON's form is one."""
    return json.dumps(str(text))
