"""Checkpoints: a safetensors file and then, as the last act, its manifest. Without manifest there is no checkpoint.

    step-000000120.safetensors   all tensors
    step-000000120.json          {"digest": of that file, "made_by": of the training, "position": ...}

A crash at any moment leaves the former checkpoint whole. Nothing is pickled.
"""

import contextlib
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
from torch import Tensor

from argosy.core.digest import canonical, sha256
from argosy.core.errors import Conflict, NotFound
from argosy.core.files import write_atomic
from argosy.train.models import weights_to_bytes

KEPT = 2


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What makes a file of tensors a checkpoint."""

    step: int
    digest: str
    made_by: str
    position: dict[str, Any]


class BackgroundSaver:
    """Writes checkpoints while the training goes on: what is saved is copied first, and written by a thread.

    One at a time: the next waits for the one before. What went wrong with one is raised by the next call.
    """

    def __init__(self, checkpoints: "Checkpoints") -> None:
        self._checkpoints = checkpoints
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, step: int, tensors: Mapping[str, Tensor], position: dict[str, Any]) -> None:
        """Copy, and begin to write. Raises Unavailable when the disk was full at the last time."""
        self.wait()
        copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self._thread = threading.Thread(target=self._write, args=(step, copies, position), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is being written any more."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write(self, step: int, copies: dict[str, Tensor], position: dict[str, Any]) -> None:
        try:
            self._checkpoints.save(step, copies, position)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that asked for it
            self._error = error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.wait()
        elif self._thread is not None:
            self._thread.join()


class Checkpoints:
    """The checkpoints of one training in one folder. `made_by` names data, model and config by digest."""

    def __init__(self, folder: Path, made_by: str) -> None:
        self.folder = folder
        self.made_by = made_by

    def save(self, step: int, tensors: Mapping[str, Tensor], position: dict[str, Any]) -> None:
        """Write the checkpoint of `step` and drop all but the newest two.

        Raises Unavailable when the disk is full; the former checkpoints are whole then.
        """
        data = weights_to_bytes(tensors)
        manifest = Manifest(step=step, digest=sha256(data), made_by=self.made_by, position=position)
        write_atomic(self._tensors(step), data)
        write_atomic(self._manifest(step), canonical(manifest))
        self._drop_old()

    def newest(self) -> int:
        """Return the step of the newest whole checkpoint, or -1.

        Raises Conflict if the folder belongs to another training.
        """
        return next(iter(self.whole()), -1)

    def whole(self) -> list[int]:
        """Return the steps of all whole checkpoints, newest first.

        Raises Conflict if the folder belongs to another training.
        """
        found = {step: self._read(step) for step in reversed(self.steps())}
        manifests = {step: manifest for step, manifest in found.items() if manifest is not None}
        for manifest in manifests.values():
            self._check_owner(manifest)
        return list(manifests)

    def packed(self, step: int) -> bytes:
        """Return the checkpoint of `step` as bytes, for `unpacked` on a host that hasn't got it."""
        return packed(*self.load(step))

    def load(self, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and position of the checkpoint of `step`."""
        from safetensors.torch import load

        manifest = self._read(step)
        if manifest is None:
            raise NotFound(f"there is no whole checkpoint of step {step} in '{self.folder}'")
        self._check_owner(manifest)
        return load(self._tensors(step).read_bytes()), manifest.position

    def steps(self) -> list[int]:
        """Return the steps that have a manifest, oldest first."""
        return sorted(int(path.stem.removeprefix("step-")) for path in self.folder.glob("step-*.json"))

    def _read(self, step: int) -> Manifest | None:
        """Return the manifest if it and its file are what was written; a damaged checkpoint is no checkpoint."""
        try:
            manifest = msgspec.json.decode(self._manifest(step).read_bytes(), type=Manifest)
            data = self._tensors(step).read_bytes()
        except (OSError, msgspec.DecodeError):
            return None
        return manifest if sha256(data) == manifest.digest and manifest.step == step else None

    def _check_owner(self, manifest: Manifest) -> None:
        if manifest.made_by != self.made_by:
            raise Conflict(
                f"the checkpoints in '{self.folder}' belong to another training: data, model or settings differ",
                hint="give this training a folder of its own, or delete that one to begin anew",
                code="other_training",
            )

    def _drop_old(self) -> None:
        kept = set(self.steps()[-KEPT:])
        # Manifest first: the reverse of writing, so that no manifest ever stands without its file. Files without a
        # manifest are what crashes left.
        for pattern in ("step-*.json", "step-*.safetensors"):
            for path in self.folder.glob(pattern):
                if int(path.stem.removeprefix("step-")) not in kept:
                    path.unlink(missing_ok=True)
        for path in self.folder.glob("*.tmp"):
            with contextlib.suppress(OSError):
                path.unlink()

    def _tensors(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}.safetensors"

    def _manifest(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}.json"


def packed(tensors: Mapping[str, Tensor], position: Any) -> bytes:
    """Return tensors, and where a training stands, as bytes."""
    words = msgspec.json.encode(position)
    return len(words).to_bytes(8) + words + weights_to_bytes(tensors)


def unpacked(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and position of what `packed` has made."""
    from safetensors.torch import load

    size = 8 + int.from_bytes(data[:8])
    return load(data[size:]), msgspec.json.decode(data[8:size])
