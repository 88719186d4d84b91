"""Every family, its samples and its metrics in the loop: two ranks are one process on the whole batch."""

import math

import pytest
import torch

from argosy.core.config import from_plain
from argosy.train.config import TrainConfig
from argosy.train.families import load_family
from argosy.train.fit import training_loss
from argosy.train.inputs import ModelInput
from argosy.train.samples import LanguageSamples, Samples, TextSamples
from ranks import config, largest_difference, train_ranks, train_single

ROWS, VALIDATION = 37, 11


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(low, high, *shape, seed=0):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def classified(x, more=()):
    y = (x.flatten(1).sum(dim=1) > 0).long()
    cut = ROWS
    return Samples(
        x[:cut],
        y[:cut],
        x[cut:],
        y[cut:],
        "classification",
        2,
        more=tuple(m[:cut] for m in more),
        validation_more=tuple(m[cut:] for m in more),
    )


def sequences():
    return classified(draw(ROWS + VALIDATION, 6, 3))


def graphs():
    edges = (draw(ROWS + VALIDATION, 5, 5, seed=1) > 0).double()
    edges = torch.maximum(edges, edges.transpose(1, 2))
    return classified(draw(ROWS + VALIDATION, 5, 4), more=(edges,))


def texts():
    ids, lengths = whole(1, 20, ROWS + VALIDATION, 9).int(), whole(1, 10, ROWS + VALIDATION, seed=2)
    y = (ids[:, 0] > 10).long()
    return TextSamples(
        ids[:ROWS],
        y[:ROWS],
        ids[ROWS:],
        y[ROWS:],
        "classification",
        2,
        lengths=lengths[:ROWS],
        validation_lengths=lengths[ROWS:],
        vocabulary=20,
        pad_id=0,
        max_length=9,
    )


def language():
    """Each token is followed by the next number but for a few."""
    start = whole(0, 12, ROWS + VALIDATION, 1)
    ids = ((start + torch.arange(9)) % 12 + (whole(0, 20, ROWS + VALIDATION, 9, seed=1) == 0).long()) % 12
    x, y = ids[:, :-1].int(), ids[:, 1:].int()
    return LanguageSamples(x[:ROWS], y[:ROWS], x[ROWS:], y[ROWS:], "language-model", 12)


FAMILIES = {
    "lstm": (sequences, {"hidden": 5, "bidirectional": True}),
    "lstm of texts": (texts, {"hidden": 5, "embedding": 4, "bidirectional": True, "layers": 2}),
    "transformer": (sequences, {"width": 8, "heads": 2, "dropout": 0.0}),
    "transformer of texts": (texts, {"width": 8, "heads": 2, "dropout": 0.0}),
    "gpt": (language, {"width": 16, "layers": 2, "heads": 2}),
    "graph": (graphs, {"width": 6, "kind": "gin"}),
}


def builder(name, samples, options):
    family = load_family(name.partition(" ")[0])

    def build():
        torch.manual_seed(1)
        return family.build(from_plain(options, family.options, where=name), samples.given, samples.outputs).double()

    return build


@pytest.mark.capability("T1", "B1")
@pytest.mark.parametrize("name", FAMILIES)
def test_two_ranks_equal_one_process_whatever_the_family(name):
    make, options = FAMILIES[name]
    samples = make()
    build = builder(name, samples, options)
    # The loss makes unequal use of samples, and the last batch of 37 has 5, for two ranks 2 and 3.
    asked = config(optimizer="adamw", batch_size=16, schedule="one-cycle", learning_rate=0.01)
    alone, position = train_single(build, samples, asked)
    (first, told), (second, _) = train_ranks(build, samples, asked, 2)
    assert largest_difference(alone, first) < 1e-9
    assert largest_difference(first, second) == 0.0
    for one, other in zip(position.history, told.history, strict=True):
        for metric in one.keys() - {"seconds"}:
            assert one[metric] == pytest.approx(other[metric], rel=1e-9), metric


@pytest.mark.capability("T6", "B1")
def test_a_language_model_learns_what_follows_and_tells_its_perplexity():
    samples = language()
    build = builder("gpt", samples, FAMILIES["gpt"][1])
    _, position = train_single(build, samples, config(epochs=25, batch_size=8, learning_rate=0.01, clip=1.0))
    first, last = position.history[0], position.history[-1]
    assert first["perplexity"] == pytest.approx(math.exp(first["validation_loss"]), rel=1e-6)
    assert 12 > first["perplexity"] > 2 * last["perplexity"]
    assert position.best == min(entry["perplexity"] for entry in position.history)


@pytest.mark.capability("T6")
def test_rare_classes_are_found_when_weights_are_balanced():
    y = torch.zeros(200, dtype=torch.int64)
    y[:10] = 1
    x = draw(200, 2) + 1.2 * y[:, None]
    samples = Samples(x, y, x, y, "classification", 2, labels=("usual", "rare"))
    build = builder("mlp", samples, {"hidden": [4]})

    def found(**weights):
        asked = config(epochs=30, batch_size=50, learning_rate=0.01, **weights)
        model, _ = train_single(build, samples, asked)
        with torch.no_grad():
            return int((model(x[:10]).argmax(dim=1) == 1).sum())

    assert found(class_weights="balanced") >= 7
    assert found() <= 3


def test_what_is_minimized_is_weighed_and_what_is_validated_is_not():
    y = torch.tensor([0, 0, 0, 1])
    samples = Samples(draw(4, 2), y, draw(4, 2), y, "classification", 2, labels=("a", "b"))
    outputs, rows = draw(4, 2), torch.arange(4)
    weighed = training_loss(TrainConfig(class_weights={"b": 3.0}), samples)(outputs, rows)
    plain = training_loss(TrainConfig(), samples)(outputs, rows)
    assert (weighed / plain).tolist() == pytest.approx([1, 1, 1, 3])


@pytest.mark.parametrize(
    ("samples", "given"),
    [
        (sequences, ModelInput(shape=(6, 3))),
        (graphs, ModelInput(shape=(5, 4), more=((5, 5),))),
        (texts, ModelInput(shape=(9,), vocabulary=20)),
        (language, ModelInput(shape=(8,), vocabulary=12)),
    ],
)
def test_samples_say_what_a_model_is_given(samples, given):
    made = samples()
    assert made.given == given
    batch = made.batch(torch.tensor([3, 5]))
    example = made.given.example(torch.float64)
    assert len(batch) == len(example)
    assert [array.dtype for array in batch] == [array.dtype for array in example]
