"""What every peer runs behind its own front: the same ONNX file on the same runtime, and for texts the tokenizer.

This file and the servers beside it run in the contenders' environments, so they import nothing of Argosy. What to serve
comes from the variable BENCH, a JSON object: `model`, `folder`, `port` and the contender's settings.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

Row = np.ndarray[Any, np.dtype[np.float32]]
Input = Row | str | bytes
"""One request: 64 numbers (mlp), a text (minilm), or an image's pixels as raw float32 (resnet18)."""

IMAGE = (3, 224, 224)
MAX_TOKENS = 256
"""As the model's own `sentence_bert_config.json` says; no text of the benchmark is cut."""


def settings() -> dict[str, Any]:
    """Return what the benchmark asks of this server."""
    return json.loads(os.environ["BENCH"])


class Engine:
    """The model of one folder: `model.onnx` and, for texts, `tokenizer.json`."""

    def __init__(self, model: str, folder: str, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        if threads:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        self.model = model
        self._session = onnxruntime.InferenceSession(
            str(Path(folder, "model.onnx")), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = [(arg.name, arg.type) for arg in self._session.get_inputs()]
        self._output = self._session.get_outputs()[0].name
        self._tokenizer = None
        if model == "minilm":
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
            self._tokenizer.enable_truncation(MAX_TOKENS)
            self._tokenizer.enable_padding()

    def __call__(self, batch: Sequence[Input]) -> Row:
        """Return one row of the answer per request; texts of a batch are padded to its longest, as usual."""
        feed = self._feed(batch)
        found = self._session.run([self._output], feed)[0]
        return pooled(found, feed["attention_mask"]) if found.ndim == 3 else found

    def _feed(self, batch: Sequence[Input]) -> dict[str, np.ndarray[Any, Any]]:
        if self._tokenizer is not None:
            return self._tokens([text.decode() if isinstance(text, bytes) else str(text) for text in batch])
        (name, _) = self._inputs[0]
        if self.model == "resnet18":
            rows = [np.frombuffer(pixels, np.float32).reshape(IMAGE) for pixels in batch]
        else:
            rows = [np.asarray(row, np.float32) for row in batch]
        return {name: rows[0][None] if len(rows) == 1 else np.stack(rows)}

    def _tokens(self, texts: list[str]) -> dict[str, np.ndarray[Any, Any]]:
        assert self._tokenizer is not None
        one = len(texts) == 1
        encoded = [self._tokenizer.encode(texts[0])] if one else self._tokenizer.encode_batch(texts)
        found = {
            "input_ids": np.array([tokens.ids for tokens in encoded], np.int64),
            "attention_mask": np.array([tokens.attention_mask for tokens in encoded], np.int64),
        }
        found["token_type_ids"] = np.zeros_like(found["input_ids"])
        return {name: found[name] for name, _ in self._inputs}


def pooled(hidden: Row, mask: np.ndarray[Any, Any]) -> Row:
    """Return the mean over each text's tokens, of length 1: how sentence-transformers makes an embedding.

    hidden: texts x tokens x features; mask: texts x tokens, 1 for a token and 0 for padding.
    """
    weights = mask.astype(np.float32)
    mean = np.matmul(weights[:, None], hidden)[:, 0] / weights.sum(1, keepdims=True)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)
