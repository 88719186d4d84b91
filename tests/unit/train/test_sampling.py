"""Texts that are drawn from a model: the same seed the same text, and only from what was asked for."""

from collections import Counter
from itertools import islice

import pytest
import torch
from torch import nn

from argosy.core.errors import InvalidInput
from argosy.train.families.gpt import GptOptions, build
from argosy.train.inputs import ModelInput
from argosy.train.next_token import NextToken
from argosy.train.sampling import continue_text, next_tokens

VOCABULARY = 20


def gpt(context=8):
    torch.manual_seed(0)
    model = build(
        GptOptions(width=16, layers=1, heads=2), ModelInput(shape=(context,), vocabulary=VOCABULARY), VOCABULARY
    )
    return model.eval()


class Fixed(nn.Module):
    """Says the same of every next token, and how much it was shown."""

    def __init__(self, probabilities):
        super().__init__()
        self.logits = torch.tensor(probabilities).log()
        self.seen = []

    def forward(self, ids, mask):
        self.seen.append(ids[0].tolist())
        assert mask.tolist() == [[1] * ids.shape[1]]
        return self.logits.expand(1, ids.shape[1], -1)


def drawn(model, count, start=(1,), context=8, **options):
    return list(islice(next_tokens(model, start, context=context, **options), count))


@pytest.mark.capability("B1")
def test_the_same_seed_draws_the_same_and_another_one_something_else():
    model = gpt()
    assert drawn(model, 30, seed=4) == drawn(model, 30, seed=4)
    assert drawn(model, 30, seed=4) != drawn(model, 30, seed=5)


def test_tokens_are_drawn_as_often_as_the_model_says():
    counts = Counter(drawn(Fixed([0.5, 0.3, 0.2]), 4000))
    # Three standard deviations of a share of 4,000 draws are at most 0.024.
    assert [counts[n] / 4000 for n in range(3)] == pytest.approx([0.5, 0.3, 0.2], abs=0.024)


def test_temperature_sharpens_and_0_takes_the_likeliest():
    model = Fixed([0.3, 0.5, 0.2])
    assert set(drawn(model, 50, temperature=0.0)) == {1}
    assert set(drawn(model, 50, temperature=1e-4)) == {1}
    hot = Counter(drawn(model, 4000, temperature=1e6))
    assert min(hot.values()) / 4000 == pytest.approx(1 / 3, abs=0.024)


def test_top_k_never_draws_what_is_less_likely():
    assert set(drawn(Fixed([0.4, 0.1, 0.2, 0.3]), 300, top_k=2)) == {0, 3}
    assert set(drawn(Fixed([0.4, 0.1, 0.2, 0.3]), 300, top_k=9)) == {0, 1, 2, 3}


def test_the_model_sees_its_context_and_no_more():
    model = Fixed([0.0, 1.0])
    drawn(model, 4, start=(0, 0, 0), context=4)
    assert model.seen == [[0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1]]


@pytest.mark.parametrize(("start", "options"), [((), {}), ((1,), {"temperature": -1.0}), ((1,), {"top_k": -1})])
def test_an_impossible_beginning_is_refused(start, options):
    with pytest.raises(InvalidInput):
        drawn(gpt(), 1, start=start, **options)


def test_a_text_goes_on_behind_its_prompt_and_stops_at_the_end():
    letters = "abcdefghij"
    model = Fixed([0.0] * 3 + [1.0] + [0.0] * 6)
    options = {
        "encode": lambda t: [letters.index(c) for c in t],
        "decode": lambda ids: "".join(letters[i] for i in ids),
    }
    assert continue_text(model, "ab", context=8, tokens=4, **options) == "dddd"
    assert continue_text(model, "ab", context=8, tokens=4, end=3, **options) == ""


@pytest.mark.capability("B1")
def test_the_served_form_answers_with_the_next_token_and_the_texts_own_surprise():
    model = gpt()
    ids = torch.tensor([[3, 7, 1, 9, 2], [5, 6, 0, 0, 0], [4, 0, 0, 0, 0]])
    mask = torch.tensor([[1] * 5, [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    model.requires_grad_(False)
    logits, nats = NextToken(model)(ids, mask)
    for row, length in enumerate((5, 2, 1)):
        own = ids[row : row + 1, :length]
        said = model(own)[0]
        assert torch.allclose(logits[row], said[-1], atol=1e-5)
        surprise = nn.functional.cross_entropy(said[:-1], own[0, 1:]) if length > 1 else torch.tensor(0.0)
        assert float(nats[row]) == pytest.approx(float(surprise), abs=1e-5)
