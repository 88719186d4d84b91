import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from argosy.core.errors import IntegrityError
from argosy.security.envelope import pae, seal, unseal
from argosy.security.keys import KeyRing

KEYS = KeyRing.in_memory(bytes(32))
TYPE = "application/vnd.argosy.test+json"


def test_what_is_signed_follows_the_standard():
    # The example of DSSE's protocol.md.
    assert pae(b"hello world", "http://example.com/HelloWorld") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_an_envelope_is_plain_dsse_that_other_tools_read():
    found = json.loads(seal(b"{}", TYPE, KEYS))
    assert found["payloadType"] == TYPE
    assert base64.b64decode(found["payload"]) == b"{}"
    assert [s["keyid"] for s in found["signatures"]] == [KEYS.key_id]
    KEYS.verify(KEYS.key_id, pae(b"{}", TYPE), base64.b64decode(found["signatures"][0]["sig"]))


@given(st.binary(max_size=300))
@settings(max_examples=30, deadline=None)
def test_what_was_sealed_is_unsealed(payload):
    assert unseal(seal(payload, TYPE, KEYS), TYPE, KEYS) == payload


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_changed_byte_is_refused(data):
    raw = bytearray(seal(b'{"a": 1, "b": [2, 3]}', TYPE, KEYS))
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] = data.draw(st.integers(0, 255).filter(lambda value: value != raw[position]))
    with pytest.raises(IntegrityError):
        unseal(bytes(raw), TYPE, KEYS)


def _without_signatures(raw):
    found = json.loads(raw)
    return json.dumps({**found, "signatures": []}, separators=(",", ":"), sort_keys=True).encode()


def _with_another_spelling_of_the_signature(raw):
    """64 bytes leave four bits of the last letter in base64 unused; with others set it decodes to the same."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    text = json.loads(raw)["signatures"][0]["sig"]
    changed = text[:85] + letters[letters.index(text[85]) ^ 1] + "=="
    assert base64.b64decode(changed, validate=True) == base64.b64decode(text)
    return raw.replace(text.encode(), changed.encode())


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: b" " + raw,
        lambda raw: raw + b"\n",
        lambda raw: json.dumps(json.loads(raw)).encode(),
        lambda raw: raw.replace(b'"signatures":[', b'"signatures":[],"signatures":['),
        _without_signatures,
        _with_another_spelling_of_the_signature,
    ],
)
def test_another_spelling_of_the_same_envelope_is_refused(change):
    with pytest.raises(IntegrityError) as caught:
        unseal(change(seal(b"{}", TYPE, KEYS)), TYPE, KEYS)
    assert caught.value.code == "bad_envelope"


def test_a_document_of_another_type_is_refused_even_if_well_signed():
    with pytest.raises(IntegrityError, match="was expected"):
        unseal(seal(b"{}", "text/plain", KEYS), TYPE, KEYS)


def test_a_document_signed_by_a_stranger_is_refused():
    with pytest.raises(IntegrityError) as caught:
        unseal(seal(b"{}", TYPE, KeyRing.in_memory()), TYPE, KEYS)
    assert caught.value.code == "unknown_key"
