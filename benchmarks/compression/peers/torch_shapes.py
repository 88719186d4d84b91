"""Example inputs of a job, and which of their dimensions are free."""

from typing import Any

import numpy as np
import torch
from given import Job


def example_of(job: Job) -> tuple[torch.Tensor, ...]:
    """Return two samples."""
    inputs, _ = job.train()
    return tuple(torch.from_numpy(np.ascontiguousarray(array[:2])) for array in inputs.values())


def shapes_of(job: Job) -> tuple[Any, ...]:
    """Return free batches, and for texts free lengths, as torch.export takes them."""
    batch = torch.export.Dim("batch", min=1, max=4096)
    if not job.is_text:
        return ({0: batch},)
    tokens = torch.export.Dim("tokens", min=2, max=512)
    return ({0: batch, 1: tokens}, {0: batch, 1: tokens})
