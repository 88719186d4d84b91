"""Every ObjectStore keeps the same promises."""

import http.client
import socket
import subprocess
import sys
import threading
import time

import pytest

from argosy.core.errors import Conflict, InvalidInput, NotFound
from argosy.registry.backends.cloud import CloudStore
from argosy.registry.backends.disk import DiskStore
from argosy.registry.backends.memory import MemoryStore
from argosy.registry.store import open_store

KINDS = ["disk", "memory", "obstore-memory", "obstore-disk", "s3"]
pytestmark = pytest.mark.capability("V1")


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory):
    """The address of a real server that speaks S3, with one bucket."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = (tmp_path_factory.mktemp("s3") / "log").open("wb")
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        deadline = time.monotonic() + 60
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            try:
                connection.request("PUT", "/argosy")
                assert connection.getresponse().status == 200
                break
            except OSError:
                assert server.poll() is None, "the S3 server has ended"
                assert time.monotonic() < deadline, "the S3 server does not answer"
            finally:
                connection.close()
        yield f"http://127.0.0.1:{port}"
        server.terminate()


@pytest.fixture(params=KINDS)
def store(request, tmp_path, monkeypatch):
    from obstore import store as clients

    if request.param == "s3":
        settings = {"ENDPOINT_URL": request.getfixturevalue("s3_server"), "ALLOW_HTTP": "true", "REGION": "us-east-1"}
        for name, value in (settings | {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}).items():
            monkeypatch.setenv(f"AWS_{name}", value)
        return open_store(f"s3://argosy/{tmp_path.name}")

    if request.param == "disk":
        return DiskStore(tmp_path / "store")
    if request.param == "memory":
        return MemoryStore()
    if request.param == "obstore-memory":
        return CloudStore(clients.MemoryStore())
    return CloudStore(clients.LocalStore(prefix=tmp_path / "store", mkdir=True))


def test_what_was_put_is_got(store):
    store.put("a/b", b"\x00one\xff")
    assert store.get("a/b") == b"\x00one\xff"
    assert type(store.get("a/b")) is bytes
    assert store.exists("a/b")


def test_empty_and_large_objects_are_kept(store):
    store.put("empty", b"")
    store.create("large", b"x" * 6_000_000)
    assert store.get("empty") == b""
    assert store.get("large") == b"x" * 6_000_000


def test_pieces_are_what_was_put_and_none_is_large(store):
    content = bytes(range(256)) * 20_000
    store.create("a/large", memoryview(content))
    found = list(store.pieces("a/large"))
    assert b"".join(found) == content
    store.put("a/none", b"")
    assert b"".join(store.pieces("a/none")) == b""
    with pytest.raises(NotFound):
        next(iter(store.pieces("a/missing")))


def test_put_replaces(store):
    store.put("a", b"1")
    store.put("a", b"2")
    assert store.get("a") == b"2"


def test_create_refuses_to_replace_and_leaves_what_is_there(store):
    store.create("a/b", b"1")
    with pytest.raises(Conflict):
        store.create("a/b", b"2")
    assert store.get("a/b") == b"1"


def test_a_missing_object_is_not_found(store):
    for key in ("nothing", "no/thing"):
        assert not store.exists(key)
        with pytest.raises(NotFound):
            store.get(key)
    store.put("folder/file", b"")
    assert not store.exists("folder")
    with pytest.raises(NotFound):
        store.get("folder")


def test_delete_removes_and_is_harmless_twice(store):
    store.put("a", b"1")
    store.delete("a")
    store.delete("a")
    assert not store.exists("a")
    store.create("a", b"2")


def test_list_gives_the_keys_of_a_folder_sorted(store):
    keys = ["p/2", "p/1", "p/10", "p/q/3", "p/q.x", "p/q-x", "p-/1", "pp/1", "o"]
    for key in keys:
        store.put(key, b"x")
    assert list(store.list("p/")) == sorted(key for key in keys if key.startswith("p/"))
    assert list(store.list("")) == sorted(keys)
    assert list(store.list("nothing/")) == []


def test_list_goes_on_after_any_key(store):
    keys = sorted(["a/1", "a/2", "a/b/1", "a/b/2", "a/c", "b/1"])
    for key in keys:
        store.put(key, b"x")
    for after in [*keys, "a/1x", "a/b", "a/b/", "a/zz", "", "zzz"]:
        assert list(store.list("a/", after)) == [key for key in keys if key.startswith("a/") and key > after]


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "../a", "a/../b", "a/./b", "a\x00b", "a b", "a\\b", "ü", ".x", "a.tmp"]
)
def test_a_key_that_leaves_the_store_or_is_odd_is_refused(store, key):
    for action in (store.get, store.exists, store.delete, lambda k: store.put(k, b""), lambda k: store.create(k, b"")):
        with pytest.raises(InvalidInput):
            action(key)


@pytest.mark.parametrize("prefix", ["a", "/", "../", "a//"])
def test_a_prefix_that_is_no_folder_is_refused(store, prefix):
    with pytest.raises(InvalidInput):
        list(store.list(prefix))


def test_of_many_creators_exactly_one_succeeds(store):
    barrier = threading.Barrier(8)
    won: list[int] = []

    def create(number):
        barrier.wait()
        for turn in range(10):
            try:
                store.create(f"race/{turn}", b"%d" % number)
            except Conflict:
                continue
            won.append(turn * 100 + number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found // 100 for found in won) == list(range(10))
    assert all(store.get(f"race/{found // 100}") == b"%d" % (found % 100) for found in won)
