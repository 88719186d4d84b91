"""Write scikit-learn's 1,797 handwritten digits (UCI ML repository, CC BY 4.0) as digits.npz, which is here already."""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits


def main() -> None:
    digits = load_digits()
    path = Path(__file__).parent / "digits.npz"
    np.savez_compressed(path, pixels=digits.data.astype(np.uint8), label=digits.target.astype(np.uint8))
    print(f"{path}: {len(digits.data)} digits of 64 pixels with 17 grey levels")


if __name__ == "__main__":
    main()
