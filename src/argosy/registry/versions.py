"""Model versions: numbered, immutable, signed; and the movable names that point to them."""

import contextlib
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from argosy.core.digest import canonical
from argosy.core.errors import Conflict, IntegrityError, InvalidInput, NotFound
from argosy.core.tensors import Signature
from argosy.registry.blobs import Blobs
from argosy.registry.log import Entry, Log
from argosy.security.envelope import seal, unseal
from argosy.security.keys import KeyRing

PUBLISHED = "version.published"
ALIAS_MOVED = "alias.moved"
MODEL_FILE = "model.onnx"
MAIN_FILES = {"onnx": MODEL_FILE, "python": "python-model.json"}
"""For each format the file that every version of it has."""

_TYPE = "application/vnd.argosy.version.v1+json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_DIGEST_PREFIX = re.compile(r"[0-9a-f]{8,64}")
_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
# Folders, but no part that leads out of one or is hidden.
_FILE_NAME = re.compile(rf"{_PART}(?:/{_PART}){{0,15}}")
_MAX_FILE_NAME = 250
_CACHED = 1024
# `Versions.list` hides the built-in name inside its class.
Entries = list[Entry]
Names = list[str]


class _Plain(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What manifests are made of: a field nobody knows means a newer Argosy, and is refused, not dropped."""


class FileRef(_Plain, frozen=True, kw_only=True):
    """A file of a version: the digest of its bytes, and how many they are."""

    digest: str
    size_bytes: int


class GateResult(_Plain, frozen=True, kw_only=True):
    """One gate: what was asked of a metric, what it was, and by how much it missed."""

    name: str
    bound: str
    value: float
    passed: bool
    missed_by: float = 0.0


class Evaluation(_Plain, frozen=True, kw_only=True):
    """How a version did: on an independent test set, or only a check of itself when there was no data."""

    kind: Literal["test-set", "self-check"]
    passed: bool
    metrics: dict[str, float] = {}
    gates: list[GateResult] = []
    samples: int = 0


class Lineage(_Plain, frozen=True, kw_only=True):
    """Where a version comes from."""

    run: str = ""
    parent: str = ""
    """The digest of the version this was made from."""
    code_commit: str = ""
    code_digest: str = ""
    data_digest: str = ""
    stages: dict[str, str] = {}
    """The name of each stage and its key."""
    recipe: dict[str, Any] = {}
    """What was done to the parent, such as compression passes and their settings."""


class Manifest(_Plain, frozen=True, kw_only=True):
    """All there is to know about a version; signed, and itself a blob whose digest names the version."""

    name: str
    created: float
    """Seconds since 1970 by the publisher's clock."""
    role: Literal["original", "compressed", "imported"]
    task: Literal["classification", "regression", "tensor"]
    format: Literal["onnx", "python"] = "onnx"
    engine: Literal["onnxruntime", "openvino", "openvino-bf16"] = "onnxruntime"
    """What its ONNX file was measured on, and runs on where that is installed; else on ONNX Runtime."""
    signature: Signature
    """What callers send and get."""
    prepare: list[dict[str, Any]] = []
    """Steps from what callers send to what the model takes, fitted on the training part."""
    finish: list[dict[str, Any]] = []
    """Steps from what the model gives to what callers get."""
    files: dict[str, FileRef]
    evaluation: Evaluation
    lineage: Lineage = Lineage()

    @property
    def size_bytes(self) -> int:
        """How large the model is: its file, or all files of a model of one's own."""
        if self.format == "python":
            return sum(file.size_bytes for file in self.files.values())
        return self.files[MODEL_FILE].size_bytes


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """A published manifest. `number` is 0 where it was loaded by digest, without the log."""

    name: str
    number: int
    digest: str
    manifest: Manifest

    def __str__(self) -> str:
        return f"{self.name}:{self.number}" if self.number else f"{self.name}@{self.digest[:19]}"


def check_name(name: str) -> str:
    """Return `name` if models and endpoints may be called so; raise InvalidInput."""
    if not _NAME.fullmatch(name) or name == "sha256":
        raise InvalidInput(
            f"{name[:80]!r} is not a name", hint="use up to 63 letters, digits, dots, dashes and underscores"
        )
    return name


def is_file_name(name: str) -> bool:
    """Return whether a file of a version may be called so: letters, digits, `.`, `_`, `-`, and folders before it."""
    return len(name) <= _MAX_FILE_NAME and _FILE_NAME.fullmatch(name) is not None


def open_version(blobs: Blobs, keys: KeyRing, digest: str) -> "tuple[Version, VersionFiles]":
    """Return a version by its digest, its signature verified, and its files, each verified when it is read.

    Needs no log, so a replica can do it. Raises NotFound or IntegrityError. Whoever has read what it needs calls
    `check_rest` before the version may be used: then all of it has been verified, and nothing was hashed twice.
    """
    version = _read(blobs, keys, digest, number=0)
    return version, VersionFiles(blobs, version)


def load_version(blobs: Blobs, keys: KeyRing, digest: str) -> Version:
    """Load a version by its digest and verify everything: signature, and the digest and size of each file.

    Raises NotFound or IntegrityError; nothing of the version may be used then.
    """
    version, files = open_version(blobs, keys, digest)
    files.check_rest()
    return version


class VersionFiles(Mapping[str, bytes]):
    """The files of a version by name, each read and verified anew when it is asked for."""

    def __init__(self, blobs: Blobs, version: Version) -> None:
        self._blobs = blobs
        self._version = version
        self._verified: set[str] = set()

    def __getitem__(self, name: str) -> bytes:
        if name not in self._version.manifest.files:
            raise KeyError(name)
        content = open_file(self._blobs, self._version, name)
        self._verified.add(name)
        return content

    def check_rest(self) -> None:
        """Read and hash the files that nobody has asked for; raise NotFound or IntegrityError for a damaged one."""
        for name in self._version.manifest.files:
            if name not in self._verified:
                _ = self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._version.manifest.files)

    def __len__(self) -> int:
        return len(self._version.manifest.files)


