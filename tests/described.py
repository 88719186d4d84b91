"""Running schemathesis as its users do, from a shell."""

import subprocess
import sys
from pathlib import Path


def run_schemathesis(folder, description, *options, examples, settings="", seconds=1500):
    """Check a server against a description; return the output after checking that nothing was found."""
    (folder / "schemathesis.toml").write_text(settings)
    command = [
        Path(sys.executable).parent / "schemathesis", "run", description, "--mode", "all",
        "--phases", "examples,coverage,fuzzing", "--max-examples", str(examples), "--seed", "7", "--no-color",
        "--suppress-health-check", "all", *options,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=seconds)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
    assert "Errored" not in done.stdout
    return done.stdout
