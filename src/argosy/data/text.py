"""Texts to tokens, and tokens' vectors back to one per text: what stands before and behind a language encoder."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from argosy.core.errors import InvalidInput, PluginError
from argosy.core.tensors import MAX_TEXT_BYTES
from argosy.data.steps import Array, Arrays, Kernel, PlainStep

ATTENTION_MASK = "attention_mask"
"""The input that is 1 for tokens and 0 for padding."""
_OUTPUTS = ("input_ids", ATTENTION_MASK, "token_type_ids")
_INTEGERS = ("INT64", "INT32")
# torch.nn.functional.normalize and sentence-transformers use the same floor.
_SMALLEST_NORM = 1e-12


class Tokenize(PlainStep, frozen=True, tag="tokenize"):
    """Split texts into tokens with a Hugging Face `tokenizer.json`, a file of the version.

    Of a text of more than `max_length` tokens, marks like [CLS] included, the start or the end is kept, as `keep` says.
    A batch is padded with `pad_id` to its own longest text, so a text alone is never padded. `outputs` are what the
    model takes of input_ids, attention_mask and token_type_ids (zeros), each [rows, tokens]. `prefix` is put before
    every text.
    """

    max_length: int
    input: str = "text"
    file: str = "tokenizer.json"
    outputs: tuple[str, ...] = _OUTPUTS
    datatype: str = "INT64"
    pad_id: int = 0
    prefix: str = ""
    max_bytes: int = MAX_TEXT_BYTES
    keep: Literal["start", "end"] = "start"


class Pool(PlainStep, frozen=True, tag="pool"):
    """Make one vector per text of one per token: [rows, tokens, width] to [rows, width].

    mean: the average over a text's own tokens, by `mask` (an output of the preparation); max: the largest value over
    them; cls: the vector of the first token.
    """

    mode: Literal["mean", "max", "cls"] = "mean"
    input: str = "last_hidden_state"
    output: str = "embedding"
    mask: str = "attention_mask"


class L2Normalize(PlainStep, frozen=True, tag="l2-normalize"):
    """Bring every row to the length 1, so that a dot product is the cosine; a row of zeros stays."""

    input: str = "embedding"
    output: str = "embedding"


def check_tokenize(step: Tokenize) -> None:
    """Raise ValueError for constants that make no sense."""
    if step.max_length < 1 or step.max_bytes < 1:
        raise ValueError("max_length and max_bytes must be at least 1")
    if step.datatype not in _INTEGERS:
        raise ValueError(f"tokens are {' or '.join(_INTEGERS)}, not {step.datatype!r}")
    unknown = set(step.outputs) - set(_OUTPUTS)
    if unknown or "input_ids" not in step.outputs:
        raise ValueError(f"outputs must be input_ids and any of {', '.join(_OUTPUTS[1:])}")


def tokenize(step: Tokenize, content: bytes) -> Kernel:
    """Return the function of a `Tokenize` step; `content` is its file. Raises InvalidInput, or PluginError."""
    check_tokenize(step)
    encode = _encoder(content, step)
    dtype = np.dtype(step.datatype.lower())

    def run(state: Arrays) -> Arrays:
        texts = _texts(state, step)
        found = encode(texts)
        lengths = [len(ids) for ids in found]
        if 0 in lengths:
            row = lengths.index(0)
            raise InvalidInput(f"the text in row {row} has no tokens; send one with words", input=step.input)
        longest = max(lengths)
        if min(lengths) == longest:
            ids = np.array(found, dtype=dtype)
            mask = np.ones(ids.shape, dtype=dtype)
        else:
            is_real = np.arange(longest) < np.array(lengths)[:, None]
            ids = np.full(is_real.shape, step.pad_id, dtype=dtype)
            ids[is_real] = [token for row in found for token in row]
            mask = is_real.astype(dtype)
        made = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        kept = {name: array for name, array in state.items() if name != step.input}
        return kept | {name: made[name] for name in step.outputs}

    return run


def without_padding(inputs: Mapping[str, Array]) -> Arrays:
    """Cut a batch of tokens to its own longest text, as if it had been prepared alone; what is no token stays."""
    if ATTENTION_MASK not in inputs:
        return dict(inputs)
    longest = max(1, int(inputs[ATTENTION_MASK].sum(axis=1).max(initial=0)))
    return {name: array[:, :longest] if name in _OUTPUTS else array for name, array in inputs.items()}


def _texts(state: Arrays, step: Tokenize) -> list[str]:
    if step.input not in state:
        raise InvalidInput(
            f"the input '{step.input}' (texts) is missing; found: {', '.join(state) or 'none'}", input=step.input
        )
    array = np.asarray(state[step.input])
    if array.ndim != 1 or len(array) == 0:
        raise InvalidInput(f"the input '{step.input}' has shape {list(array.shape)}, expected [-1]", input=step.input)
    return [step.prefix + _text(item, row, step) for row, item in enumerate(array.tolist())]


def _text(item: Any, row: int, step: Tokenize) -> str:
    try:
        # A str may hold lone surrogates, which no tokenizer takes.
        data = item if isinstance(item, bytes) else item.encode()
        text = item if isinstance(item, str) else data.decode()
    except (UnicodeError, AttributeError) as error:
        raise InvalidInput(f"the text in row {row} is not UTF-8: {error}", input=step.input) from error
    if len(data) > step.max_bytes:
        raise InvalidInput(
            f"the text in row {row} has {len(data)} bytes; at most {step.max_bytes} are read", input=step.input
        )
    return text


def _encoder(content: bytes, step: Tokenize) -> Callable[[Sequence[str]], list[list[int]]]:
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        raise PluginError(
            "texts need 'tokenizers', which is not installed; install it with: pip install 'argosy[text]'",
            code="missing_extra",
            module="tokenizers",
        ) from error
    try:
        tokenizer = Tokenizer.from_buffer(content)
        tokenizer.no_padding()
        tokenizer.enable_truncation(step.max_length, **({"direction": "left"} if step.keep == "end" else {}))
    except BaseException as error:
        raise _refused(error, "the version's tokenizer can't be read") from error

    def encode(texts: Sequence[str]) -> list[list[int]]:
        try:
            return [found.ids for found in tokenizer.encode_batch_fast(texts)]
        except BaseException as error:
            raise _refused(error, "the text can't be split into tokens") from error

    return encode


def _refused(error: BaseException, what: str) -> BaseException:
    # A panic of the Rust library is no Exception and would end the process, whatever text brought it about.
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return InvalidInput(f"{what}: {str(error)[:300]}")
    return error


def pool(step: Pool) -> Kernel:
    """Return the function of a `Pool` step."""

    def run(state: Arrays) -> Arrays:
        hidden = state[step.input]
        if hidden.ndim != 3:
            raise InvalidInput(
                f"the model's output '{step.input}' has shape {list(hidden.shape)}, expected [-1, tokens, width]"
            )
        if step.mode == "cls":
            return {**state, step.output: np.ascontiguousarray(hidden[:, 0])}
        if step.mask not in state:
            raise InvalidInput(f"the preparation gives no '{step.mask}', which pooling needs")
        mask = state[step.mask]
        if mask.shape != hidden.shape[:2]:
            raise InvalidInput(f"'{step.mask}' has shape {list(mask.shape)} for {list(hidden.shape)} of '{step.input}'")
        pooled = _mean(hidden, mask) if step.mode == "mean" else _largest(hidden, mask)
        return {**state, step.output: pooled}

    return run


def _mean(hidden: Array, mask: Array) -> Array:
    weights = mask.astype(np.float32)
    # Row by row a product of a vector and a matrix: ten times as fast as multiplying out and summing.
    total = np.matmul(weights[:, None, :], hidden.astype(np.float32, copy=False))[:, 0]
    return np.asarray(total / np.maximum(weights.sum(axis=1, keepdims=True), 1e-9))


def _largest(hidden: Array, mask: Array) -> Array:
    return np.asarray(np.where(mask[:, :, None] != 0, hidden, -np.inf).max(axis=1).astype(np.float32))


def l2_normalize(step: L2Normalize) -> Kernel:
    """Return the function of an `L2Normalize` step."""

    def run(state: Arrays) -> Arrays:
        x = np.ascontiguousarray(state[step.input], dtype=np.float32)
        norm = np.sqrt((x * x).sum(axis=-1, keepdims=True))
        return {**state, step.output: x / np.maximum(norm, _SMALLEST_NORM)}

    return run
