"""Starting from existing weights: a file of the same model, or a folder of Hugging Face's."""

import copy
import sys

import pytest
import torch

import encoders
from argosy.core.errors import IntegrityError, InvalidInput, NotFound, PluginError
from argosy.train.config import LoraConfig, ModelConfig
from argosy.train.initial import init_digest, init_path, init_tokenizer
from argosy.train.inputs import ModelInput
from argosy.train.models import build_model, load_weights, save_weights
from ranks import largest_difference

pytestmark = pytest.mark.capability("T9", "B1")

TEXTS = ModelInput(shape=(12,), vocabulary=len(encoders.WORDS), pad_id=0)
IDS = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def build(folder, init="", *, given=TEXTS, outputs=3, seed=1, for_training=True, **fields):
    return build_model(ModelConfig(init=init, **fields), folder, given, outputs, seed, for_training=for_training).eval()


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder of a small encoder, as Hugging Face saves it."""
    place = tmp_path_factory.mktemp("init")
    encoders.bert_folder(place / "bert")
    encoders.sentence_folder(encoders.bert_folder(place / "sentences"))
    encoders.bert_folder(place / "classifier", "BertForSequenceClassification", num_labels=5)
    return place


def features(folder):
    """Return what transformers itself gives for the tokens."""
    import transformers

    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=MASK).last_hidden_state


def test_a_sentence_encoder_gets_its_own_pooling_and_a_new_linear_head(bert):
    model = build(bert, "sentences")
    hidden = features(bert / "sentences")
    expected = (hidden * MASK[:, :, None]).sum(1) / MASK.sum(1, keepdim=True)
    with torch.no_grad():
        torch.testing.assert_close(model.features(IDS, MASK), expected)
        normed = (expected - expected.mean(1, keepdim=True)) / expected.std(1, keepdim=True, correction=0)
        torch.testing.assert_close(model(IDS, MASK), model.head(normed), rtol=1e-4, atol=1e-4)
    assert model(IDS, MASK).shape == (2, 3)


@pytest.mark.parametrize("pool", ["mean", "max", "cls"])
def test_padding_changes_nothing_whatever_the_pooling(bert, pool):
    model = build(bert, "bert", options={"pool": pool})
    with torch.no_grad():
        alone = model(IDS[1:, :3], MASK[1:, :3])
        torch.testing.assert_close(model(IDS, MASK)[1:], alone)


def test_an_encoder_without_word_of_its_pooling_gets_its_architectures_own_head(bert):
    import transformers

    model = build(bert, "bert")
    assert type(model.model) is transformers.BertForSequenceClassification
    assert model(IDS, MASK).shape == (2, 3)
    weights = model.model.bert.state_dict()
    import safetensors.torch

    saved = safetensors.torch.load_file(bert / "bert" / "model.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in saved.items() if name in weights)


def test_a_classifier_keeps_its_head_for_as_many_classes_and_begins_a_new_one_for_others(bert):
    import safetensors.torch

    saved = safetensors.torch.load_file(bert / "classifier" / "model.safetensors")
    same, other = build(bert, "classifier", outputs=5), build(bert, "classifier", outputs=3)
    assert torch.equal(same.model.classifier.weight, saved["classifier.weight"])
    assert other.model.classifier.weight.shape == (3, encoders.WIDTH)
    assert torch.equal(other.model.bert.pooler.dense.weight, saved["bert.pooler.dense.weight"])


def test_the_seed_decides_the_head_and_the_folder_all_else(bert):
    one, same, other = (build(bert, "sentences", seed=seed) for seed in (1, 1, 2))
    assert largest_difference(one, same) == 0.0
    assert torch.equal(one.head.bias, other.head.bias)
    assert not torch.equal(one.head.weight, other.head.weight)
    assert largest_difference(one.model, other.model) == 0.0
    ours = [build(bert, "bert", seed=seed) for seed in (1, 1, 2)]
    assert largest_difference(ours[0], ours[1]) == 0.0
    assert largest_difference(ours[0], ours[2]) > 0.0


def test_the_module_of_later_stages_takes_the_weights_of_the_training(bert):
    for init in ("sentences", "bert"):
        first = build(bert, init)
        again = build(bert, init, seed=4, for_training=False)
        assert largest_difference(first, again) > 0.0
        again.load_state_dict(first.state_dict())
        assert torch.equal(first(IDS, MASK), again(IDS, MASK))


def test_adapting_a_folder_trains_the_head_and_factors_and_freezes_the_rest(bert):
    model = build(bert, "sentences", lora=LoraConfig(rank=2, targets=["query", "value"]))
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {"head.weight", "head.bias"} < names
    assert not any("pooler" in name for name, _ in model.named_parameters())
    assert {name.rpartition(".")[2] for name in names - {"head.weight", "head.bias"}} == {"lora_down", "lora_up"}
    assert len(names) == 2 + 2 * 2 * encoders.BERT["num_hidden_layers"]
    own = build(bert, "classifier", lora=LoraConfig(rank=2))
    assert {n for n, p in own.named_parameters() if p.requires_grad and "lora" not in n} == {
        "model.classifier.weight",
        "model.classifier.bias",
    }


def test_fields_of_its_configuration_can_be_changed_and_unknown_ones_are_told(bert):
    model = build(bert, "bert", options={"config": {"hidden_dropout_prob": 0.0}})
    assert model.model.config.hidden_dropout_prob == 0.0
    with pytest.raises(InvalidInput, match=r"config names 'dropouts', which the config\.json of") as caught:
        build(bert, "bert", options={"config": {"dropouts": 0.0}})
    assert "hidden_dropout_prob" in caught.value.hint


def test_another_architecture_is_a_classifier_too(tmp_path):
    """A decoder: it has no padding of its own, and looks at a text's last token."""
    import transformers

    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": len(encoders.WORDS), "n_positions": 24}
    transformers.GPT2Model(transformers.GPT2Config(**sizes)).save_pretrained(tmp_path / "gpt2")
    model = build(tmp_path, "gpt2")
    with torch.no_grad():
        torch.testing.assert_close(model(IDS, MASK)[1:], model(IDS[1:, :3], MASK[1:, :3]))


