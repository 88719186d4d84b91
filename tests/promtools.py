"""Real Prometheus and Alertmanager for tests: what the machine has, else Debian's packages, unpacked into a cache."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from debian import apt

TEMPLATES = Path("/usr/share/prometheus/alertmanager")
"""Where Debian's Alertmanager looks for its templates, wherever it is itself."""
PACKAGES = {"prometheus": ("prometheus", "promtool"), "prometheus-alertmanager": ("prometheus-alertmanager", "amtool")}


def programs():
    """Return the folder of prometheus, promtool, prometheus-alertmanager and amtool; download them once if need be."""
    wanted = [name for names in PACKAGES.values() for name in names]
    found = [shutil.which(name) for name in wanted]
    if all(found) and len({Path(path).parent for path in found}) == 1:
        return Path(found[0]).parent
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "argosy-tests"
    place = cache / "prometheus"
    if not all((place / "usr/bin" / name).is_file() for name in wanted):
        cache.mkdir(parents=True, exist_ok=True)
        with apt(), tempfile.TemporaryDirectory(dir=cache) as work:
            if subprocess.run(["apt-get", "download", *PACKAGES], cwd=work, timeout=300, check=False).returncode:
                subprocess.run(["apt-get", "update", "-q"], timeout=300, check=False)
                subprocess.run(["apt-get", "download", *PACKAGES], cwd=work, timeout=300, check=True)
            made = Path(work) / "unpacked"
            for package in Path(work).glob("*.deb"):
                subprocess.run(["dpkg", "-x", str(package), str(made)], timeout=120, check=True)
            try:
                made.rename(place)
            except OSError:
                if not (place / "usr/bin/promtool").is_file():  # else another run was first
                    raise
    if not (TEMPLATES / "default.tmpl").exists():
        with_rights = [] if os.getuid() == 0 else ["sudo", "-n"]
        subprocess.run([*with_rights, "mkdir", "-p", str(TEMPLATES.parent)], timeout=60, check=True)
        found = str(place / str(TEMPLATES).lstrip("/"))
        subprocess.run([*with_rights, "cp", "-r", found, str(TEMPLATES.parent)], timeout=60, check=True)
    return place / "usr" / "bin"
