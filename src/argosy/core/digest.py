"""Content addresses and the one canonical encoding that is hashed and signed."""

import hashlib
import re
from pathlib import Path
from typing import Any

import msgspec

from argosy.core.errors import InvalidInput

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def sha256(data: bytes | bytearray | memoryview) -> str:
    """Return the digest of `data` as `sha256:<64 hex digits>`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the digest of a file's bytes, read in pieces."""
    with path.open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


def check_digest(text: str) -> str:
    """Return `text` if it has the form of a digest; raise InvalidInput otherwise."""
    if not _DIGEST.fullmatch(text):
        raise InvalidInput(f"{text!r} is not a digest of the form 'sha256:<64 hex digits>'")
    return text


def canonical(value: Any) -> bytes:
    """Return the one JSON text of `value`: sorted keys, no white space, UTF-8.

    Equal values give equal bytes, so digests and signatures are taken over this form.
    """
    return msgspec.json.encode(value, order="sorted")


def digest_of(value: Any) -> str:
    """Return the digest of the canonical form of a plain value or msgspec struct."""
    return sha256(canonical(value))


def digest_tree(folder: Path, pattern: str = "*.py") -> str:
    """Return one digest over the names and bytes of the files in `folder` that match, at any depth."""
    names = sorted(p for p in folder.rglob(pattern) if p.is_file() and "__pycache__" not in p.parts)
    return digest_of([[str(p.relative_to(folder)), sha256_file(p)] for p in names])