def test_a_file_of_the_same_model_is_where_training_starts(tmp_path):
    plain = ModelInput(shape=(4,))
    first = build(tmp_path, given=plain, seed=1)
    save_weights(first, tmp_path / "first.safetensors")
    again = build(tmp_path, "first.safetensors", given=plain, seed=2)
    assert largest_difference(first, again) == 0.0
    fewer = build(tmp_path, "first.safetensors", given=plain, outputs=2, seed=2)
    assert torch.equal(fewer[1].weight, first[1].weight)
    with pytest.raises(InvalidInput, match=r"first\.safetensors', which holds the weights of another model") as caught:
        build(tmp_path, "first.safetensors", given=ModelInput(shape=(5,)), seed=2)
    assert caught.value.code == "other_model"
    assert "[128, 4] in the file, [128, 5] in the model" in str(caught.value)
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "first.safetensors").read_bytes()[:-9])
    with pytest.raises(IntegrityError, match="not a whole safetensors file"):
        build(tmp_path, "torn.safetensors", given=plain)


def test_what_is_not_there_pickled_or_said_twice_is_refused(bert, tmp_path):
    with pytest.raises(NotFound, match="init names 'nowhere', which is not there"):
        init_path(ModelConfig(init="nowhere"), tmp_path)
    (tmp_path / "weights.pt").write_bytes(b"\x80")
    with pytest.raises(InvalidInput, match="loading a pickle runs whatever code") as caught:
        init_path(ModelConfig(init="weights.pt"), tmp_path)
    assert caught.value.code == "pickled_weights"
    with pytest.raises(InvalidInput, match="names a folder, which says itself what is built, and there is also family"):
        init_path(ModelConfig(init="bert", family="mlp"), bert)
    assert init_path(ModelConfig(), tmp_path) is None
    encoders.write(tmp_path / "old", config_json=encoders.BERT)
    (tmp_path / "old" / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(InvalidInput, match="its weights are pickled"):
        build(tmp_path, "old")
    (tmp_path / "onnx").mkdir()
    encoders.onnx_folder(tmp_path / "onnx")
    with pytest.raises(InvalidInput, match="has its weights as ONNX only"):
        build(tmp_path, "onnx")


def test_code_in_a_folder_is_never_run(bert, tmp_path):
    encoders.bert_folder(tmp_path / "own")
    encoders.write(tmp_path / "own", config_json=encoders.BERT | {"auto_map": {"AutoModel": "code.Model"}})
    (tmp_path / "own" / "code.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(InvalidInput, match="needs Python code of its own"):
        build(tmp_path, "own")


def test_weights_that_are_not_what_the_configuration_says_are_refused(bert, tmp_path):
    encoders.bert_folder(tmp_path / "torn")
    encoders.write(tmp_path / "torn", config_json=encoders.BERT | {"num_hidden_layers": 3})
    with pytest.raises(InvalidInput, match=r"not those its config\.json describes: .* are missing") as caught:
        build(tmp_path, "torn")
    assert caught.value.code == "other_model"


def test_data_that_is_no_text_and_options_that_are_none_are_told(bert):
    with pytest.raises(
        InvalidInput, match=r"names a model of texts, but the data has samples of shape \[4\]"
    ) as caught:
        build(bert, "bert", given=ModelInput(shape=(4,)))
    assert "[data] text" in caught.value.hint
    with pytest.raises(InvalidInput, match="pool = 'sum' is not known"):
        build(bert, "bert", options={"pool": "sum"})
    with pytest.raises(InvalidInput, match="dropout = 1 must be"):
        build(bert, "bert", options={"dropout": 1.0})
    with pytest.raises(InvalidInput, match=r"tokenizer has 99 tokens, but the model in .* knows 42"):
        build(bert, "bert", given=ModelInput(shape=(12,), vocabulary=99))
    with pytest.raises(InvalidInput, match=r"texts have up to 25 tokens, but the model in .* reads 24"):
        build(bert, "bert", given=ModelInput(shape=(25,), vocabulary=len(encoders.WORDS)))
    with pytest.raises(InvalidInput, match=r"has no weights for the next token: .* would begin anew") as caught:
        build(bert, "bert", outputs=len(encoders.WORDS))
    assert "causal language model" in caught.value.hint


BYTES = ModelInput(shape=(24,), vocabulary=257, pad_id=256)
TOKENS = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 7, 256, 256]])


