"""Write scikit-learn's 1,797 handwritten digits (UCI ML repository, CC BY 4.0) as train.npz and test.npz."""

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "data"
    folder.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    # 17 grey levels become the 256 of ordinary images.
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None, :, :]
    train, test = train_test_split(np.arange(len(images)), test_size=360, random_state=7, stratify=digits.target)
    for name, rows in (("train", train), ("test", test)):
        np.savez(folder / f"{name}.npz", image=images[rows], label=digits.target[rows])
        print(f"{folder / name}.npz: {len(rows)} images of 8x8")


if __name__ == "__main__":
    main()
