"""The installed command with a home of its own, for tests that use it as a stranger would."""

import json
import os
import subprocess
import sys
from pathlib import Path

from argosy.core.config import load_settings

ARGOSY = Path(sys.executable).parent / "argosy"


class Installed:
    """The installed `argosy` command with a home of its own."""

    def __init__(self, home: Path, folder: Path) -> None:
        self.home = home
        self.folder = folder
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("ARGOSY_")} | {
            "ARGOSY_HOME": str(home)
        }

    def __call__(self, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ARGOSY, *map(str, arguments)],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def runtime(self) -> str:
        """Return the folder of this home's sockets and process records; it stands in every process's arguments."""
        return str(load_settings(self.environment).runtime)

    def ok(self, *arguments: str, timeout: float = 240) -> str:
        done = self(*arguments, timeout=timeout)
        assert done.returncode == 0, f"argosy {' '.join(map(str, arguments))}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def json(self, *arguments: str, timeout: float = 240):
        return json.loads(self.ok(*arguments, "--json", timeout=timeout))

    def refused(self, *arguments: str) -> str:
        """Run what must fail; return its one error, after checking that no stack is shown."""
        done = self(*arguments)
        assert done.returncode not in (0, 70), done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        return done.stderr
