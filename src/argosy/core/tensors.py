"""What goes into a model and comes out of it, in the words of the Open Inference Protocol. No arrays here."""

import msgspec

# Open Inference Protocol v2, "Tensor Data Types", and the NumPy name and item size of each.
DATATYPES: dict[str, tuple[str, int]] = {
    "BOOL": ("bool", 1),
    "UINT8": ("uint8", 1),
    "UINT16": ("uint16", 2),
    "UINT32": ("uint32", 4),
    "UINT64": ("uint64", 8),
    "INT8": ("int8", 1),
    "INT16": ("int16", 2),
    "INT32": ("int32", 4),
    "INT64": ("int64", 8),
    "FP16": ("float16", 2),
    "FP32": ("float32", 4),
    "FP64": ("float64", 8),
    "BYTES": ("object", 0),
}
MAX_TEXT_BYTES = 1 << 16
"""A longer text is refused: splitting 64 KiB into tokens takes up to 0.1 s, and encoders read the start only."""
DATATYPE_OF_NUMPY = {numpy_name: name for name, (numpy_name, _) in DATATYPES.items()}


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, cache_hash=True):
    """One named tensor. `shape` has -1 where the size is free; the first dimension is the batch when it is -1.

    `columns` names the positions of the last dimension, for tables; plain JSON predictions may use these names.
    `content` says what a BYTES input holds when it is more than bytes: "text" (UTF-8) or "image" (a whole JPEG, PNG or
    WebP file); callers may send these as they are.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    columns: tuple[str, ...] = ()
    content: str = ""

    @property
    def is_batched(self) -> bool:
        """Whether requests can be put together along the first dimension."""
        return bool(self.shape) and self.shape[0] == -1


class Signature(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, cache_hash=True):
    """The inputs and outputs of a model as callers see them.

    `about` tells callers in words what their inputs go through, such as where long texts are cut off.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    about: str = ""

    @property
    def is_batched(self) -> bool:
        """Whether every input and output has a free first dimension, so that requests can share a run."""
        return all(spec.is_batched for spec in (*self.inputs, *self.outputs))
