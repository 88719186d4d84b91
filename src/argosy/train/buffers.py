"""A model's buffers: which of them a step has changed, and what they were before it."""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Buffers:
    """The buffers of one model. Batch norm's are equal on all ranks by themselves; others are not."""

    def __init__(self, model: nn.Module) -> None:
        self._places = [
            (module, name, isinstance(module, _BatchNorm))
            for module in model.modules()
            for name, _ in module.named_buffers(recurse=False)
        ]
        self._noted: list[tuple[Tensor, int]] = []
        self._before: list[Tensor] = []
        self._is_open = False

    def all(self) -> list[Tensor]:
        """Return every buffer."""
        return [module.get_buffer(name) for module, name, _ in self._places]

    def note(self) -> None:
        """Remember what all buffers are; only those that have changed since the last time are copied."""
        found = self._look()
        if len(self._noted) != len(found):
            self._before = [buffer.clone() for buffer, _ in found]
        else:
            for number, (buffer, version) in enumerate(found):
                if not self._is_noted(number, buffer, version):
                    self._before[number] = buffer.clone()
        self._noted, self._is_open = found, True

    def keep(self) -> None:
        """Say that the changes since `note` stay."""
        self._is_open = False

    def changed(self) -> list[Tensor]:
        """Return the buffers, batch norm's left out, that have changed since `note`."""
        return [
            buffer
            for number, (buffer, version) in enumerate(self._look())
            if not self._places[number][2] and not self._is_noted(number, buffer, version)
        ]

    def undo(self) -> None:
        """Make all buffers again what they were at `note`, unless the changes since then stay."""
        if self._is_open:
            for buffer, before in zip(self.all(), self._before, strict=True):
                buffer.copy_(before)
        self._is_open = False

    def _is_noted(self, number: int, buffer: Tensor, version: int) -> bool:
        before, version_before = self._noted[number]
        return buffer is before and version == version_before

    def _look(self) -> list[tuple[Tensor, int]]:
        # torch's own checks of in-place changes go by `_version`; there is no public name for it.
        return [(buffer, buffer._version) for buffer in self.all()]  # noqa: SLF001
