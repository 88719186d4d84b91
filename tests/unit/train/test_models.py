import pytest
import torch
from torch import nn

from argosy.core.errors import IntegrityError, InvalidInput, NotFound
from argosy.train.config import ModelConfig
from argosy.train.models import build_model, load_weights, save_weights


def build(tmp_path, code=None, shape=(4,), outputs=3, name="model:build", **config):
    if code is not None:
        (tmp_path / "model.py").write_text(code)
        config["build"] = name
    return build_model(ModelConfig(**config), tmp_path, shape, outputs, seed=7)


GOOD = """
from torch import nn

def build(input_shape, outputs, width=5):
    return nn.Sequential(nn.Linear(input_shape[0], width), nn.ReLU(), nn.Linear(width, outputs))
"""


def test_the_same_seed_gives_the_same_weights_and_another_one_others(tmp_path):
    one, same = (build_model(ModelConfig(), tmp_path, (4,), 3, seed=1) for _ in range(2))
    other = build_model(ModelConfig(), tmp_path, (4,), 3, seed=2)
    weight = next(iter(one.parameters()))
    assert torch.equal(weight, next(iter(same.parameters())))
    assert not torch.equal(weight, next(iter(other.parameters())))


@pytest.mark.capability("B1")
@pytest.mark.parametrize("shape", [(6,), (2, 3), (1, 4, 4), (3, 2, 2, 2)])
def test_the_built_in_mlp_takes_samples_of_any_shape(tmp_path, shape):
    model = build(tmp_path, family="mlp", shape=shape, options={"batch_norm": True, "dropout": 0.1})
    assert model(torch.randn(5, *shape)).shape == (5, 3)


@pytest.mark.capability("B1")
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh"])
def test_the_built_in_mlp_is_not_one_affine_map(tmp_path, activation):
    model = build(tmp_path, family="mlp", options={"activation": activation}).eval()
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 8, 4, generator=draw)
    # An affine map takes the middle of two points to the middle of their images.
    assert not torch.allclose(model((a + b) / 2), (model(a) + model(b)) / 2, atol=1e-4)


@pytest.mark.capability("B1")
@pytest.mark.parametrize(("shape", "options"), [((1, 8, 8), {}), ((8, 8), {}), ((64,), {"image": [1, 8, 8]})])
def test_the_built_in_resnet_takes_images_flat_or_not_and_gives_the_same(tmp_path, shape, options):
    model = build(tmp_path, family="resnet", shape=shape, options={"width": 4, "blocks": 1, **options}).eval()
    plain = build(tmp_path, family="resnet", shape=(1, 8, 8), options={"width": 4, "blocks": 1}).eval()
    x = torch.randn(5, 1, 8, 8)
    assert torch.equal(model(x.reshape(5, *shape)), plain(x))
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_without_a_family_images_get_a_resnet_and_all_else_an_mlp(tmp_path):
    assert any(isinstance(m, nn.Conv2d) for m in build(tmp_path, shape=(1, 8, 8)).modules())
    assert not any(isinstance(m, nn.Conv2d) for m in build(tmp_path, shape=(64,)).modules())


def test_a_resnet_of_flat_numbers_says_how_to_make_images_of_them(tmp_path):
    with pytest.raises(InvalidInput, match=r"a sample has the shape \[64\]") as caught:
        build(tmp_path, family="resnet", shape=(64,))
    assert "image = [1, 8, 8]" in caught.value.hint
    with pytest.raises(InvalidInput, match=r"which is not image = \[1, 9, 9\]"):
        build(tmp_path, family="resnet", shape=(64,), options={"image": [1, 9, 9]})


@pytest.mark.parametrize(
    ("family", "options", "told"),
    [
        ("mlp", {"widht": 3}, r"unknown field `widht`.*hidden"),
        ("mlp", {"activation": "none"}, "known are: gelu, relu, silu, tanh"),
        ("mlp", {"hidden": []}, "one or more widths"),
        ("mlp", {"dropout": 1.0}, "from 0 to below 1"),
        ("resnet", {"width": 0}, "must be 1 or more"),
        ("resnet", {"blocks": "2"}, r"Expected `int`, got `str` - at `\$.blocks`"),
    ],
)
def test_wrong_options_of_a_family_are_named(tmp_path, family, options, told):
    with pytest.raises(InvalidInput, match=told):
        build(tmp_path, family=family, shape=(1, 8, 8), options=options)


@pytest.mark.capability("B1")
def test_a_users_function_gets_the_arguments_it_declares(tmp_path):
    model = build(tmp_path, GOOD, options={"width": 9})
    assert model[0].weight.shape == (9, 4)
    everything = build(
        tmp_path,
        "from torch import nn\ndef build(**given):\n    m = nn.Linear(4, 3)\n    m.given = given\n    return m",
        options={"depth": 2},
    )
    assert everything.given == {"input_shape": (4,), "outputs": 3, "depth": 2}
    assert build(tmp_path, "from torch import nn\ndef build():\n    return nn.Linear(4, 3)").weight.shape == (3, 4)


