"""Small texts that a model can learn: sets of them by class, and running text that can be foretold."""

import csv
import random

import numpy as np

LABELS = ("apple", "berry", "cherry")
"""A text's label begins with the letter that stands in it more often than the other two."""


def sentences(n=120, *, seed=0, longest=9):
    """Return texts of words of one letter, one to `longest` of them around their own, and their labels."""
    draw = np.random.default_rng(seed)
    texts, labels = [], []
    for row in range(n):
        label = LABELS[row % len(LABELS)]
        words = [*draw.choice(list("defghij"), size=draw.integers(1, longest)), label[0], label[0]]
        texts.append(" ".join(draw.permutation(words)) + ".")
        labels.append(label)
    return texts, labels


def write_csv(path, texts, labels, *, text="text", label="label", **more):
    """Write a table with columns of texts and labels, and further ones."""
    with path.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow([*more, text, label])
        rows.writerows(zip(*more.values(), texts, labels, strict=True))
    return path


def write_folder(root, texts, labels):
    """Write each text into a file of its own, in a folder of its class."""
    for number, (text, label) in enumerate(zip(texts, labels, strict=True)):
        (root / label).mkdir(parents=True, exist_ok=True)
        (root / label / f"{number:04d}.txt").write_text(text)
    return root


WORDS = (
    ("the", "a"),
    ("cat", "dog", "horse"),
    ("sat on", "ran to", "saw"),
    ("the", "a"),
    ("big", "old"),
    ("red barn.",),
)


def verses(count):
    """Return sentences that can be foretold but for the choice of words."""
    draw = random.Random(1)
    return " ".join(" ".join(draw.choice(words) for words in WORDS) for _ in range(count))
