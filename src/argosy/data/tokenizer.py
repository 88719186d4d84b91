"""Tokenizers for texts that are learned from: read from a file, or trained on the training part.

Both end as a Hugging Face `tokenizer.json`, a file of the version, which the step `Tokenize` runs. Needs `tokenizers`.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from argosy.core.errors import InvalidInput, NotFound
from argosy.core.plugins import missing

KINDS = ("wordpiece", "bpe")
"""What can be trained: WordPiece as BERT has it (lower case), or BPE over bytes as GPT-2 has it (nothing is lost)."""
TOKENIZER_FILE = "tokenizer.json"
MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
"""The first tokens of every tokenizer trained here; a text stands between [CLS] and [SEP]."""
DEFAULT_LENGTH = 256
_PADS = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>")
# Where letters inside of words are moved to while pieces are found: Unicode's planes for private use.
_INSIDE, _MOST_LETTERS = 0xF0000, 0x1FFFD
# Rarer pieces say nothing that a network could learn from few texts.
_LEAST = 2


class TextTokenizer(msgspec.Struct, frozen=True, kw_only=True):
    """A tokenizer and how it is used."""

    content: bytes
    """Of its `tokenizer.json`."""
    pad_id: int = 0
    end_id: int | None = None
    """The token that the model it belongs to knows behind a text; None: it has none, or its name says which."""
    max_length: int = DEFAULT_LENGTH
    """After how many tokens texts are cut unless something else is asked for, marks included."""
    most_tokens: int = 0
    """What the model it belongs to can read; 0: no limit is known."""
    prefix: str = ""
    """What is put before every text."""


def train_tokenizer(texts: Iterable[str], kind: str, vocabulary: int) -> TextTokenizer:
    """Train a tokenizer of the given kind on texts. Equal texts give equal bytes.

    It has at most `vocabulary` tokens, fewer when the texts have no more pieces that occur twice. Unknown letters
    become [UNK] for wordpiece; bpe knows every byte.
    Sources: Schuster and Nakajima 2012 (WordPiece), Sennrich et al. 2016 (BPE), both as `tokenizers` implements them.
    """
    try:
        from tokenizers import processors
    except ModuleNotFoundError as error:
        raise missing(error, "text") from error
    tokenizer = (_wordpiece if kind == "wordpiece" else _byte_pairs)(texts, vocabulary)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(mark, tokenizer.token_to_id(mark)) for mark in ("[CLS]", "[SEP]")],
    )
    return TextTokenizer(content=tokenizer.to_str().encode(), pad_id=tokenizer.token_to_id("[PAD]"))


def _byte_pairs(texts: Iterable[str], vocabulary: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=_LEAST,
        special_tokens=list(MARKS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _wordpiece(texts: Iterable[str], vocabulary: int) -> Any:
    """Train word pieces, which is BPE whose letters inside of a word are others than those it begins with.

    The library's own trainer numbers these in the order of a table that is another one each time, and breaks ties by
    the numbers. So letters inside of words are moved to another part of Unicode, plain BPE numbers all in their
    order, and the pieces get their ## afterwards.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106 - a token of a text
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    words: Counter[str] = Counter()
    for text in texts:
        normal = tokenizer.normalizer.normalize_str(text)
        words.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))
    inside = {letter: chr(_INSIDE + place) for place, letter in enumerate(sorted(set("".join(words)))[:_MOST_LETTERS])}
    letters = {moved: letter for letter, moved in inside.items()}
    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, min_frequency=_LEAST, special_tokens=list(MARKS), show_progress=False
    )
    moved = ((word[0] + "".join(inside.get(letter, "") for letter in word[1:]), n) for word, n in sorted(words.items()))
    pairs.train_from_iterator((" ".join([word] * n) for word, n in moved), trainer)

    def named(piece: str) -> str:
        if piece in MARKS:
            return piece
        return ("##" if piece[0] in letters else "") + "".join(letters.get(letter, letter) for letter in piece)

    vocab = {named(piece): number for piece, number in pairs.get_vocab().items()}
    tokenizer.model = models.WordPiece(vocab, unk_token="[UNK]")  # noqa: S106
    tokenizer.add_special_tokens(list(MARKS))
    return tokenizer


def read_tokenizer(path: Path, *, lowercase: bool = False) -> TextTokenizer:
    """Read a `tokenizer.json`, or the one in a folder. Raises NotFound or InvalidInput that names it."""
    file = path / TOKENIZER_FILE if path.is_dir() else path
    if not file.is_file():
        raise NotFound(
            f"there is no tokenizer at '{file}'",
            hint="save it with a fast tokenizer: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            if path.is_dir()
            else 'name a tokenizer.json, or a kind to train: tokenizer = "wordpiece"',
        )
    tokenizer = _load(file.read_bytes(), str(file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if lowercase:
        from tokenizers import normalizers

        inner = [tokenizer.normalizer] if tokenizer.normalizer is not None else []
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *inner])
    pads = [tokenizer.token_to_id(name) for name in _PADS]
    return TextTokenizer(content=tokenizer.to_str().encode(), pad_id=next((pad for pad in pads if pad is not None), 0))


def vocabulary_size(content: bytes) -> int:
    """Return one more than the greatest number a token has: the rows that a table of vectors needs."""
    return 1 + max(_load(content, TOKENIZER_FILE).get_vocab(with_added_tokens=True).values(), default=0)


def _load(content: bytes, name: str) -> Any:
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        raise missing(error, "text") from error
    try:
        return Tokenizer.from_buffer(content)
    except BaseException as error:
        # A panic of the Rust library is no Exception.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise InvalidInput(f"'{name}' can't be read as a tokenizer: {str(error)[:300]}") from error
        raise
