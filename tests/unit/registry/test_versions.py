import math

import msgspec
import pytest

from argosy.core.digest import canonical, sha256
from argosy.core.errors import Conflict, IntegrityError, InvalidInput, NotFound
from argosy.core.tensors import Signature, TensorSpec
from argosy.registry.backends.memory import MemoryStore
from argosy.registry.blobs import Blobs
from argosy.registry.versions import Evaluation, FileRef, GateResult, Lineage, Manifest, Versions, load_version
from argosy.security.envelope import seal, unseal
from argosy.security.keys import KeyRing
from logs import SEED, make_log

TYPE = "application/vnd.argosy.version.v1+json"


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def blobs(store, tmp_path):
    return Blobs(store, tmp_path / "cache")


@pytest.fixture
def keys():
    return KeyRing.in_memory(SEED)


@pytest.fixture
def versions(store, blobs, keys, tmp_path):
    return Versions(make_log(store, tmp_path, keys=keys), blobs, keys)


def manifest(blobs, name="digits", content=b"model", **changes):
    files = {"model.onnx": FileRef(digest=blobs.put(content), size_bytes=len(content))}
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
    gate = GateResult(name="accuracy", bound=">= 0.9", value=0.95, passed=True)
    made = Manifest(
        name=name,
        created=1.0,
        role="original",
        task="classification",
        signature=Signature(inputs=(spec,), outputs=(spec,)),
        prepare=[{"step": "scale", "factor": 0.5}],
        files=files,
        evaluation=Evaluation(kind="test-set", passed=True, metrics={"accuracy": 0.95}, gates=[gate], samples=100),
        lineage=Lineage(run="r1", stages={"train": "sha256:x"}, recipe={"passes": ["slim"]}),
    )
    return msgspec.structs.replace(made, **changes)


@pytest.mark.capability("V2")
def test_versions_are_numbered_by_name_and_found_by_every_kind_of_reference(versions, blobs):
    one = versions.publish(manifest(blobs))
    two = versions.publish(manifest(blobs, content=b"better"))
    other = versions.publish(manifest(blobs, name="cats"))
    assert (str(one), str(two), str(other)) == ("digits:1", "digits:2", "cats:1")
    assert versions.get("digits:1") == one
    assert versions.get("digits") == two
    assert versions.get(two.digest) == two
    assert versions.get(two.digest[:17]) == two
    assert versions.get(two.digest.removeprefix("sha256:")[:8]) == two
    assert versions.list("digits") == [one, two]
    assert versions.list() == [one, two, other]
    assert versions.names() == ["cats", "digits"]
    assert one.manifest.evaluation.gates[0].value == 0.95
    assert one.manifest == manifest(blobs)


def test_a_manifest_published_twice_is_one_version(versions, blobs):
    assert versions.publish(manifest(blobs)) == versions.publish(manifest(blobs))
    assert len(versions.list()) == 1


def test_publishers_in_a_race_get_different_numbers(versions, store, blobs, keys, tmp_path):
    twin = Versions(make_log(store, tmp_path / "twin", keys=keys), blobs, keys)
    versions.publish(manifest(blobs))
    assert str(twin.publish(manifest(blobs, content=b"2"))) == "digits:2"
    assert str(versions.publish(manifest(blobs, content=b"3"))) == "digits:3"
    assert [v.number for v in twin.list("digits")] == [1, 2, 3]


@pytest.mark.parametrize(
    ("ref", "error", "says"),
    [
        ("digits:9", NotFound, "model 'digits' has no version 9; newest is 1"),
        ("digit", NotFound, "known are: digits"),
        ("digit:1", NotFound, "known are: digits"),
        ("digits@prod", NotFound, "no alias 'prod'"),
        ("nobody@prod", NotFound, "known are: digits"),
        ("sha256:0123456789", NotFound, "starts with 0123456789"),
        ("0123456789ab", NotFound, "starts with 0123456789ab"),
        ("sha256:01", InvalidInput, "at least 8"),
        ("digits:new", InvalidInput, "is not a version"),
        ("digits:-1", InvalidInput, "is not a version"),
        ("", NotFound, "no model ''"),
    ],
)
def test_a_reference_to_nothing_says_what_there_is(versions, blobs, ref, error, says):
    versions.publish(manifest(blobs))
    with pytest.raises(error, match=says):
        versions.get(ref)


def test_a_start_shared_by_two_digests_is_refused(versions, blobs, monkeypatch):
    versions.publish(manifest(blobs))
    versions.publish(manifest(blobs, content=b"2"))
    monkeypatch.setattr("argosy.registry.versions._DIGEST_PREFIX", __import__("re").compile("[0-9a-f]*"))
    with pytest.raises(Conflict, match="digits:1, digits:2"):
        versions.get("sha256:")


