"""Models of one's own as a type checker sees them: right as they stand, and wrong where a line is marked so."""

from dataclasses import dataclass
from typing import Annotated, NamedTuple, TypedDict

import numpy as np

import argosy


class Answer(NamedTuple):
    label: argosy.Text
    score: Annotated[argosy.FP32, argosy.Shape(2)]


class Sentiment(argosy.Model):
    examples = ({"text": "a fine film", "weight": 1.0},)

    def load(self, files: argosy.Files) -> None:
        self.words: set[str] = set(files["words.txt"].decode().split())
        self.folder = str(files.path("data") / "x")

    def predict(self, text: argosy.Text, weight: argosy.FP32) -> Answer:
        if not len(text):
            raise argosy.Refused("there is no text", hint="send one")
        scores = np.array([[len(item), 1.0] for item in text], dtype=np.float32) * weight[:, None]
        return Answer(np.array(["good"] * len(text), dtype=object), scores)


@dataclass
class Box:
    corners: Annotated[argosy.INT32, argosy.Shape(-1, 4)]


class Boxes(argosy.Model):
    def predict(self, image: argosy.Image, row: Annotated[argosy.FP64, argosy.Columns("age", "income")]) -> Box:
        return Box(np.zeros((len(image), 3, 4), dtype=np.int32) + int(row.sum()))


class Row(TypedDict):
    upper: str
    size: int


class Upper(argosy.RowModel):
    def predict(self, text: str, photo: argosy.ImageFile, factor: float) -> Row:
        return {"upper": text.upper(), "size": int(len(photo) * factor)}


class Wrong(argosy.Model):
    def load(self, files: argosy.Files) -> int:  # type: ignore[override]
        return files["words.txt"]  # type: ignore[return-value]

    def predict(self, x: argosy.FP32) -> Answer:
        return x.astype(np.float64)  # type: ignore[return-value]
