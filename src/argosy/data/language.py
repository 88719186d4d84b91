"""Running text for language models: cut by position, split into tokens, laid out in blocks.

Shape suffixes: n blocks, c tokens of a block (the context).
"""

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from argosy.core.errors import InvalidInput, NotFound
from argosy.core.plugins import missing
from argosy.data.attachment import text_input
from argosy.data.config import DataConfig
from argosy.data.fit import Fitted
from argosy.data.location import located
from argosy.data.text import Tokenize
from argosy.data.tokenizer import TOKENIZER_FILE, read_tokenizer, vocabulary_size

KINDS = ("bpe", "bytes", "characters")
"""What can be made of the training part; `bytes` and `characters` need no training and suit tiny texts."""
END = "<|endoftext|>"
"""The token behind each document."""
UNKNOWN = "[UNK]"
INPUT = "text"

Ids = npt.NDArray[np.int32]

_SUFFIXES = (".txt", ".text", ".md")
_MOST_BYTES = 4 << 30  # of all texts together, as they are held in memory
_CHUNK = 1 << 15
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
    """A stretch of a document, and whether the document ends with it."""

    text: str
    ends: bool


def read_language(config: DataConfig, base: Path) -> Language:
    """Read what `[data] train` names: a text file, or a folder with any depth of them (UTF-8), in order of their names.

    The first part of the text is for training, the next for validation and the last for the test, unless that is a
    file of its own: a model is judged on what comes after all it has read. Raises NotFound and InvalidInput.
    """
    documents = _documents(config.train, base)
    pieces = _by_position(documents, config.validation, 0.0 if config.test else config.test_share)
    if config.test:
        pieces["test"] = [Piece(text, ends=True) for text in _documents(config.test, base)]
    content = _tokenizer(config, base, [piece.text for piece in pieces["train"]])
    encode = _Encoder(content)
    parts = {name: _blocks(name, encode(found), config.context) for name, found in pieces.items()}
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
        notes=(_told(config, documents, tokens, vocabulary_size(content)),),
    )
    return Language(parts=parts, fitted=fitted)


def _told(config: DataConfig, documents: Sequence[str], tokens: dict[str, int], vocabulary: int) -> str:
    letters = sum(map(len, documents))
    shares = ", ".join(f"{count:,} for {name}" for name, count in tokens.items())
    kind = config.tokenizer or KINDS[0]
    return (
        f"{len(documents)} text{'s' * (len(documents) > 1)} of {letters:,} characters became {sum(tokens.values()):,} "
        f"tokens of {vocabulary:,} kinds ({kind}): {shares}"
    )


def _documents(name: str, base: Path) -> list[str]:
    with located(name, base) as path:
        if path.is_dir():
            files = sorted(
                file
                for file in path.rglob("*")
                if file.suffix.lower() in _SUFFIXES and not file.name.startswith(".") and file.is_file()
            )
            if not files:
                raise NotFound(
                    f"the folder '{name}' has no texts; files that end in {', '.join(_SUFFIXES)} are read",
                    path=str(path),
                )
        else:
            files = [path]
        total = sum(file.stat().st_size for file in files)
        if total > _MOST_BYTES:
            raise InvalidInput(f"'{name}' has {total / 1e9:.1f} GB of text, more than {_MOST_BYTES / 1e9:.1f} GB")
        texts = [_text(file, name if file == path else f"{name}/{file.relative_to(path)}") for file in files]
    found = [text for text in texts if text.strip()]
    if not found:
        raise InvalidInput(f"'{name}' holds no text", path=name)
    return found


def _text(file: Path, name: str) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"'{name}' is not UTF-8 text at byte {error.start}",
            hint="convert it, such as with: iconv -f latin1 -t utf-8",
            path=str(file),
        ) from error


def _by_position(documents: Sequence[str], validation: float, test: float) -> dict[str, list[Piece]]:
    """Cut the texts, one behind the other, at two places, each moved to the next white space."""
    total = sum(map(len, documents))
    cuts = [round(total * (1 - validation - test)), round(total * (1 - test)), total]
    parts: dict[str, list[Piece]] = {name: [] for name in ("train", "validation", *(["test"] if test else []))}
    names = iter(parts)
    name, cut, before = next(names), cuts[0], 0
    places = iter(cuts[1:])
    for text in documents:
        start = 0
        while before + len(text) > cut and name != list(parts)[-1]:
            end = max(start, _word_end(text, cut - before))
            if end > start:
                parts[name].append(Piece(text[start:end], ends=end == len(text)))
            start, name, cut = end, next(names), next(places)
        if start < len(text):
            parts[name].append(Piece(text[start:], ends=True))
        before += len(text)
    return parts


def _word_end(text: str, place: int) -> int:
    found = re.compile(r"\s").search(text, max(0, place), max(0, place) + 200)
    return found.start() if found else max(0, place)


def _tokenizer(config: DataConfig, base: Path, texts: Sequence[str]) -> bytes:
    """Return the `tokenizer.json` that `config` names, or that is made of the training part."""
    kind = config.tokenizer or KINDS[0]
    if kind not in KINDS:
        # Marks such as [CLS], which it puts around a text alone, would stand in the middle of a longer one.
        found = msgspec.json.decode(read_tokenizer(base / Path(kind).expanduser()).content)
        return msgspec.json.encode(found | {"post_processor": None})
    try:
        from tokenizers import Regex as Pattern
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ModuleNotFoundError as error:
        raise missing(error, "text") from error
    if kind == "characters":
        known = [END, UNKNOWN, *sorted(set().union(*map(set, texts)))]
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
        tokenizer.train_from_iterator((chunk for text in texts for chunk in _chunks(text)), trainer)
    else:
        tokenizer.add_special_tokens([END])
    return tokenizer.to_str().encode()


class _Encoder:
    """A tokenizer that takes long texts in chunks, as training memory allows."""

    def __init__(self, content: bytes) -> None:
        from tokenizers import Tokenizer

        self._tokenizer: Any = Tokenizer.from_buffer(content)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.end: int | None = self._tokenizer.token_to_id(END)

    def __call__(self, pieces: Sequence[Piece]) -> Ids:
        """Return the tokens of pieces one behind the other, with the end's token behind every whole document."""
        found: list[Ids] = []
        for piece in pieces:
            chunks = _chunks(piece.text)
            while some := list(islice(chunks, 64)):
                encoded = self._tokenizer.encode_batch_fast(some, add_special_tokens=False)
                found += [np.array(one.ids, dtype=np.int32) for one in encoded]
            if piece.ends and self.end is not None:
                found.append(np.array([self.end], dtype=np.int32))
        return np.concatenate(found) if found else np.empty(0, dtype=np.int32)


def _chunks(text: str) -> Iterator[str]:
    """Yield a text in stretches of about `_CHUNK` characters that have together the tokens of the whole."""
    start = 0
    while start < len(text):
        found = _CUT.search(text, start + _CHUNK)
        end = found.start() if found else len(text)
        yield text[start:end]
        start = end


def _blocks(part: str, ids: Ids, context: int) -> Blocks:
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
    return Blocks(ids_nc=ids[:used].reshape(rows, context), next_nc=ids[1 : used + 1].reshape(rows, context))
