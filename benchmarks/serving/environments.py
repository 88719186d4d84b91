"""One virtual environment per contender, made once and kept; the same engine in all of them."""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "constraints.txt"


class Failed(Exception):
    """A contender can't be installed or started; the message says why."""


def environment(folder: Path, name: str, packages: Sequence[str]) -> Path:
    """Return the folder of programs of an environment that holds these packages, after making it if necessary."""
    home = folder / name
    wanted = hashlib.sha256("\n".join(packages).encode()).hexdigest()
    made = home / "made"
    programs = home / "bin"
    if made.exists() and made.read_text() == wanted:
        return programs
    print(f"installing {name}: {' '.join(packages)} ...", flush=True)
    if not programs.exists():
        run([sys.executable, "-m", "venv", str(home)], "the virtual environment could not be made")
    pip(programs, *packages)
    made.write_text(wanted)
    return programs


def pip(programs: Path, *arguments: str) -> None:
    """Install into an environment, held to this repository's constraints: no torch but the one named there, no CUDA."""
    options = ["--quiet", "--disable-pip-version-check", "--constraint", str(CONSTRAINTS)]
    run([str(programs / "python"), "-m", "pip", "install", *options, *arguments], "pip install failed")


def install_argosy(folder: Path, source: str) -> Path:
    """Install Argosy as a package, from a tree or by a requirement; return the folder of its programs.

    With what deploying a Hugging Face folder needs; serving doesn't load it.
    """
    if not (Path(source) / "pyproject.toml").is_file():
        return environment(folder, "argosy", (source,))
    tree = Path(source).resolve().as_uri()
    programs = environment(folder, "argosy", (f"argosy[hf] @ {tree}",))
    # The tree may have changed since that environment was made, with its version number kept.
    pip(programs, f"argosy[hf] @ {tree}")
    pip(programs, "--no-deps", "--force-reinstall", "--no-cache-dir", f"argosy @ {tree}")
    return programs


def versions(programs: Path) -> dict[str, str]:
    """Return what is installed."""
    script = (
        "import importlib.metadata as m\n"
        "for d in m.distributions(): print((d.metadata['Name'] or '').lower() + '=' + d.version)"
    )
    told = run([str(programs / "python"), "-c", script], "the environment's packages could not be listed")
    return dict(line.split("=", 1) for line in told.splitlines() if "=" in line)


def discard(folder: Path) -> None:
    """Remove a folder and what is in it."""
    shutil.rmtree(folder, ignore_errors=True)


def run(command: Sequence[str], failed: str) -> str:
    """Return a command's output; raise Failed with its last words if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = [line for line in (done.stderr + done.stdout).splitlines() if line.strip() and "WARNING" not in line]
        raise Failed(f"{failed}: {' | '.join(words[-3:])[-600:]}")
    return done.stdout
