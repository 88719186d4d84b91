import subprocess
import sys

import pytest

from argosy.core.clock import FakeClock
from argosy.core.config import load_settings
from argosy.registry.backends.memory import MemoryStore
from argosy.registry.registry import Registry, open_registry
from argosy.security.keys import KeyRing
from logs import bad_entry

HEAVY = [
    "obstore",
    "numpy",
    "rich",
    "structlog",
    "torch",
    "onnxruntime",
    "cryptography",
    "tomllib",
    "importlib.metadata",
]


def test_the_registry_starts_without_anything_heavy():
    code = f"import sys, argosy.registry.registry; print([m for m in {HEAVY} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.strip() == "[]"


@pytest.mark.capability("V1")
def test_a_disk_registry_never_imports_the_cloud_client(tmp_path):
    code = (
        "import sys; from argosy.core.clock import SystemClock; from argosy.core.config import load_settings\n"
        "from argosy.registry.registry import open_registry\n"
        "registry = open_registry(load_settings({'ARGOSY_HOME': sys.argv[1]}), SystemClock())\n"
        "registry.log.append('x', '', {}); registry.blobs.put(b'x')\n"
        "print('obstore' in sys.modules, 'numpy' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True, timeout=60
    )
    assert answer.stdout.split() == ["False", "False"]


def test_opening_makes_nothing_before_it_is_used(tmp_path):
    settings = load_settings({"ARGOSY_HOME": str(tmp_path / "home")})
    registry = open_registry(settings, FakeClock())
    assert not (tmp_path / "home").exists()
    registry.log.append("x", "", {})
    assert registry.log.verify().entries == 2
    assert open_registry(settings, FakeClock()).log.refresh() == 2


def test_index_and_cache_can_be_deleted_but_what_was_seen_is_kept_with_the_keys(tmp_path):
    import shutil

    settings = load_settings({"ARGOSY_HOME": str(tmp_path)})
    registry = open_registry(settings, FakeClock())
    digest = registry.blobs.put(b"x")
    registry.log.append("x", "", {})
    registry.blobs.fetch(digest)
    registry.log.close()
    shutil.rmtree(tmp_path / "index")
    shutil.rmtree(tmp_path / "cache")
    again = open_registry(settings, FakeClock())
    assert again.log.refresh() == 2
    assert again.blobs.fetch(digest).read_bytes() == b"x"
    (tmp_path / "store" / "log" / f"{2:020d}.json").unlink()
    shutil.rmtree(tmp_path / "index")
    assert bad_entry(open_registry(settings, FakeClock()).log.refresh) == 2


def test_store_and_keys_can_be_given(tmp_path):
    store, keys = MemoryStore(), KeyRing.in_memory()
    registry = Registry(load_settings({"ARGOSY_HOME": str(tmp_path)}), clock=FakeClock(), store=store, keys=keys)
    registry.log.append("x", "", {})
    assert store.exists("log/00000000000000000002.json")
    assert registry.log.admitted() == [keys.key_id]
