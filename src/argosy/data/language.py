"""Running text for language models: cut by position, split into tokens, laid out in blocks.

Shape suffixes: n blocks, c tokens of a block (the context).
"""

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import numpy.typing as npt

from argosy.core.errors import InvalidInput
from argosy.core.plugins import missing
from argosy.data.attachment import text_input
from argosy.data.config import DataConfig
from argosy.data.documents import Document, documents_in, text_files
from argosy.data.fit import Fitted
from argosy.data.location import located
from argosy.data.scratch import IN_MEMORY, Scratch, SpooledColumn
from argosy.data.text import Tokenize
from argosy.data.tokenizer import TOKENIZER_FILE, TextTokenizer, read_tokenizer, vocabulary_size

KINDS = ("bpe", "bytes", "characters")
"""What can be made of the training part; `bytes` and `characters` need no training and suit tiny texts."""
END = "<|endoftext|>"
"""The token behind each document."""
UNKNOWN = "[UNK]"
INPUT = "text"

Ids = npt.NDArray[np.int32]

_MOST_BYTES = 4 << 30  # of all texts together where their tokens are held in memory
_MOST_TRAINED = 1 << 29
"""Characters a tokenizer is trained on. What is seen so rarely that it takes more would hardly become a token."""
_CHUNK = 1 << 15
_BLOCKS_AT_ONCE = 1 << 12
# Where a text can be cut without changing its tokens: byte-level BPE never joins a line's end with the next line's
# first letter, but it may join several line ends or spaces.
_CUT = re.compile(r"(?<=\S\n)(?=\S)")