@pytest.fixture(scope="module")
def writers(tmp_path_factory):
    """Folders of small language models: one with a table used at both ends, and one without."""
    place = tmp_path_factory.mktemp("writers")
    for kind in encoders.SIZES:
        encoders.decoder_folder(place / kind, kind)
    return place


@pytest.mark.parametrize("kind", encoders.SIZES)
def test_a_language_model_says_what_transformers_says_of_the_tokens_that_the_tokenizer_knows(writers, kind):
    import transformers

    model = build(writers, kind, given=BYTES, outputs=257)
    reference = transformers.AutoModelForCausalLM.from_pretrained(writers / kind, local_files_only=True).eval()
    with torch.no_grad():
        expected = reference(input_ids=TOKENS).logits[:, :, :257]
        torch.testing.assert_close(model(TOKENS, torch.ones_like(TOKENS)), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(TOKENS[1:, :3]), expected[1:, :3], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", encoders.SIZES)
def test_its_parameters_are_saved_once_and_fill_the_module_of_later_stages(writers, kind, tmp_path):
    model = build(writers, kind, given=BYTES, outputs=257)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    save_weights(model, tmp_path / "w.safetensors")
    assert len({tensor.data_ptr() for tensor in model.state_dict().values()}) == len(model.state_dict())
    again = build(writers, kind, given=BYTES, outputs=257, seed=9, for_training=False)
    load_weights(again, tmp_path / "w.safetensors")
    assert torch.equal(again(TOKENS), model(TOKENS))


@pytest.mark.parametrize("kind", encoders.SIZES)
def test_a_copy_of_a_language_model_has_a_table_of_its_own(writers, kind):
    model = build(writers, kind, given=BYTES, outputs=257)
    twin, before = copy.deepcopy(model), model(TOKENS)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(model(TOKENS), before)
    assert not torch.equal(twin(TOKENS), before)


@pytest.mark.parametrize("kind", encoders.SIZES)
def test_every_linear_layer_of_a_language_model_can_be_adapted_but_the_table_it_begins_with(writers, kind):
    model = build(writers, kind, given=BYTES, outputs=257, lora=LoraConfig(rank=2))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(name.endswith(("lora_down", "lora_up")) for name in trained)
    layers = {"gpt2": 4, "llama": 7}[kind]
    heads = {"gpt2": 0, "llama": 1}[kind]
    assert len(trained) == 2 * (2 * layers + heads)


def test_what_a_folder_of_a_language_model_can_not_do_is_said(writers):
    with pytest.raises(InvalidInput, match="pool is for classifiers"):
        build(writers, "gpt2", given=BYTES, outputs=257, options={"pool": "mean"})
    with pytest.raises(InvalidInput, match="reads 48") as caught:
        build(writers, "gpt2", given=ModelInput(shape=(49,), vocabulary=257), outputs=257)
    assert "context" in caught.value.hint


def test_a_missing_library_is_told_with_the_extra_that_brings_it(bert, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(PluginError, match="needs 'transformers', which is not installed") as caught:
        build(bert, "bert")
    assert "argosy[hf]" in caught.value.hint


def test_the_digest_follows_the_weights_and_the_tokenizer_is_the_folders(bert, tmp_path):
    asked = ModelConfig(init="sentences")
    first = init_digest(asked, bert)
    assert first.startswith("sha256:")
    assert first == init_digest(asked, bert)
    assert init_digest(ModelConfig(init="bert"), bert) != first
    assert init_digest(ModelConfig(), bert) == ""
    found = init_tokenizer(asked, bert)
    assert (found.max_length, found.most_tokens, found.pad_id) == (12, 24, 0)
    assert init_tokenizer(ModelConfig(), bert) is None
    save_weights(torch.nn.Linear(2, 2), tmp_path / "w.safetensors")
    file = ModelConfig(init="w.safetensors")
    assert init_tokenizer(file, tmp_path) is None
    before = init_digest(file, tmp_path)
    save_weights(torch.nn.Linear(2, 2), tmp_path / "w.safetensors")
    assert init_digest(file, tmp_path) != before