@pytest.mark.capability("V2")
def test_an_alias_moves_and_its_history_stays(versions, blobs):
    for content in (b"1", b"2"):
        versions.publish(manifest(blobs, content=content))
    versions.move_alias("digits", "prod", 1, "first release")
    versions.move_alias("digits", "prod", 2, "better")
    versions.move_alias("digits", "test", 1)
    assert versions.alias("digits", "prod").number == versions.get("digits@prod").number == 2
    assert versions.aliases("digits") == {"prod": 2, "test": 1}
    history = versions.history("digits")
    assert [entry.kind for entry in history] == ["version.published"] * 2 + ["alias.moved"] * 3
    assert [(e.data["former"], e.data["number"], e.data["reason"], e.actor) for e in history[2:4]] == [
        (0, 1, "first release", "ada"),
        (1, 2, "better", "ada"),
    ]
    assert versions.history("nobody") == []
    with pytest.raises(NotFound):
        versions.move_alias("digits", "prod", 3)
    with pytest.raises(InvalidInput):
        versions.move_alias("digits", "a:b", 1)


@pytest.mark.capability("V4")
def test_load_verifies_every_byte_of_manifest_and_files(versions, blobs, store, keys):
    version = versions.publish(manifest(blobs))
    assert versions.load("digits:1") == version
    assert load_version(blobs, keys, version.digest).manifest == version.manifest
    assert versions.open_file(version) == b"model"
    assert versions.file_path(version, "model.onnx").read_bytes() == b"model"
    for key in list(store.list("blobs/")):
        whole = store.get(key)
        for position in range(0, len(whole), max(1, len(whole) // 20)):
            store.put(key, whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
            for load in (lambda: versions.load("digits:1"), lambda: load_version(blobs, keys, version.digest)):
                with pytest.raises(IntegrityError):
                    load()
        store.put(key, whole)
    assert versions.load("digits:1") == version


@pytest.mark.capability("V4")
def test_a_version_signed_by_a_stranger_is_refused(versions, blobs, keys):
    forged = blobs.put(seal(canonical(manifest(blobs)), TYPE, KeyRing.in_memory()))
    with pytest.raises(IntegrityError) as caught:
        load_version(blobs, keys, forged)
    assert caught.value.code == "unknown_key"


def test_a_version_of_an_admitted_writer_loads_everywhere(versions, store, blobs, keys, tmp_path):
    versions.publish(manifest(blobs))
    second = KeyRing.in_memory()
    versions._log.trust(second.public_key)
    theirs = Versions(make_log(store, tmp_path / "second", keys=second), blobs, second)
    published = theirs.publish(manifest(blobs, content=b"theirs"))
    assert theirs.load("digits:1").number == 1
    assert versions.load("digits:2") == published
    assert load_version(blobs, keys, published.digest).manifest == published.manifest


def test_a_lost_file_is_named(versions, blobs, store):
    version = versions.publish(manifest(blobs))
    name = version.manifest.files["model.onnx"].digest.removeprefix("sha256:")
    store.delete(f"blobs/sha256/{name[:2]}/{name}")
    with pytest.raises(NotFound) as caught:
        versions.load("digits")
    assert caught.value.code == "blob_missing"


def test_a_size_that_does_not_fit_is_refused(versions, blobs, keys):
    ref = FileRef(digest=blobs.put(b"model"), size_bytes=4)
    version = versions.publish(manifest(blobs, files={"model.onnx": ref}))
    with pytest.raises(IntegrityError, match="its manifest says 4"):
        load_version(blobs, keys, version.digest)


def test_a_manifest_of_a_newer_argosy_is_refused_and_says_so(blobs, keys):
    plain = {**msgspec.to_builtins(manifest(blobs)), "new_field": 1}
    digest = blobs.put(seal(canonical(plain), TYPE, keys))
    assert unseal(blobs.get(digest), TYPE, keys)
    with pytest.raises(IntegrityError, match="new_field") as caught:
        load_version(blobs, keys, digest)
    assert "newer" in caught.value.hint


def test_what_cannot_be_published_leaves_no_entry(versions, blobs):
    bad = Evaluation(kind="test-set", passed=True, metrics={"loss": math.nan})
    missing = FileRef(digest=sha256(b"never put"), size_bytes=1)
    present = FileRef(digest=blobs.put(b"x"), size_bytes=1)
    for changes, error in [
        ({"name": "a:b"}, InvalidInput),
        ({"name": "../x"}, InvalidInput),
        ({"name": "sha256"}, InvalidInput),
        ({"evaluation": bad}, InvalidInput),
        ({"files": {}}, InvalidInput),
        ({"files": {"model.onnx": missing}}, NotFound),
        ({"files": {"model.onnx": present, "../up": present}}, InvalidInput),
        ({"prepare": [{"x": object()}]}, InvalidInput),
        ({"role": "other"}, InvalidInput),
    ]:
        with pytest.raises(error):
            versions.publish(manifest(blobs, **changes))
    assert versions.list() == []


def test_a_file_a_version_does_not_have_is_said(versions, blobs):
    version = versions.publish(manifest(blobs))
    with pytest.raises(NotFound, match=r"it has model\.onnx"):
        versions.open_file(version, "weights.bin")