def open_file(blobs: Blobs, version: Version, name: str) -> bytes:
    """Return the verified bytes of a file of `version`: those that were hashed are those that are returned."""
    ref = _file(version, name)
    content = blobs.get(ref.digest)
    if len(content) != ref.size_bytes:
        raise IntegrityError(
            f"file '{name}' of {version} has {len(content)} bytes, its manifest says {ref.size_bytes}",
            code="size_mismatch",
            file=name,
        )
    return content


class Versions:
    """The versions in a log and its blobs."""

    def __init__(self, log: Log, blobs: Blobs, keys: KeyRing) -> None:
        self._log = log
        self._blobs = blobs
        self._keys = keys
        self._read: OrderedDict[str, Version] = OrderedDict()

    def publish(self, manifest: Manifest) -> Version:
        """Sign `manifest`, give it the next number of its name, and return the version.

        All its files must be in the blobs. Publishing the same manifest again returns the version that there is.
        """
        self._check(manifest)
        digest = self._blobs.put(seal(canonical(manifest), _TYPE, self._keys))

        def numbered(log: Log) -> dict[str, Any]:
            if any(entry.data["digest"] == digest for entry in log.entries(kind=PUBLISHED, subject=manifest.name)):
                raise _PublishedAlready
            newest = log.last(PUBLISHED, manifest.name)
            number = int(newest.data["number"]) + 1 if newest else 1
            return {"number": number, "digest": digest, "passed": manifest.evaluation.passed}

        with contextlib.suppress(_PublishedAlready):
            self._log.append(PUBLISHED, manifest.name, numbered)
        return self._by_digest(digest)

    def get(self, ref: str) -> Version:
        """Return the version `ref` names: `name:3`, `name` (the newest), `name@alias`, `sha256:…` or the start of one.

        Its manifest's signature is verified, its files are not read. Raises NotFound that says what there is.
        """
        self._log.refresh()
        if (digest := ref.removeprefix("sha256:")) != ref:
            return self._by_digest(digest)
        if "@" in ref:
            name, _, alias = ref.partition("@")
            return self.alias(name, alias)
        name, colon, number = ref.partition(":")
        entries = self._published(name)
        if not entries:
            if not colon and _DIGEST_PREFIX.fullmatch(name):
                return self._by_digest(name)
            raise self._unknown(name)
        if not colon:
            return self._version(entries[-1])
        if not number.isdecimal():
            raise InvalidInput(f"{ref!r} is not a version", hint="write name:3, name, name@alias or a digest")
        for entry in entries:
            if entry.data["number"] == int(number):
                return self._version(entry)
        raise NotFound(
            f"model '{name}' has no version {number}; newest is {entries[-1].data['number']}",
            hint=f"list versions with: argosy models show {name}",
            code="version_not_found",
        )

    def list(self, name: str | None = None) -> list[Version]:
        """Return all versions, or those of `name`, in the order of their publication."""
        self._log.refresh()
        return [self._version(entry) for entry in self._log.entries(kind=PUBLISHED, subject=name)]

    def names(self) -> Names:
        """Return the names of all models, sorted."""
        self._log.refresh()
        return sorted({entry.subject for entry in self._log.entries(kind=PUBLISHED)})

    def load(self, ref: str) -> Version:
        """Return the version `ref` names with everything verified now: signature, and each file's digest and size."""
        found = self.get(ref)
        _ = load_version(self._blobs, self._keys, found.digest)
        return found

    def open_file(self, version: Version, name: str = MODEL_FILE) -> bytes:
        """Return the verified bytes of a file of `version`."""
        return open_file(self._blobs, version, name)

    def files(self, version: Version) -> VersionFiles:
        """Return the files of `version` by name; each is verified when it is asked for."""
        return VersionFiles(self._blobs, version)

    def file_path(self, version: Version, name: str = MODEL_FILE) -> Path:
        """Return a local file with the bytes of a file of `version`, verified now."""
        return self._blobs.fetch(_file(version, name).digest)

    def move_alias(self, name: str, alias: str, number: int, reason: str = "") -> Entry:
        """Let `name@alias` mean version `number` from now on; the log keeps what it meant before, and who moved it."""
        check_name(alias)
        version = self.get(f"{name}:{number}")

        def data(_: Log) -> dict[str, Any]:
            former = self.aliases(name).get(alias, 0)
            return {"alias": alias, "number": number, "digest": version.digest, "former": former, "reason": reason}

        return self._log.append(ALIAS_MOVED, name, data)

    def alias(self, name: str, alias: str) -> Version:
        """Return the version that `name@alias` means now."""
        self._log.refresh()
        number = self.aliases(name).get(alias)
        if number is None:
            if not self._published(name):
                raise self._unknown(name)
            raise NotFound(
                f"model '{name}' has no alias '{alias}'",
                hint=f"list versions with: argosy models show {name}",
                code="alias_not_found",
            )
        return self.get(f"{name}:{number}")

    def aliases(self, name: str) -> dict[str, int]:
        """Return all aliases of `name` and the number of the version each means now."""
        moves = self._log.entries(kind=ALIAS_MOVED, subject=name)
        return {str(entry.data["alias"]): int(entry.data["number"]) for entry in moves}

    def history(self, name: str) -> Entries:
        """Return what happened to `name`, oldest first: versions published, aliases moved."""
        self._log.refresh()
        return [entry for entry in self._log.entries(subject=name) if entry.kind in (PUBLISHED, ALIAS_MOVED)]

    def _check(self, manifest: Manifest) -> None:
        check_name(manifest.name)
        if MAIN_FILES[manifest.format] not in manifest.files:
            raise InvalidInput(f"a version of '{manifest.name}' needs a file '{MAIN_FILES[manifest.format]}'")
        for name, ref in manifest.files.items():
            if not is_file_name(name):
                raise InvalidInput(f"{name[:80]!r} is not the name of a file in a version")
            if not self._blobs.exists(ref.digest):
                raise NotFound(f"file '{name}' ({ref.digest}) was not put into the blobs", code="blob_missing")
        try:
            again = canonical(msgspec.json.decode(canonical(manifest), type=Manifest))
        except (msgspec.DecodeError, TypeError, ValueError, OverflowError) as error:
            raise InvalidInput(
                f"the manifest of '{manifest.name}' can't be kept: {error}",
                hint="a metric that is not a finite number is the usual reason",
            ) from error
        if again != canonical(manifest):
            raise InvalidInput(f"the manifest of '{manifest.name}' holds values that JSON can't give back as they were")

    def _published(self, name: str) -> Entries:
        return list(self._log.entries(kind=PUBLISHED, subject=name))

    def _by_digest(self, start: str) -> Version:
        start = start.removeprefix("sha256:")
        if not _DIGEST_PREFIX.fullmatch(start):
            raise InvalidInput(f"'{start[:70]}' is not the start of a digest: give at least 8 hex digits")
        found = [e for e in self._log.entries(kind=PUBLISHED) if str(e.data["digest"]).startswith(f"sha256:{start}")]
        if not found:
            raise NotFound(f"no published version has a digest that starts with {start}", code="version_not_found")
        if len({entry.data["digest"] for entry in found}) > 1:
            names = ", ".join(f"{e.subject}:{e.data['number']}" for e in found[:10])
            raise Conflict(f"several versions have a digest that starts with {start}: {names}", code="ambiguous")
        return self._version(found[0])

    def _version(self, entry: Entry) -> Version:
        digest = str(entry.data["digest"])
        version = self._read.get(digest)
        if version is None:
            version = _read(self._blobs, self._keys, digest, number=int(entry.data["number"]))
            if version.name != entry.subject:
                raise IntegrityError(f"entry {entry.seq} publishes '{entry.subject}', its manifest '{version.name}'")
            self._read[digest] = version
            if len(self._read) > _CACHED:
                self._read.popitem(last=False)
        return version

    def _unknown(self, name: str) -> NotFound:
        known = self.names()
        return NotFound(
            f"there is no model '{name[:80]}'; known are: {', '.join(known[:10]) or 'none yet'}",
            hint="publish one with: argosy run, or argosy deploy model.onnx",
            code="model_not_found",
        )


class _PublishedAlready(Exception):
    """The very same manifest is in the log."""


def _read(blobs: Blobs, keys: KeyRing, digest: str, *, number: int) -> Version:
    payload = unseal(blobs.get(digest), _TYPE, keys)
    try:
        manifest = msgspec.json.decode(payload, type=Manifest)
    except msgspec.DecodeError as error:
        raise IntegrityError(
            f"the manifest of version {digest} is not understood: {error}",
            hint="it may have been made by a newer Argosy: pip install -U argosy",
            code="bad_manifest",
        ) from error
    check_name(manifest.name)
    return Version(name=manifest.name, number=number, digest=digest, manifest=manifest)


def _file(version: Version, name: str) -> FileRef:
    ref = version.manifest.files.get(name)
    if ref is None:
        raise NotFound(f"{version} has no file '{name}'; it has {', '.join(sorted(version.manifest.files))}")
    return ref
