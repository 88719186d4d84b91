"""Signed documents: DSSE v1 envelopes.

Source: https://github.com/secure-systems-lab/dsse, protocol.md and envelope.md, version 1.0.2.
"""

import base64
import binascii

import msgspec

from argosy.core.digest import canonical
from argosy.core.errors import IntegrityError
from argosy.security.keys import KeyRing


class _Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keyid: str
    sig: str


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    payload: str
    payload_type: str
    signatures: list[_Signature]


def pae(payload: bytes, payload_type: str) -> bytes:
    """Return what is signed: type and payload, each with its length, so that neither can pass for the other.

    >>> pae(b"hello world", "http://example.com/HelloWorld")
    b'DSSEv1 29 http://example.com/HelloWorld 11 hello world'
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def seal(payload: bytes, payload_type: str, keys: KeyRing) -> bytes:
    """Return an envelope that holds `payload` and its signature by the own key of `keys`."""
    signature = _Signature(keyid=keys.key_id, sig=_text(keys.sign(pae(payload, payload_type))))
    return canonical(_Envelope(payload=_text(payload), payload_type=payload_type, signatures=[signature]))


def unseal(raw: bytes, payload_type: str, keys: KeyRing) -> bytes:
    """Return the payload of an envelope of this type, if a trusted key signed it.

    Raises IntegrityError: `unknown_key`, `bad_signature`, or `bad_envelope` for bytes that `seal` can't have written.
    """
    try:
        envelope = msgspec.json.decode(raw, type=_Envelope)
        payload = from_base64(envelope.payload)
        signatures = [(s.keyid, from_base64(s.sig)) for s in envelope.signatures]
    except (msgspec.DecodeError, binascii.Error, ValueError) as error:
        raise IntegrityError("this is not a signed document: it can't be decoded", code="bad_envelope") from error
    # One document has one encoding: whoever re-spells it makes something that was never signed.
    if canonical(envelope) != raw or not signatures:
        raise IntegrityError("this signed document was re-encoded after it was signed", code="bad_envelope")
    if envelope.payload_type != payload_type:
        raise IntegrityError(
            f"a signed document of type '{payload_type}' was expected, found '{envelope.payload_type[:80]}'",
            code="bad_envelope",
        )
    for key_id, signature in signatures:
        keys.verify(key_id, pae(payload, payload_type), signature)
    return payload


def from_base64(text: str) -> bytes:
    """Return what base64 text holds; ValueError for any other text than the one that is written for these bytes.

    The last letter may have bits that no byte uses, and Python's decoder does not look at them (RFC 4648, section 3.5).
    """
    data = base64.b64decode(text, validate=True)
    if _text(data) != text:
        raise ValueError("base64 with bits that mean nothing")
    return data


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
