"""What `formats.inspect` found out about a model file, readable without NumPy or a runtime."""

import msgspec

from argosy.core.tensors import Signature


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """What was found out about a model file. Each check is true, false, or absent when it could not be made."""

    digest: str
    size_bytes: int
    signature: Signature
    samples: int
    passed: bool
    """Whether the model ran on the generated samples and no check that could be made has failed."""
    checks: dict[str, bool]
    """`finite`: no NaN or infinity; `deterministic`: twice the same bits; `rows_independent`: a batch gives what its
    rows give alone, so that requests may share a run."""
    notes: list[str]
    """What could not be checked or has failed, in words."""
