"""Mirrored pairs: one request answered by both versions, to see whether they agree."""

import hashlib
import importlib
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from argosy.core.errors import InvalidInput
from argosy.core.tensors import DATATYPES
from argosy.serve.batcher import OVER, Trouble, VersionQueue, Work
from argosy.serve.deadlines import Wheel
from argosy.serve.requests import Inputs
from argosy.serve.values import split_texts
from argosy.serve.windows import Rollout
from argosy.serve.wire import Tensor

if TYPE_CHECKING:
    import numpy as np

_MISSING = object()
_MARKED_BYTES = 1 << 16
"""Of each tensor, to tell whether it is another: an image's first rows do, and the event loop must not wait long."""


class Pair:
    """Waits for both halves, then tells the rollout. Either half may be dropped; then nothing is counted."""

    __slots__ = ("_canary_at", "_halves", "_inputs", "_rollout", "_tolerance")

    def __init__(self, rollout: Rollout, tolerance: float, inputs: Inputs) -> None:
        self._rollout = rollout
        self._tolerance = tolerance
        self._inputs = inputs
        self._halves: list[Any] = [_MISSING, _MISSING]
        self._canary_at = "", False

    def put(
        self,
        *,
        is_canary: bool,
        outputs: Sequence[Tensor] | None,
        batch: int = 0,
        replica: str = "",
        is_copy: bool = False,
    ) -> bool:
        """Take one half, None if that version failed; return whether the pair is complete and counted with it.

        Only the first call per side has an effect. `batch` names the batch that failed as a whole; it counts once.
        `replica` is who was handed this half; `is_copy`: it is the mirrored one.
        """
        if self._halves[is_canary] is not _MISSING:
            return False
        self._halves[is_canary] = (outputs, batch)
        if is_canary:
            self._canary_at = replica, is_copy
        if _MISSING in self._halves:
            return False
        (stable, _), (canary, _) = self._halves
        batches = [batch for _, batch in self._halves if batch]
        agree = stable is not None and canary is not None and agrees(stable, canary, self._tolerance)
        at, is_copied = self._canary_at
        self._rollout.pair(
            stable_failed=stable is None,
            canary_failed=canary is None,
            agree=agree,
            batch=batches[0] if batches else 0,
            replica=at,
            is_copy=is_copied,
        )
        if stable is not None and canary is not None:
            self._compare_with_the_last(stable, canary)
        return True

    def _compare_with_the_last(self, stable: Sequence[Tensor], canary: Sequence[Tensor]) -> None:
        """Tell the rollout whose answer did not change though the input did: a broken model often says one thing."""
        was, now = self._rollout.last_pair, (_mark(self._inputs.tensors), _mark(stable), _mark(canary))
        self._rollout.last_pair = now
        if was is not None and was[0] != now[0]:
            self._rollout.varied(stable=was[1] != now[1], canary=was[2] != now[2])


class Copy(Work):
    """The mirrored half of a pair. Its answer is compared and dropped; it is never tried again."""

    __slots__ = ("is_canary", "pair", "queue", "wheel")

    def __init__(
        self, wheel: Wheel, queue: VersionQueue, inputs: Inputs, due: float, pair: Pair, *, is_canary: bool
    ) -> None:
        super().__init__(inputs)
        self.wheel = wheel
        self.queue = queue
        self.due = self.deadline = due
        self.pair = pair
        self.is_canary = is_canary

    def answered(self, outputs: Sequence[Tensor]) -> None:
        """Compare."""
        self._put(outputs, 0)

    def failed(self, trouble: Trouble) -> None:
        """Count the failure."""
        self._put(None, trouble.batch)

    def expire(self, now: float) -> None:
        """Count the lateness as a failure."""
        del now
        self.queue.withdraw(self)
        self._put(None, 0)

    def _put(self, outputs: Sequence[Tensor] | None, batch: int) -> None:
        self.state = OVER
        self.wheel.remove(self)
        replica = self.batch.replica if self.batch is not None else ""
        self.pair.put(is_canary=self.is_canary, outputs=outputs, batch=batch, replica=replica, is_copy=True)


def preload() -> None:
    """Import what comparing needs in a thread, so that the first pair doesn't hold up the event loop for it."""
    if "argosy.evaluate.agreement" in sys.modules:
        return
    threading.Thread(target=importlib.import_module, args=("argosy.evaluate.agreement",), daemon=True).start()


def agrees(stable: Sequence[Tensor], canary: Sequence[Tensor], tolerance: float) -> bool:
    """Return whether two answers to one request agree in every row."""
    # NumPy comes into the gateway with the first route that mirrors, not before.
    from argosy.evaluate.agreement import answers_agree

    try:
        return bool(answers_agree(_arrays(stable), _arrays(canary), tolerance=tolerance).all())
    except (InvalidInput, ValueError):
        # Outputs of other names or shapes can't be compared, which is a difference.
        return False


def _mark(tensors: Sequence[Tensor]) -> bytes:
    """Return a few bytes that are the same for the same tensors."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(f"{tensor.name} {tensor.shape} {len(tensor.data)}".encode())
        digest.update(memoryview(tensor.data)[:_MARKED_BYTES])
    return digest.digest()


def _arrays(tensors: Sequence[Tensor]) -> "dict[str, np.ndarray[Any, Any]]":
    import numpy as np

    found = {}
    for tensor in tensors:
        if tensor.datatype == "BYTES":
            array = np.array([item.decode(errors="replace") for item in split_texts(tensor.data)], dtype=object)
        else:
            array = np.frombuffer(tensor.data, dtype=DATATYPES[tensor.datatype][0])
        found[tensor.name] = array.reshape(tensor.shape)
    return found
