"""Texts as a data set's only input: which column holds them, and the tokenizer they are fitted with."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from argosy.core.errors import InvalidInput
from argosy.core.tensors import MAX_TEXT_BYTES
from argosy.data.attachment import text_about, text_input
from argosy.data.config import DataConfig
from argosy.data.fit import Fitted, are_sentences, is_text, useless
from argosy.data.steps import Array
from argosy.data.text import Tokenize
from argosy.data.tokenizer import KINDS, TOKENIZER_FILE, TextTokenizer, read_tokenizer, train_tokenizer


def sole_texts(columns: Mapping[str, Array], asked: Sequence[str] = ()) -> str:
    """Return the column of sentences if there is nothing else to learn from, otherwise an empty text.

    Columns that number the rows are nothing to learn from, unless they were `asked` for.
    """
    left = [name for name, c in columns.items() if c.ndim > 1 or is_text(c) or name in asked or not useless(name, c)]
    if len(left) != 1:
        return ""
    column = columns[left[0]]
    if column.ndim > 1 or not is_text(column) or not are_sentences(column):
        return ""
    # A few phrases that come again and again are categories.
    return left[0] if len(set(column.tolist())) * 2 > len(column) else ""


def clean_texts(column: Array, name: str) -> Array:
    """Return texts as they are, '' where missing, cut to the bytes that an endpoint takes. Raises InvalidInput."""
    if column.dtype.kind != "O" or column.ndim != 1:
        raise InvalidInput(
            f"[data] text names '{name}', which holds {column.dtype} of shape {list(column.shape)}, not texts",
            hint="name a column of texts, or leave text out",
        )
    texts = np.empty(len(column), dtype=object)
    texts[:] = [_cut(text) if text and text.strip() else "" for text in column.tolist()]
    return texts


def _cut(text: str) -> str:
    if len(text) * 4 <= MAX_TEXT_BYTES:
        return text
    # A character may be cut in two.
    return text.encode("utf-8", "replace")[:MAX_TEXT_BYTES].decode("utf-8", "ignore")


def fit_texts(config: DataConfig, base: Path, name: str, texts: Array, given: TextTokenizer | None = None) -> Fitted:
    """Return the preparation of texts, whose training part is `texts`; `given` is the tokenizer of `[model] init`."""
    notes: list[str] = []
    if config.tokenizer in KINDS or (not config.tokenizer and given is None):
        kind = config.tokenizer or KINDS[0]
        tokenizer = train_tokenizer(texts.tolist(), kind, config.vocabulary)
        notes.append(f"a {kind} tokenizer was trained on the texts of the training part")
    elif config.tokenizer:
        tokenizer = read_tokenizer(base / Path(config.tokenizer).expanduser())
    else:
        assert given is not None
        tokenizer = given
    longest = config.max_length or tokenizer.max_length
    if tokenizer.most_tokens and longest > tokenizer.most_tokens:
        raise InvalidInput(
            f"[data] max_length = {longest} is more than the {tokenizer.most_tokens} tokens that [model] init can read",
            hint=f"set it to {tokenizer.most_tokens} or less",
        )
    step = Tokenize(
        max_length=longest,
        input=name,
        file=TOKENIZER_FILE,
        outputs=("input_ids", "attention_mask"),
        pad_id=tokenizer.pad_id,
        prefix=tokenizer.prefix,
    )
    cut = sum(len(text.encode()) > MAX_TEXT_BYTES - 4 for text in texts.tolist())
    if cut:
        notes.append(f"{cut} texts of the training part are longer than {MAX_TEXT_BYTES} bytes: their rest is not read")
    return Fitted(
        steps=[step],
        specs=(text_input(name),),
        files={TOKENIZER_FILE: tokenizer.content},
        about=text_about(step),
        notes=tuple(notes),
    )
