"""What the stages do otherwise with a language model, whose data is blocks of tokens."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from argosy.data.dataset import Dataset
from argosy.data.language import END
from argosy.pipeline.report.training import Sample

if TYPE_CHECKING:
    from torch import nn

Arrays = dict[str, npt.NDArray[Any]]

_TEXTS = 16
_GIVEN, _WRITTEN = 64, 150
"""Characters of a prompt, and tokens that are written behind it: some lines, in seconds."""
_TEMPERATURE, _TOP_K = 0.8, 40


def is_language(dataset: Dataset) -> bool:
    """Return whether the data set is running text."""
    return dataset.task == "language-model"


def texts_of_all_lengths(dataset: Dataset) -> Arrays:
    """Return beginnings of blocks of the validation part, from one token to whole ones, padded as an endpoint does."""
    part = dataset.splits["validation"]
    blocks = part.inputs["input_ids"][: min(len(part), _TEXTS)]
    # At least four, the longest first: an export is traced with the first ones.
    blocks = np.concatenate([blocks] * -(-4 // len(blocks)))
    context = blocks.shape[1]
    lengths = np.linspace(context, 1, len(blocks)).astype(np.int64)
    mask = (np.arange(context) < lengths[:, None]).astype(np.int64)
    assert dataset.tokenize is not None
    return {"input_ids": np.where(mask == 1, blocks, dataset.tokenize.pad_id).astype(np.int64), "attention_mask": mask}


def written(module: "nn.Module", dataset: Dataset) -> list[Sample]:
    """Let a trained model go on from the beginnings of two blocks of the validation part."""
    from tokenizers import Tokenizer

    from argosy.train.sampling import continue_text

    assert dataset.tokenize is not None
    tokenizer: Any = Tokenizer.from_buffer(dataset.files[dataset.tokenize.file])
    blocks = dataset.splits["validation"].inputs["input_ids"]
    found = []
    for seed, row in enumerate((0, len(blocks) // 2)):
        prompt = _prompt(tokenizer.decode(blocks[row].tolist(), skip_special_tokens=True))
        text = continue_text(
            module,
            prompt,
            encode=lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
            decode=lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)),
            context=blocks.shape[1],
            tokens=_WRITTEN,
            temperature=_TEMPERATURE,
            top_k=_TOP_K,
            seed=seed,
            end=tokenizer.token_to_id(END) or dataset.tokenize.pad_id or None,
        )
        how = f"{_WRITTEN} tokens at most, temperature {_TEMPERATURE:g}, out of the {_TOP_K} likeliest, seed {seed}"
        found.append(Sample(prompt=prompt, text=text, how=how))
    return found


def _prompt(text: str) -> str:
    """Return the beginning of a text, which may begin in the middle of a word, up to a word's end."""
    whole = text.lstrip("\ufffd").partition(" ")[2].lstrip() or text
    return whole[:_GIVEN].rpartition(" ")[0] or whole[:_GIVEN] or "\n"
