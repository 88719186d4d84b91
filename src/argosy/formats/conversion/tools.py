"""Environments of other frameworks' tools, each apart from the user's own: made by `argosy tools install NAME`.

A tool is taken from the current environment when that has what it needs in versions it accepts.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata, util
from pathlib import Path

import msgspec
from packaging.requirements import Requirement

from argosy.core.config import child_environment, load_settings, private_folder
from argosy.core.digest import canonical, digest_of
from argosy.core.errors import Conflict, NotFound, PluginError, Unavailable
from argosy.core.files import FileLock, write_atomic

_DONE = "installed.json"
_INSTALL_S = 3600


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """What a converter needs, and what is installed for it."""

    name: str
    requires: tuple[str, ...]
    """Pinned, as pip takes them; the packages whose versions are tried with Argosy's converters."""
    accepts: tuple[str, ...] = ()
    """What the current environment must have to be used instead; empty: it is never used."""
    modules: tuple[str, ...] = ()
    """Modules that must be there for it."""
    about: str = ""


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """Where a tool can be run."""

    name: str
    where: str
    """`environment`: the current one; `own`: one below Argosy's home; empty: nowhere."""
    python: str = ""
    requires: tuple[str, ...] = ()
    about: str = ""


TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        Tool(
            name="tensorflow",
            requires=("tensorflow-cpu==2.21.0", "keras==3.15.1", "tf2onnx==1.17.0", "onnx==1.23.2", "numpy==2.4.6"),
            accepts=("tensorflow>=2.18", "tf2onnx>=1.16", "onnx>=1.17"),
            modules=("tensorflow", "tf2onnx", "onnx"),
            about="reads SavedModel and Keras files, writes ONNX; 1.6 GB",
        ),
        Tool(
            name="litert",
            requires=("onnx2tf==1.29.24",),
            about="writes .tflite files and runs them; 2.3 GB",
        ),
        Tool(
            name="tvm",
            requires=("apache-tvm==0.27.0.post1", "onnx==1.23.2", "numpy==2.4.6"),
            accepts=("apache-tvm>=0.20", "onnx>=1.17"),
            modules=("tvm", "onnx"),
            about="compiles for this machine's processor; needs a C++ compiler to link; 0.5 GB",
        ),
        Tool(
            name="mindspore",
            requires=("mindspore==2.10.0", "onnx==1.23.2", "numpy==2.4.6"),
            about="writes MindIR and runs it; 2.8 GB",
        ),
        Tool(
            name="scikit-learn",
            requires=("scikit-learn==1.9.1", "skl2onnx==1.20.0", "onnx==1.23.2", "numpy==2.4.6"),
            accepts=("scikit-learn>=1.5", "skl2onnx>=1.19", "onnx>=1.17"),
            modules=("sklearn", "skl2onnx", "onnx"),
            about="reads pickled pipelines, writes ONNX; 0.4 GB",
        ),
        Tool(
            name="openvino",
            requires=("openvino==2026.4.1", "onnx==1.23.2", "numpy==2.4.6"),
            accepts=("openvino>=2024.4",),
            modules=("openvino",),
            about="writes OpenVINO IR and runs it; 0.3 GB",
        ),
    )
}


def tool(name: str) -> Tool:
    """Return what is known of a tool; NotFound lists the names there are."""
    if name not in TOOLS:
        raise NotFound(f"there is no tool '{name}'; the tools are: {', '.join(TOOLS)}", hint="argosy tools list")
    return TOOLS[name]


def locate(name: str, home: Path | None = None) -> Installed:
    """Return where a tool can be run, the current environment before its own."""
    found = tool(name)
    if found.accepts and all(map(_is_met, found.accepts)) and all(util.find_spec(one) for one in found.modules):
        return Installed(
            name=name, where="environment", python=sys.executable, requires=found.accepts, about=found.about
        )
    place = _place(found, home)
    if (place / _DONE).is_file():
        python = str(place / "bin" / "python")
        return Installed(name=name, where="own", python=python, requires=found.requires, about=found.about)
    return Installed(name=name, where="", requires=found.requires, about=found.about)


def python_for(name: str, home: Path | None = None) -> str:
    """Return the interpreter that has a tool (this one, for none); PluginError names the command that installs it."""
    if not name:
        return sys.executable
    found = locate(name, home)
    if not found.where:
        raise PluginError(
            f"this conversion needs the tool '{name}' ({', '.join(found.requires)}), which is not installed",
            hint=f"install it, apart from your own packages, with: argosy tools install {name}",
            code="missing_tool",
            tool=name,
        )
    return found.python


def install(name: str, home: Path | None = None, *, say: Callable[[str], None] = lambda _: None) -> Installed:
    """Make a virtual environment for a tool and install its pinned packages with pip; nothing if that is done.

    An installation that was killed is not taken for one: its remains are removed, and it begins again, with what pip
    has in its cache. Raises Unavailable when pip fails, Conflict while another process installs the same tool.
    """
    found = tool(name)
    place = _place(found, home)
    private_folder(place.parent)
    lock = FileLock(place.parent / f"{place.name}.lock")
    if not lock.acquire():
        raise Conflict(f"another process installs '{name}' right now", hint="wait for it, then: argosy tools list")
    try:
        if not (place / _DONE).is_file():
            if place.exists():
                say("an installation that was interrupted is removed")
                shutil.rmtree(place)
            try:
                _fill(place, found, say)
            except BaseException:
                shutil.rmtree(place, ignore_errors=True)
                raise
    finally:
        lock.release()
    return Installed(
        name=name, where="own", python=str(place / "bin" / "python"), requires=found.requires, about=found.about
    )


def _fill(place: Path, found: Tool, say: Callable[[str], None]) -> None:
    say(f"making an environment in '{place}'")
    _run([sys.executable, "-m", "venv", str(place)], found.name)
    say(f"installing {', '.join(found.requires)}")
    pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "--only-binary", ":all:", "--prefer-binary", *found.requires], found.name)
    write_atomic(place / _DONE, canonical({"name": found.name, "requires": list(found.requires)}))


def _run(command: list[str], name: str) -> None:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_INSTALL_S,
            check=False,
            env=child_environment({"PYTHONNOUSERSITE": "1"}),
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"'{name}' was not installed within {_INSTALL_S} s", hint="run it again") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise Unavailable(
            f"'{name}' could not be installed: {' '.join(lines[-3:])[:500]}",
            hint=f"look at the network and the package index, then run again: argosy tools install {name}",
            code="tool_install_failed",
        )


def _place(found: Tool, home: Path | None) -> Path:
    # Another set of packages is another environment, so that an update never changes one that is in use.
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = digest_of([list(found.requires), version]).partition(":")[2][:12]
    return (home or load_settings().home) / "tools" / f"{found.name}-{digest}"


def _is_met(requirement: str) -> bool:
    wanted = Requirement(requirement)
    # TensorFlow for CPUs is the same library under another name.
    for name in (wanted.name, f"{wanted.name}-cpu"):
        try:
            if wanted.specifier.contains(metadata.version(name), prereleases=True):
                return True
        except metadata.PackageNotFoundError:
            continue
    return False
