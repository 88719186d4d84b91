import os

import pytest

from argosy.core.errors import Conflict, InvalidInput, NotFound, Unavailable
from argosy.registry.backends.cloud import CloudStore
from argosy.registry.backends.disk import DiskStore
from argosy.registry.store import STORES, open_store


def test_a_url_says_which_store(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "somebody")
    disk = open_store((tmp_path / "with space").as_uri())
    assert isinstance(disk, DiskStore)
    assert disk.root == tmp_path / "with space"
    for url in ("s3://bucket/folder", "az://container/folder", "gs://bucket/folder"):
        assert isinstance(open_store(url), CloudStore)
    assert not open_store("memory://").exists("a")
    assert set(STORES.names()) >= {"file", "memory", "s3", "az", "gs"}


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("/just/a/path", InvalidInput),
        ("file://relative", InvalidInput),
        ("ftp://host/x", NotFound),
        ("s3://key:secret@bucket", InvalidInput),
        ("s3://bucket?secret=1", InvalidInput),
    ],
)
def test_a_wrong_url_is_one_clear_error(url, error):
    with pytest.raises(error):
        open_store(url)


def test_a_store_that_refuses_the_connection_is_unavailable_and_says_no_headers(monkeypatch):
    from obstore.store import S3Store

    client = S3Store(
        "bucket",
        endpoint="http://127.0.0.1:1",
        region="us-east-1",
        access_key_id="id",
        secret_access_key="secret-word",
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    with pytest.raises(Unavailable) as caught:
        CloudStore(client).get("a")
    assert "secret-word" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_links_in_a_disk_store_are_refused(tmp_path):
    store = DiskStore(tmp_path / "store")
    store.put("a/b", b"1")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "store" / "a" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "store" / "out").symlink_to(tmp_path)
    for key in ("a/link", "out/secret"):
        for action in (store.get, store.exists, lambda k: store.put(k, b""), lambda k: store.create(k, b"")):
            with pytest.raises(InvalidInput):
                action(key)
    assert list(store.list("")) == ["a/b"]
    assert (tmp_path / "secret").read_bytes() == b"secret"


def test_what_a_killed_writer_left_is_not_listed(tmp_path):
    store = DiskStore(tmp_path)
    store.put("a/b", b"1")
    (tmp_path / "a" / "c.0123456789ab.tmp").write_bytes(b"half")
    assert list(store.list("")) == ["a/b"]


@pytest.mark.parametrize("failing", ["write", "fsync"])
def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, failing):
    store = DiskStore(tmp_path)
    store.put("a/old", b"old")

    def full(*_):
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched:
        patched.setattr(os, failing, full)
        for action in (store.put, store.create):
            with pytest.raises(Unavailable) as caught:
                action("a/new", b"new")
            assert caught.value.code == "disk_full"
        with pytest.raises(Unavailable):
            store.put("a/old", b"new")
    assert store.get("a/old") == b"old"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["old"]


def test_the_loser_of_a_race_writes_no_file_at_all(tmp_path, monkeypatch):
    store = DiskStore(tmp_path)
    store.create("a", b"1")
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("wrote"))
    with pytest.raises(Conflict):
        store.create("a", b"2")
