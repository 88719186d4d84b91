"""A real browser: Debian's Chromium, driven by playwright."""

import contextlib
import os
import shutil
import subprocess

import pytest

from debian import apt


def executable():
    """Return the path of Chromium; where it is missing root installs it, and others skip, but not in CI."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found and os.geteuid() == 0 and shutil.which("apt-get"):
        with apt():
            subprocess.run(["apt-get", "update", "-qq"], check=False, timeout=300)
            subprocess.run(["apt-get", "install", "-y", "-qq", "chromium"], check=False, timeout=600)
        found = shutil.which("chromium")
    if not found:
        reason = "there is no Chromium here; install it with: apt-get install chromium"
        assert not os.environ.get("CI"), reason
        pytest.skip(reason)
    return found


@contextlib.contextmanager
def browser():
    """Start Chromium and yield it."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = executable()
    with playwright.sync_playwright() as driver:
        # As root, as in a container, Chromium's own sandbox does not start.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        started = driver.chromium.launch(executable_path=path, args=[*arguments, "--disable-dev-shm-usage"])
        try:
            yield started
        finally:
            started.close()
