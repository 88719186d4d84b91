"""The first code of a conversion's child process, once it is confined: runs calls one after another.

`python child.py <work folder>`: reads `calls.json` there and leaves `result.json` behind. Standard library only.
"""

import importlib.util
import json
import os
import socket
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).parent


class Refused(Exception):
    """A model that can't be converted: a message for the user, what to do, and a stable code."""

    def __init__(self, message: str, *, hint: str = "", code: str = "", **context: Any) -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code or "conversion_failed"
        self.context = context


def main(folder: Path) -> int:
    """Make the calls and write what they returned, or the error that ended them."""
    asked = json.loads((folder / "calls.json").read_text())
    sys.modules["argosy_child"] = sys.modules["__main__"]
    if not asked["offline"]:
        _block_sockets()
    warnings.simplefilter("ignore")
    done: list[Any] = []
    error = None
    try:
        for call in asked["calls"]:
            # What the original takes is known from the first call; the next ones need it.
            known = {"signature": done[0] if done else {}, "done": list(done)}
            done.append(load(call["job"])({**known, **call["config"]}))
    except BaseException as failed:  # noqa: BLE001 - the outermost frame: whatever it was is recorded
        traceback.print_exc()
        error = _told(failed)
    staged = folder / "result.json.tmp"
    staged.write_text(json.dumps({"done": done, "error": error, "at": len(done)}, default=str))
    staged.replace(folder / "result.json")
    return 1 if error else 0


def load(where: str) -> Any:
    """Return the function `file:name`; a file without a folder is one of those beside this one."""
    file, _, name = where.rpartition(":")
    path = Path(file) if os.sep in file else HERE / f"{file}.py"
    known = f"argosy_job_{path.stem}"
    if known not in sys.modules:
        spec = importlib.util.spec_from_file_location(known, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[known] = module
        spec.loader.exec_module(module)
    return getattr(sys.modules[known], name)


def job(name: str) -> Any:
    """Return another module of this folder."""
    load(f"{name}:__name__")
    return sys.modules[f"argosy_job_{name}"]


def _told(error: BaseException) -> dict[str, Any]:
    if isinstance(error, Refused):
        found = {"message": str(error), "hint": error.hint, "code": error.code, "context": error.context}
        return {"kind": "invalid_input", **found}
    errors = sys.modules.get("argosy.core.errors")
    if errors is not None and isinstance(error, errors.ArgosyError):
        return dict(errors.to_dict(error))
    if isinstance(error, MemoryError):
        return {
            "kind": "invalid_input",
            "code": "conversion_memory",
            "message": "the model asks for more memory than a conversion may take",
            "hint": "nothing was written; convert it on a machine with more memory if the model is sound",
        }
    if isinstance(error, ModuleNotFoundError):
        message = f"this needs '{error.name}', which is not installed where the converter runs"
        return {"kind": "plugin", "code": "missing_extra", "message": message, "hint": "install it"}
    if type(error).__name__ == "WrongSamples":
        hint = "give samples that fit with --samples: numpy.savez('samples.npz', x=rows)"
        return {"kind": "invalid_input", "code": "samples_wrong", "message": str(error), "hint": hint}
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = f"{type(error).__name__}: {' '.join(lines[:3])[:600]}"
    return {"kind": "invalid_input", "code": "conversion_failed", "message": said, "hint": ""}


def _block_sockets() -> None:
    """Refuse connections where the kernel did not cut the network: the second line, not the first."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise PermissionError("a conversion has no network")

    blocked: Any = socket
    blocked.socket.connect = refuse
    blocked.socket.connect_ex = refuse
    blocked.create_connection = refuse
    blocked.getaddrinfo = refuse


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
