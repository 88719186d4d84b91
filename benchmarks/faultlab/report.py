"""One line per promise: what was measured, what was promised, and whether it holds."""

import json
import os
import platform
import subprocess
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import argosy

HOLDS, MISSES, MISSING = "holds", "misses", "not there yet"


@dataclass
class Line:
    """A promise and its figure."""

    promise: str
    figure: str
    bound: str
    verdict: str
    facts: dict[str, Any] = field(default_factory=dict)


def line(promise: str, figure: str, bound: str, holds: bool | None, **facts: Any) -> Line:  # noqa: FBT001
    """Return a line; `holds` None: what it needs is not there yet."""
    verdict = MISSING if holds is None else HOLDS if holds else MISSES
    made = Line(promise, figure, bound, verdict, facts)
    print(f"  {verdict:14}{promise}: {figure}   [{bound}]", flush=True)
    return made


def machine() -> dict[str, str]:
    """Return what was measured on, and with."""
    from importlib.metadata import version

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((found.partition(":")[2].strip() for found in lines if "model name" in found), "unknown")
    folder = Path(__file__).parent
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=folder, capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "processor": processor,
        "cores": str(os.cpu_count()),
        "system": platform.platform(),
        "python": platform.python_version(),
        "argosy": argosy.__version__,
        "onnxruntime": version("onnxruntime"),
        "uvloop": version("uvloop"),
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
    }


def write(folder: Path, name: str, lines: list[Line], command: str) -> None:
    """Write one part's result, and the table of all parts that were ever measured."""
    folder.mkdir(exist_ok=True)
    path = folder / "faults.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    found[name] = {"machine": machine(), "command": command, "lines": [asdict(line) for line in lines]}
    path.write_text(json.dumps(found, indent=1, default=str) + "\n")
    (folder / "faults.md").write_text(as_markdown(found))


def as_markdown(found: dict[str, Any]) -> str:
    """Return the table of all parts."""
    text = [
        "# Faults under load",
        "",
        "Each part is measured by itself: `python benchmarks/faults.py --only PART`.",
        "",
    ]
    text += ["| part | promise | measured | promised | |", "|---|---|---|---|---|"]
    for name, part in found.items():
        for one in part["lines"]:
            cells = (name, one["promise"], one["figure"], one["bound"], one["verdict"])
            text.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    text += ["", "| part | commit | date | machine |", "|---|---|---|---|"]
    for name, part in found.items():
        on = part["machine"]
        rest = ", ".join(f"{k} {v}" for k, v in on.items() if k not in ("commit", "date"))
        text.append(f"| {name} | {on['commit']} | {on['date']} | {rest} |")
    return "\n".join(text) + "\n"