class Blocks(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a text: each row of `ids_nc` (int32) and, a token further on, what follows each of its tokens."""

    ids_nc: Ids
    next_nc: Ids


class Language(msgspec.Struct, frozen=True, kw_only=True):
    """The three parts of a text, and the preparation that brings a caller's text into the same tokens."""

    parts: dict[str, Blocks]
    fitted: Fitted


class Piece(msgspec.Struct, frozen=True):
    """The characters of a document from `start` up to `end`."""

    document: Document
    start: int
    end: int

    @property
    def ends(self) -> bool:
        """Whether the document ends with it."""
        return self.end == self.document.letters

    def chunks(self) -> Iterator[str]:
        """Yield its text in parts that are split into tokens one by one."""
        return _chunks(self.document.between(self.start, self.end))


def read_language(
    config: DataConfig, base: Path, scratch: Scratch = IN_MEMORY, given: TextTokenizer | None = None
) -> Language:
    """Read what `[data] train` names: a text file, or a folder with any depth of them (UTF-8), in order of their names.

    The first part of the text is for training, the next for validation and the last for the test, unless that is a
    file of its own: a model is judged on what comes after all it has read. Texts are read as streams, and tokens that
    don't fit into memory lie in `scratch`. `given` is the tokenizer of `[model] init`, taken where `config` names none.
    Raises NotFound and InvalidInput.
    """
    if given is not None and given.most_tokens and config.context > given.most_tokens:
        raise InvalidInput(
            f"[data] context = {config.context} is more than the {given.most_tokens} tokens that [model] init can read",
            hint=f"set it to {given.most_tokens} or less",
        )
    with contextlib.ExitStack() as places:
        documents = _documents(config.train, base, scratch, places)
        pieces = _by_position(documents, config.validation, 0.0 if config.test else config.test_share)
        if config.test:
            tests = _documents(config.test, base, scratch, places)
            pieces["test"] = [Piece(document, 0, document.letters) for document in tests]
        content = _tokenizer(config, base, pieces["train"], given)
        encode = _Encoder(content, scratch, given.end_id if given is not None else None)
        parts = {name: _blocks(name, encode(found), config.context, scratch) for name, found in pieces.items()}
    step = Tokenize(
        max_length=config.context,
        keep="end",
        input=INPUT,
        file=TOKENIZER_FILE,
        outputs=("input_ids", "attention_mask"),
        pad_id=encode.end or 0,
    )
    tokens = {name: blocks.ids_nc.size for name, blocks in parts.items()}
    fitted = Fitted(
        steps=[step],
        specs=(text_input(INPUT),),
        files={TOKENIZER_FILE: content},
        about=f"The last {config.context} tokens of a text are read; logits are those of the token that follows, nats "
        "is the text's own mean surprise per token.",
        notes=(_told(config, documents, tokens, vocabulary_size(content), is_given=given is not None),),
    )
    return Language(parts=parts, fitted=fitted)


def _told(
    config: DataConfig, documents: Sequence[Document], tokens: dict[str, int], vocabulary: int, *, is_given: bool
) -> str:
    letters = sum(document.letters for document in documents)
    shares = ", ".join(f"{count:,} for {name}" for name, count in tokens.items())
    kind = config.tokenizer or ("those of [model] init" if is_given else KINDS[0])
    return (
        f"{len(documents)} text{'s' * (len(documents) > 1)} of {letters:,} characters became {sum(tokens.values()):,} "
        f"tokens of {vocabulary:,} kinds ({kind}): {shares}"
    )


def _documents(name: str, base: Path, scratch: Scratch, places: contextlib.ExitStack) -> list[Document]:
    path = places.enter_context(located(name, base, scratch.room))
    files = text_files(path, name)
    total = sum(file.stat().st_size for file in files)
    if total > _MOST_BYTES and not scratch.is_large(total):
        raise InvalidInput(f"'{name}' has {total / 1e9:.1f} GB of text, more than {_MOST_BYTES / 1e9:.1f} GB")
    return documents_in(files, path, name)


def _by_position(documents: Sequence[Document], validation: float, test: float) -> dict[str, list[Piece]]:
    """Cut the texts, one behind the other, at two places, each moved to the next white space."""
    total = sum(document.letters for document in documents)
    cuts = [round(total * (1 - validation - test)), round(total * (1 - test)), total]
    parts: dict[str, list[Piece]] = {name: [] for name in ("train", "validation", *(["test"] if test else []))}
    names = iter(parts)
    name, cut, before = next(names), cuts[0], 0
    places = iter(cuts[1:])
    for document in documents:
        start = 0
        while before + document.letters > cut and name != list(parts)[-1]:
            end = max(start, _word_end(document, cut - before))
            if end > start:
                parts[name].append(Piece(document, start, end))
            start, name, cut = end, next(names), next(places)
        if start < document.letters:
            parts[name].append(Piece(document, start, document.letters))
        before += document.letters
    return parts


def _word_end(document: Document, place: int) -> int:
    place = max(0, place)
    found = re.search(r"\s", "".join(document.between(place, place + 200)))
    return place + found.start() if found else place


def _tokenizer(config: DataConfig, base: Path, pieces: Sequence[Piece], given: TextTokenizer | None) -> bytes:
    """Return the `tokenizer.json` that `config` names, the one given, or one made of the training part."""
    kind = config.tokenizer or KINDS[0]
    if kind not in KINDS:
        given = read_tokenizer(base / Path(kind).expanduser())
    if given is not None and config.tokenizer not in KINDS:
        # Marks such as [CLS], which it puts around a text alone, would stand in the middle of a longer one.
        return msgspec.json.encode(msgspec.json.decode(given.content) | {"post_processor": None})
    try:
        from tokenizers import Regex as Pattern
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ModuleNotFoundError as error:
        raise missing(error, "text") from error
    if kind == "characters":
        seen = set[str]().union(*(set(chunk) for piece in pieces for chunk in piece.chunks()))
        known = [END, UNKNOWN, *sorted(seen)]
        tokenizer = Tokenizer(
            models.WordLevel({character: place for place, character in enumerate(known)}, unk_token=UNKNOWN)
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Pattern(r"[\s\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
        tokenizer.add_special_tokens([END, UNKNOWN])
        return tokenizer.to_str().encode()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: place for place, letter in enumerate([END, *letters])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "bpe")
    tokenizer.decoder = decoders.ByteLevel()
    if kind == "bpe":
        # Pieces seen once say nothing of what follows them.
        trainer: Any = trainers.BpeTrainer(
            vocab_size=max(config.vocabulary, len(letters) + 1),
            min_frequency=2,
            special_tokens=[END],
            initial_alphabet=letters,
            show_progress=False,
        )
        tokenizer.train_from_iterator(_trained_on(pieces), trainer)
    else:
        tokenizer.add_special_tokens([END])
    return tokenizer.to_str().encode()


def _trained_on(pieces: Sequence[Piece]) -> Iterator[str]:
    """Yield all chunks of a text, or as many, evenly spread, as make `_MOST_TRAINED` characters."""
    share = min(1.0, _MOST_TRAINED / max(1, sum(piece.end - piece.start for piece in pieces)))
    chunks = (chunk for piece in pieces for chunk in piece.chunks())
    return (chunk for number, chunk in enumerate(chunks) if int((number + 1) * share) > int(number * share))


class _Encoder:
    """A tokenizer that takes long texts in chunks, as training memory allows."""

    def __init__(self, content: bytes, scratch: Scratch, end: int | None = None) -> None:
        self._scratch = scratch
        from tokenizers import Tokenizer

        self._tokenizer: Any = Tokenizer.from_buffer(content)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.end: int | None = self._tokenizer.token_to_id(END) if end is None else end

    def __call__(self, pieces: Sequence[Piece]) -> Ids:
        """Return the tokens of pieces one behind the other, with the end's token behind every whole document."""
        held: list[Ids] = []
        size, column = 0, None
        for found in self._tokens(pieces):
            held.append(found)
            size += found.nbytes
            if self._scratch.is_large(size):
                column = self._scratch.column() if column is None else column
                column.append(np.concatenate(held))
                held, size = [], 0
        rest = np.concatenate(held) if held else np.empty(0, dtype=np.int32)
        if column is None:
            return rest
        column.append(rest)
        return cast("Ids", column)

    def _tokens(self, pieces: Sequence[Piece]) -> Iterator[Ids]:
        for piece in pieces:
            chunks = piece.chunks()
            while some := list(islice(chunks, 64)):
                encoded = self._tokenizer.encode_batch_fast(some, add_special_tokens=False)
                yield from (np.array(one.ids, dtype=np.int32) for one in encoded)
            if piece.ends and self.end is not None:
                yield np.array([self.end], dtype=np.int32)


def _chunks(stretches: Iterable[str]) -> Iterator[str]:
    """Yield a text in chunks of about `_CHUNK` characters that have together the tokens of the whole."""
    held, searched = "", 0
    for stretch in stretches:
        held += stretch
        start = 0
        while found := _CUT.search(held, max(start + _CHUNK, searched)):
            yield held[start : found.start()]
            start = found.start()
        held = held[start:]
        searched = len(held)  # a cut is seen by the letter behind it
    if held:
        yield held


def _blocks(part: str, ids: Ids, context: int, scratch: Scratch) -> Blocks:
    """Lay tokens out in rows of `context`; the last ones, which fill no row, are left out."""
    rows = (len(ids) - 1) // context
    if rows < 1:
        raise InvalidInput(
            f"the {part} part of the text has {len(ids)} tokens, fewer than the {context + 1} that one block of "
            f"context = {context} takes",
            hint="give more text, or set [data] context to less",
            tokens=len(ids),
        )
    used = rows * context
    if not isinstance(cast("object", ids), SpooledColumn):
        return Blocks(ids_nc=ids[:used].reshape(rows, context), next_nc=ids[1 : used + 1].reshape(rows, context))
    blocks = Blocks(ids_nc=scratch.empty((rows, context), np.int32), next_nc=scratch.empty((rows, context), np.int32))
    for start in range(0, rows, _BLOCKS_AT_ONCE):
        end = min(rows, start + _BLOCKS_AT_ONCE)
        found = ids[start * context : end * context + 1]
        blocks.ids_nc[start:end] = found[:-1].reshape(-1, context)
        blocks.next_nc[start:end] = found[1:].reshape(-1, context)
    return blocks
