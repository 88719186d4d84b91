import pytest
import torch
from torch import nn

from argosy.core.errors import InvalidInput
from argosy.train.config import LoraConfig, ModelConfig
from argosy.train.lora import LoraLinear, adapt, merged_weights, trained_share
from argosy.train.models import build_model, save_weights
from ranks import classes, config, largest_difference, train_ranks, train_single

pytestmark = pytest.mark.capability("T9")


def network(seed=0, dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16, bias=False), nn.Tanh(), nn.Linear(16, 3)
        ).to(dtype)


def adapted(*, seed=0, rank=2, targets=(), head=None, **more):
    model = network(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        adapt(model, LoraConfig(rank=rank, targets=list(targets), **more), head)
    return model


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_an_adapted_model_begins_as_it_was_and_trains_factors_and_head_alone():
    model, x = adapted(), torch.randn(5, 6, dtype=torch.float64)
    assert torch.equal(model(x), network()(x))
    assert trained(model) == {"4.weight", "4.bias", "0.lora_down", "0.lora_up", "2.lora_down", "2.lora_up"}


def test_the_factors_add_alpha_over_rank_times_their_product():
    torch.manual_seed(0)
    layer = nn.Linear(5, 4)
    adapted_layer = LoraLinear.around(layer, 2, 6.0)
    with torch.no_grad():
        adapted_layer.lora_up.normal_()
    x = torch.randn(3, 5)
    expected = layer(x) + 6.0 / 2 * x @ adapted_layer.lora_down.T @ adapted_layer.lora_up.T
    torch.testing.assert_close(adapted_layer(x), expected)
    torch.testing.assert_close(x @ adapted_layer.merged().T + layer.bias, expected)


def test_training_leaves_frozen_weights_alone_and_the_merged_model_answers_as_the_adapted_one():
    samples = classes(n=60)
    model, position = train_single(adapted, samples, config(epochs=8, learning_rate=0.02))
    frozen = network().state_dict()
    for name in ("0.weight", "0.bias", "2.weight"):
        assert torch.equal(model.state_dict()[name], frozen[name])
    assert position.history[-1]["loss"] < position.history[0]["loss"]
    merged = network(seed=1)
    assert merged_weights(model).keys() == frozen.keys()
    merged.load_state_dict(merged_weights(model))
    assert not torch.equal(merged[0].weight, frozen["0.weight"])
    torch.testing.assert_close(merged(samples.x), model(samples.x), rtol=0, atol=1e-12)


@pytest.mark.capability("T1")
def test_two_ranks_adapt_as_one_process_does():
    samples, asked = classes(n=50), config(epochs=2, batch_size=16, clip=0.5)
    alone, _ = train_single(adapted, samples, asked)
    (one, _), (other, _) = train_ranks(adapted, samples, asked, 2)
    assert largest_difference(one, other) == 0.0
    assert largest_difference(one, alone) < 1e-9


def test_merging_what_is_not_adapted_gives_its_own_weights():
    model = network()
    assert merged_weights(model).keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in merged_weights(model).items())


@pytest.mark.parametrize(
    ("targets", "layers"),
    [((), {"0", "2"}), (("0",), {"0"}), (("[02]",), {"0", "2"}), (("4",), {"4"})],
)
def test_targets_are_ends_of_names_or_patterns(targets, layers):
    model = adapted(targets=targets, head={"0.weight"} if targets == ("4",) else None)
    assert {name for name, module in model.named_modules() if isinstance(module, LoraLinear)} == layers


def test_a_target_that_no_layer_is_called_is_told_with_the_names_there_are():
    with pytest.raises(InvalidInput, match=r"targets has 'query', which no linear layer is called; .* called: 0, 2"):
        adapted(targets=["query"])
    with pytest.raises(InvalidInput, match="finds no layer to adapt"):
        adapt(nn.Sequential(nn.Linear(3, 2)), LoraConfig())
    with pytest.raises(InvalidInput, match="this model has none") as caught:
        adapt(nn.Conv2d(1, 2, 3), LoraConfig())
    assert caught.value.code == "no_parameters"


def test_layers_that_share_their_weight_are_left_alone():
    model = nn.ModuleDict(
        {"table": nn.Embedding(7, 4), "out": nn.Linear(4, 7), "in": nn.Linear(4, 4), "head": nn.Linear(4, 2)}
    )
    model["out"].weight = model["table"].weight
    adapt(model, LoraConfig())
    assert {name for name, module in model.named_modules() if isinstance(module, LoraLinear)} == {"in"}


def test_the_share_that_is_trained_is_told_without_counting_factors_as_the_models():
    model = adapted(rank=1)
    total = 6 * 16 + 16 + 16 * 16 + 16 * 3 + 3
    count = 16 * 3 + 3 + (6 + 16) + (16 + 16)
    assert trained_share(model).startswith(f"LoRA trains {count} of {total} parameters ({count / total:.2%})")


def test_impossible_ranks_and_factors_are_refused_before_anything_starts():
    for fields, said in (({"rank": 0}, "rank = 0 must be 1 or more"), ({"alpha": 0.0}, "alpha = 0 must be above 0")):
        with pytest.raises(InvalidInput, match=said):
            ModelConfig(lora=LoraConfig(**fields)).check()


def test_a_model_of_the_users_own_starts_from_a_file_and_is_adapted(tmp_path):
    (tmp_path / "model.py").write_text(
        "from torch import nn\n\ndef build(input_shape, outputs):\n"
        "    return nn.Sequential(nn.Linear(input_shape[0], 8), nn.ReLU(), nn.Linear(8, outputs))\n"
    )
    first = build_model(ModelConfig(build="model:build"), tmp_path, (6,), 3, seed=5)
    save_weights(first, tmp_path / "first.safetensors")
    asked = ModelConfig(build="model:build", init="first.safetensors", lora=LoraConfig(rank=2))
    model = build_model(asked, tmp_path, (6,), 3, seed=9)
    assert torch.equal(model[0].weight, first[0].weight)
    assert trained(model) == {"0.lora_down", "0.lora_up", "2.weight", "2.bias"}
    plain = build_model(asked, tmp_path, (6,), 3, seed=9, for_training=False)
    assert largest_difference(plain, build_model(ModelConfig(build="model:build"), tmp_path, (6,), 3, seed=9)) == 0.0
    plain.load_state_dict(merged_weights(model))
