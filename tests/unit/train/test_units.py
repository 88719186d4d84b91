"""What is gathered together when a model is divided."""

from torch import nn

from argosy.train.families import load_family
from argosy.train.inputs import ModelInput
from argosy.train.units import units


def names(model):
    found = units(model)
    return [name for name, module in model.named_modules() if any(module is unit for unit in found)]


def test_blocks_that_repeat_and_large_layers_are_units():
    blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2))
    model = nn.ModuleDict({"first": nn.Linear(4, 4), "blocks": blocks, "last": nn.Linear(600, 600)})
    assert names(model) == ["blocks.0", "blocks.1", "last"]


def test_a_large_layer_within_a_block_stays_with_it():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(600, 600), nn.ReLU()) for _ in range(2)))
    assert names(model) == ["0", "1"]


def test_what_shares_a_weight_with_others_is_no_unit():
    model = nn.Sequential(nn.Linear(600, 600), nn.ReLU(), nn.Linear(600, 600))
    model[2].weight = model[0].weight
    assert names(model) == []


def test_a_module_that_is_used_twice_is_no_unit():
    layer = nn.Linear(600, 600)
    assert names(nn.Sequential(layer, nn.ReLU(), layer)) == []


def test_layers_whose_weights_torch_reads_itself_are_no_units():
    assert names(nn.Sequential(nn.MultiheadAttention(600, 4), nn.TransformerEncoderLayer(600, 4))) == []
    assert names(nn.Sequential(nn.Embedding(9000, 600))) == []


def test_the_blocks_of_a_gpt_are_its_units():
    family = load_family("gpt")
    model = family.build(family.options(layers=3), ModelInput(shape=(8,), vocabulary=20), 20)
    assert names(model) == ["blocks.0", "blocks.1", "blocks.2"]
