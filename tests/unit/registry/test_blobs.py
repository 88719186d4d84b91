import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from argosy.core.digest import sha256
from argosy.core.errors import IntegrityError, InvalidInput, NotFound
from argosy.registry.backends.memory import MemoryStore
from argosy.registry.blobs import Blobs


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def blobs(store, tmp_path):
    return Blobs(store, tmp_path / "cache")


@pytest.mark.capability("V1")
def test_a_blob_is_named_by_its_bytes_and_kept_once(blobs, store, tmp_path):
    (tmp_path / "file").write_bytes(b"weights")
    digest = blobs.put(b"weights")
    assert digest == sha256(b"weights") == blobs.put(tmp_path / "file")
    assert blobs.get(digest) == b"weights"
    assert blobs.exists(digest)
    assert len(list(store.list(""))) == 1


def test_a_store_that_fails_in_the_middle_of_a_file_is_what_is_told(tmp_path):
    """Its traceback still holds a piece of the mapped file."""

    class Full(MemoryStore):
        def create(self, key, data):
            piece = memoryview(data)[:4]
            raise OSError(28, "No space left on device", bytes(piece))

    (tmp_path / "file").write_bytes(b"weights")
    with pytest.raises(OSError, match="No space left"):
        Blobs(Full(), tmp_path / "cache").put(tmp_path / "file")


@pytest.mark.capability("V4")
@given(st.binary(min_size=1, max_size=200), st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_flipped_bit_is_found(tmp_path, content, data):
    store = MemoryStore()
    blobs = Blobs(store, tmp_path / "cache" / str(len(content)))
    digest = blobs.put(content)
    (key,) = store.list("")
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << (bit % 8)
    store.put(key, bytes(flipped))
    with pytest.raises(IntegrityError) as caught:
        blobs.get(digest)
    assert caught.value.code == "blob_corrupt"


def test_a_damaged_blob_is_healed_by_putting_it_again(blobs, store):
    digest = blobs.put(b"weights")
    (key,) = store.list("")
    store.put(key, b"weight$")
    blobs.put(b"weights")
    assert blobs.get(digest) == b"weights"


def test_a_missing_blob_says_what_to_do(blobs):
    with pytest.raises(NotFound) as caught:
        blobs.get(sha256(b"never"))
    assert caught.value.code == "blob_missing"
    assert "run the stage" in caught.value.hint


def test_fetch_gives_a_verified_file_and_mends_a_damaged_copy(blobs):
    digest = blobs.put(b"weights")
    path = blobs.fetch(digest)
    assert path.read_bytes() == b"weights"
    path.chmod(0o644)
    path.write_bytes(b"weight$")
    assert blobs.fetch(digest).read_bytes() == b"weights"


def test_fetch_refuses_a_blob_that_is_damaged_in_the_store(blobs, store, tmp_path):
    digest = blobs.put(b"weights")
    (key,) = store.list("")
    store.put(key, b"weight$")
    with pytest.raises(IntegrityError):
        blobs.fetch(digest)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:../../etc/passwd", "md5:" + "0" * 64, "sha256:" + "A" * 64])
def test_a_digest_of_another_form_reaches_no_store(blobs, digest):
    for action in (blobs.get, blobs.fetch, blobs.exists):
        with pytest.raises(InvalidInput):
            action(digest)


def test_a_file_that_cannot_be_read_is_said(blobs, tmp_path):
    with pytest.raises(InvalidInput, match="can't be read"):
        blobs.put(tmp_path / "nothing")
