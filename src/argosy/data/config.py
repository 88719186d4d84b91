"""The `[data]` section: which file, which column is the answer, how it is split and prepared. Nothing heavy here."""

from typing import Literal

from argosy.core.config import Config
from argosy.core.errors import InvalidInput

PREPARATIONS = ("impute", "standardize", "minmax", "scale")
"""What `prepare` may name."""


class DataConfig(Config, frozen=True, kw_only=True):
    """Where the data is and what becomes of it before a model sees it."""

    train: str
    """CSV, JSON Lines, Parquet or NPZ file, or a folder of images or of texts (`.txt`), a folder per class; relative to
    `argosy.toml`, or a URL of an object store."""
    test: str = ""
    """A file of its own for the test part; empty: a share of `train`."""
    label: str = "label"
    """The column (or NPZ array) that holds the answer. Folders of images or texts have their folders' names instead."""
    task: Literal["auto", "classification", "regression", "language-model"] = "auto"
    """auto: text, truth values and few whole numbers are classes, everything else is a quantity. language-model:
    `train` is a text file or a folder of them, and what follows is learned; the parts are cut by position."""
    prepare: list[str] | None = None
    """Steps fitted on the training part: standardize, minmax, scale (bytes to 0..1), impute (the median where a number
    is missing; tables always have it). Default: standardize for numbers, scale for bytes."""
    validation: float = 0.1
    """Share of the rows kept for choosing between candidates; above 0, below 1."""
    test_share: float = 0.2
    """Share of the rows kept for the final judgement; above 0, below 1; unused with a test file."""
    seed: int = 0
    """Decides which row goes where; 0 or more."""
    columns: list[str] = []  # noqa: RUF012  # msgspec copies defaults
    """Use only these columns; empty: all but the label."""
    drop: list[str] = []  # noqa: RUF012
    """Leave these columns out."""
    image_size: int = 0
    """Pixels per side every image is resized to; 0: all images must have one size already."""

    text: str = ""
    """The column of texts to learn from, which are split into tokens. Empty: where texts that all differ are the only
    thing to learn from, that column."""
    tokenizer: str = ""
    """`wordpiece` or `bpe`: trained on the training part; or a `tokenizer.json`, or a folder with one. Empty: that of
    the folder `[model] init`, otherwise `wordpiece`. For a language model `bpe` (the default), `bytes` or
    `characters`, or a file."""
    vocabulary: int = 8000
    """Most tokens of a tokenizer that is trained."""
    max_length: int = 0
    """Most tokens of a text, marks like [CLS] included; what goes beyond is cut off. 0: what `[model] init` reads, at
    most 512, otherwise 256."""

    context: int = 128
    """Tokens that a language model reads at once, and that make one sample."""

    def check(self) -> None:
        """Raise InvalidInput for values that can't work, before any file is opened."""
        if not self.train:
            raise InvalidInput("[data] train is empty", hint='name a file, such as train = "data.csv"')
        if self.test == self.train:
            raise InvalidInput(
                f"[data] test and train are the same file, '{self.train}': a model would be judged on what it learned",
                hint="leave test out, and a share of the rows is kept for it",
            )
        shares = {"validation": self.validation, "test_share": 0.0 if self.test else self.test_share}
        for name, share in shares.items():
            if not 0.0 <= share < 1.0 or (share == 0.0 and not (name == "test_share" and self.test)):
                raise InvalidInput(
                    f"[data] {name} is {share:g}; it must be above 0 and below 1",
                    hint="0.1 for validation and 0.2 for test_share are usual",
                )
        if sum(shares.values()) >= 1.0:
            raise InvalidInput(
                f"[data] validation {self.validation:g} and test_share {self.test_share:g} leave no rows to train on",
                hint="their sum must be below 1",
            )
        if self.seed < 0:
            raise InvalidInput(f"[data] seed is {self.seed}; it must be 0 or more")
        if not 0 <= self.image_size <= 4096:
            raise InvalidInput(f"[data] image_size is {self.image_size}; it must be between 1 and 4096 pixels, or 0")
        unknown = [name for name in self.prepare or () if name not in PREPARATIONS]
        if unknown:
            raise InvalidInput(f"[data] prepare names {unknown[0]!r}; known are: {', '.join(PREPARATIONS)}")
        if self.prepare is not None and {"standardize", "minmax"} <= set(self.prepare):
            raise InvalidInput("[data] prepare names both 'standardize' and 'minmax'", hint="choose one")
        if self.label in self.columns or self.label in self.drop:
            raise InvalidInput(f"[data] label '{self.label}' also stands in columns or drop", hint="take it out there")
        if self.text:
            self._check_text()
        if self.task == "language-model":
            self._check_language()
        if not 100 <= self.vocabulary <= 1_000_000:
            raise InvalidInput(f"[data] vocabulary is {self.vocabulary}; it must be between 100 and 1,000,000 tokens")
        if self.max_length and not 4 <= self.max_length <= 8192:
            raise InvalidInput(f"[data] max_length is {self.max_length}; it must be between 4 and 8,192 tokens, or 0")

    def _check_language(self) -> None:
        unused = {"text": self.text, "prepare": self.prepare, "columns": self.columns, "drop": self.drop}
        for name, value in unused.items():
            if value:
                raise InvalidInput(
                    f"[data] {name} = {value!r} is for tables, but a language model learns from running text",
                    hint=f"leave {name} out, or set task to classification or regression",
                )
        if self.tokenizer == "wordpiece":
            raise InvalidInput(
                "[data] tokenizer = 'wordpiece' loses letters and spaces, so a language model could not write with it",
                hint='use "bpe", "bytes", "characters" or a tokenizer.json',
            )
        if not 2 <= self.context <= 8192:
            raise InvalidInput(f"[data] context is {self.context}; it must be between 2 and 8,192 tokens")

    def _check_text(self) -> None:
        if self.text == self.label:
            raise InvalidInput(f"[data] text and label both name the column {self.text!r}", hint="name the other one")
        if self.columns or self.text in self.drop:
            field = "drop" if self.text in self.drop else "columns"
            raise InvalidInput(
                f"[data] text = {self.text!r} is what is learned from, so {field} says too much",
                hint=f"leave {field} out; other columns are not used beside a text",
            )
        if self.prepare is not None:
            raise InvalidInput(
                "[data] prepare is for numbers, but a text is learned from", hint="leave prepare out, or text"
            )