def test_a_users_module_finds_its_neighbours(tmp_path):
    (tmp_path / "layers_of_mine.py").write_text("from torch import nn\nlast = nn.Linear(4, 3)\n")
    assert (
        build(tmp_path, "from layers_of_mine import last\ndef build():\n    return last")(torch.zeros(1, 4)) is not None
    )


def test_two_projects_with_files_of_the_same_name_do_not_mix(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert build(tmp_path / "a", GOOD, options={"width": 3})[0].weight.shape == (3, 4)
    other = "from torch import nn\ndef build(outputs):\n    return nn.Linear(4, outputs, bias=False)"
    assert build(tmp_path / "b", other).bias is None
    assert build(tmp_path / "a", GOOD)[0].weight.shape == (5, 4)


def test_a_missing_file_is_named_with_its_folder(tmp_path):
    with pytest.raises(NotFound, match=r"no 'net\.py' in") as caught:
        build(tmp_path, build="net:build")
    assert str(tmp_path) in str(caught.value)


def test_a_missing_function_is_told_with_those_there_are(tmp_path):
    with pytest.raises(NotFound, match=r"'model\.py' has no function 'make'; it has: build"):
        build(tmp_path, GOOD, name="model:make")


@pytest.mark.parametrize(
    ("code", "place"),
    [
        ("def build(:\n", "model.py, line 1: SyntaxError"),
        ("import no_such_module_here\n", r"line 1 (import no_such_module_here): ModuleNotFoundError"),
        ("def build():\n    x = 1\n    return x / 0\n", "model.py, line 3 (return x / 0): ZeroDivisionError"),
        (
            "from torch import nn\ndef build():\n    return nn.Linear(-1, 3)\n",
            "model.py, line 3 (return nn.Linear(-1, 3)): RuntimeError",
        ),
        (
            (
                "from torch import nn\nclass M(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
                "        self.l = nn.Linear(4, 3)\n    def forward(self, x):\n        return self.l(x.missing)\n"
                "def build():\n    return M()\n"
            ),
            "model.py, line 7 (return self.l(x.missing)): AttributeError",
        ),
    ],
)
def test_an_error_in_the_users_code_shows_the_users_file_and_line(tmp_path, code, place):
    with pytest.raises(InvalidInput) as caught:
        build(tmp_path, code)
    assert place in str(caught.value)
    assert caught.value.code == "user_code"


def test_options_that_the_function_does_not_take_and_those_it_lacks_are_named(tmp_path):
    with pytest.raises(InvalidInput, match="has 'depth', but 'model:build' takes only: input_shape, outputs, width"):
        build(tmp_path, GOOD, options={"depth": 2})
    with pytest.raises(InvalidInput, match=r"'model:build' needs 'depth', which \[model\] options does not have"):
        build(tmp_path, "def build(depth):\n    return depth")


@pytest.mark.capability("B1")
@pytest.mark.parametrize(
    "code",
    [
        "from torch import nn\ndef build():\n    return nn.ReLU()",
        (
            "from torch import nn\nclass M(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
            "        self.layers = [nn.Linear(4, 3)]\ndef build():\n    return M()"
        ),
        "from torch import nn\ndef build():\n    return nn.Linear(4, 3).requires_grad_(False)",
    ],
)
def test_a_model_without_parameters_is_refused(tmp_path, code):
    with pytest.raises(InvalidInput, match="'model:build' has no parameters to train") as caught:
        build(tmp_path, code)
    assert caught.value.code == "no_parameters"


@pytest.mark.parametrize(
    ("returned", "found"),
    [
        ("nn.Linear(4, 2)", r"\[2, 2\]"),
        ("nn.Sequential(nn.Linear(4, 3), nn.Flatten(0))", r"\[6\]"),
        ("nn.LSTM(4, 3)", "tuple"),
    ],
)
def test_a_wrong_output_shape_is_told_with_what_was_expected(tmp_path, returned, found):
    with pytest.raises(InvalidInput, match=rf"gave {found} for 2 samples of shape \[4\]; expected \[2, 3\]"):
        build(tmp_path, f"from torch import nn\ndef build():\n    return {returned}")


def test_something_that_is_no_module_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match=r"'model:build' returned a int; it must return a torch\.nn\.Module"):
        build(tmp_path, "def build():\n    return 3")


def test_weights_come_back_bit_by_bit_tied_ones_too(tmp_path):
    def tied():
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
        model[2].weight = model[0].weight
        return model

    model, again = tied(), tied()
    model(torch.randn(5, 4))
    save_weights(model, tmp_path / "w.safetensors")
    load_weights(again, tmp_path / "w.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    first = (tmp_path / "w.safetensors").read_bytes()
    save_weights(again, tmp_path / "w.safetensors")
    assert (tmp_path / "w.safetensors").read_bytes() == first


def test_weights_of_another_model_damaged_or_missing_ones_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(nn.Linear(4, 3), path)
    with pytest.raises(InvalidInput, match="weights of another model: 1 tensors differ, the first is 'weight'"):
        load_weights(nn.Linear(5, 3), path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(IntegrityError, match="not a whole safetensors file"):
        load_weights(nn.Linear(4, 3), path)
    with pytest.raises(NotFound):
        load_weights(nn.Linear(4, 3), tmp_path / "none")
