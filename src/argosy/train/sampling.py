"""Texts from a language model: token after token, drawn from what it says comes next.

Shape suffixes: v vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from argosy.core.errors import InvalidInput


def next_tokens(
    model: nn.Module,
    start: Sequence[int],
    *,
    context: int,
    temperature: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
) -> Iterator[int]:
    """Yield the tokens that follow `start`, without end; the same seed gives the same ones.

    `model` maps token numbers and a mask, [1, t] with t at most `context`, to logits [1, t, v]; it sees the last
    `context` tokens.
    `temperature` above 1 makes rare tokens likelier, below 1 less likely; 0 takes the likeliest. `top_k` draws among
    the k likeliest only; 0 among all (Fan et al. 2018, section 5.4). The model is left in inference mode. Raises
    InvalidInput for an empty start or a temperature below 0.
    """
    if not start:
        raise InvalidInput("a text can't be continued without a first token", hint="give a prompt of a letter or more")
    if temperature < 0 or top_k < 0:
        raise InvalidInput(f"temperature {temperature:g} and top_k {top_k} must be 0 or more")
    draw = torch.Generator().manual_seed(seed)
    tokens = list(start)
    model.eval()
    while True:
        with torch.inference_mode():
            ids = torch.tensor([tokens[-context:]], dtype=torch.int64)
            found = model(ids, torch.ones_like(ids))
        tokens.append(_drawn(found[0, -1].double(), temperature, top_k, draw))
        yield tokens[-1]


def _drawn(logits_v: Tensor, temperature: float, top_k: int, draw: torch.Generator) -> int:
    if temperature == 0:
        return int(logits_v.argmax())
    if top_k and top_k < len(logits_v):
        least = logits_v.topk(top_k).values[-1]
        logits_v = logits_v.masked_fill(logits_v < least, -torch.inf)
    # The largest logit is taken off first, so that a tiny temperature can't overflow.
    probabilities_v = torch.softmax((logits_v - logits_v.max()) / temperature, dim=0)
    return int(torch.multinomial(probabilities_v, 1, generator=draw))


def continue_text(
    model: nn.Module,
    prompt: str,
    *,
    encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
    context: int,
    tokens: int = 200,
    temperature: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    end: int | None = None,
) -> str:
    """Return what a language model writes behind `prompt`: at most `tokens` tokens, fewer if it says `end` itself.

    `encode` and `decode` are the tokenizer's. The rest is as for `next_tokens`.
    """
    start = encode(prompt)
    made: list[int] = []
    following = next_tokens(model, start, context=context, temperature=temperature, top_k=top_k, seed=seed)
    for _, token in zip(range(tokens), following, strict=False):
        if token == end:
            break
        made.append(token)
    # Decoded together: a letter may be made of the last bytes of one token and the first of the next.
    whole, known = decode([*start, *made]), decode(start)
    return whole[len(known) :] if whole.startswith(known) else decode(made)
