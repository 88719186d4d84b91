import json
import re

import pytest

import encoders
from argosy.core.errors import InvalidInput, NotFound
from argosy.formats.hf_folder import MOST_TOKENS, is_folder, read_folder


@pytest.fixture
def folder(tmp_path):
    found = encoders.write(tmp_path, config_json=encoders.BERT, tokenizer_config_json=encoders.TOKENIZER_CONFIG)
    (found / "model.safetensors").write_bytes(b"weights")
    return found


def change(folder, name="config.json", **changes):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_an_encoder_is_averaged_as_sentence_transformers_does_without_its_own_file(folder):
    found = read_folder(folder)
    assert (found.task, found.pooling, found.normalizes) == ("embedding", "mean", False)
    assert found.weights == ("model.safetensors",)
    assert found.max_length == 20
    assert any("averaged" in note for note in found.notes)


def test_a_folder_of_sentence_transformers_says_pooling_length_and_normalizing(folder):
    found = read_folder(encoders.sentence_folder(folder))
    assert (found.pooling, found.normalizes, found.max_length) == ("mean", True, 12)
    assert found.notes == ()


@pytest.mark.parametrize(
    ("pooling", "mode"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["mean"]}, "mean"),
        ({"word_embedding_dimension": 16}, "mean"),
    ],
)
def test_pooling_is_read_in_old_and_new_words(folder, pooling, mode):
    assert read_folder(encoders.sentence_folder(folder, pooling=pooling)).pooling == mode


def test_newer_names_of_the_modules_and_a_folder_for_the_transformer_are_understood(folder, tmp_path):
    modules = [dict(module) for module in encoders.MODULES[:2]]
    modules[0] |= {"type": "sentence_transformers.base.modules.transformer.Transformer", "path": "0_Transformer"}
    modules[1]["type"] = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
    inner = folder / "0_Transformer"
    inner.mkdir()
    for name in ("config.json", "tokenizer_config.json", "model.safetensors"):
        (folder / name).rename(inner / name)
    found = read_folder(encoders.sentence_folder(folder, modules=modules))
    assert found.transformer == str(inner)
    assert found.normalizes is False


def test_a_classifier_has_its_labels_in_order(folder):
    change(folder, architectures=["BertForSequenceClassification"], id2label={"1": "good", "0": "bad"})
    found = read_folder(folder)
    assert (found.task, found.labels, found.pooling) == ("classification", ("bad", "good"), "")


def test_the_default_prompt_goes_before_every_text(folder):
    encoders.sentence_folder(folder)
    encoders.write(
        folder, config_sentence_transformers_json={"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    )
    assert read_folder(folder).prefix == "query: "
    encoders.write(folder, config_sentence_transformers_json={"prompts": {"query": "query: "}})
    assert read_folder(folder).prefix == ""


@pytest.mark.parametrize(
    ("config", "tokenizer", "length"),
    [
        ({"max_position_embeddings": 16}, {}, 16),
        (
            {"max_position_embeddings": 514, "model_type": "xlm-roberta", "pad_token_id": 1},
            {"model_max_length": 1e30},
            512,
        ),
        ({"max_position_embeddings": 514, "model_type": "roberta", "pad_token_id": 1}, {"model_max_length": 64}, 64),
        ({"max_position_embeddings": None}, {"model_max_length": 1e30}, 512),
        ({"max_position_embeddings": 100_000}, {"model_max_length": 100_000}, MOST_TOKENS),
    ],
)
def test_a_text_has_as_many_tokens_as_model_and_tokenizer_both_can(folder, config, tokenizer, length):
    change(folder, **config)
    change(folder, "tokenizer_config.json", **tokenizer)
    found = read_folder(folder)
    assert found.max_length == length
    assert any("100000" in note for note in found.notes) is (length == MOST_TOKENS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["BertForTokenClassification"]}, "BertForTokenClassification"),
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
        ({"architectures": ["T5ForConditionalGeneration"]}, "T5ForConditionalGeneration"),
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"architectures": [], "model_type": "bert"}, "bert"),
        ({"architectures": None, "model_type": ""}, "without a name"),
        ({"auto_map": {"AutoModel": "evil.py--Model"}}, "never run"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"architectures": ["BertForSequenceClassification"]}, "single score"),
        ({"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a"}}, "single score"),
        ({"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a", "1": "a"}}, "each class once"),
        ({"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a", "2": "b"}}, "each class once"),
        (
            {
                "architectures": ["BertForSequenceClassification"],
                "id2label": {"0": "a", "1": "b"},
                "problem_type": "multi_label_classification",
            },
            "multi_label",
        ),
    ],
)
def test_what_can_not_be_served_is_refused_with_what_can(folder, changes, words):
    with pytest.raises(InvalidInput, match=words) as caught:
        read_folder(change(folder, **changes))
    assert caught.value.code == "unsupported_model"
    assert caught.value.hint or "each class" in caught.value.message


@pytest.mark.parametrize(
    "modules",
    [
        encoders.MODULES[:1],
        [*encoders.MODULES, {"type": "sentence_transformers.models.Dense", "path": "3_Dense"}],
        [{"type": "evil.module.Transformer"}, *encoders.MODULES[1:]],
        [],
    ],
)
def test_other_chains_of_modules_are_refused(folder, modules):
    with pytest.raises(InvalidInput, match="Transformer, Pooling and Normalize") as caught:
        read_folder(encoders.sentence_folder(folder, modules=modules))
    assert caught.value.code == "unsupported_model"


@pytest.mark.parametrize("path", ["../outside", "/etc", "a/../../b"])
def test_modules_outside_of_the_folder_are_refused(folder, path):
    modules = [encoders.MODULES[0], encoders.MODULES[1] | {"path": path}]
    with pytest.raises(InvalidInput, match="is not a name inside"):
        read_folder(encoders.sentence_folder(folder, modules=modules))


@pytest.mark.parametrize("pooling", [{"pooling_mode": "lasttoken"}, {"pooling_mode": ["mean", "max"]}])
def test_other_pooling_is_refused(folder, pooling):
    with pytest.raises(InvalidInput, match="one of mean, max and cls"):
        read_folder(encoders.sentence_folder(folder, pooling=pooling))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt"])
def test_pickled_weights_are_refused_with_what_to_do(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(InvalidInput, match=re.escape(name)) as caught:
        read_folder(folder)
    assert caught.value.code == "pickled_weights"
    assert "save_pretrained" in caught.value.hint


def test_an_onnx_file_does_when_there_are_no_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(NotFound, match=r"no model.safetensors and no onnx/model.onnx"):
        read_folder(folder)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"graph")
    found = read_folder(folder)
    assert (found.weights, found.onnx) == ((), "onnx/model.onnx")


def test_weights_in_several_files_are_found_by_their_index(folder):
    (folder / "model.safetensors").unlink()
    encoders.write(folder, model_safetensors_index_json={})
    (folder / "model_safetensors_index.json").rename(folder / "model.safetensors.index.json")
    for names, error in ((["../a"], NotFound), (["missing.safetensors"], NotFound)):
        index = {"weight_map": {str(i): name for i, name in enumerate(names)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(error, match="which is not in"):
            read_folder(folder)
    for part in ("b.safetensors", "a.safetensors"):
        (folder / part).write_bytes(b"x")
    index = {"weight_map": {"one": "b.safetensors", "two": "a.safetensors", "three": "a.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read_folder(folder).weights == ("a.safetensors", "b.safetensors")


def test_the_digest_follows_every_file_that_decides_an_answer(folder):
    encoders.sentence_folder(folder)
    found = {read_folder(folder).digest}
    (folder / "README.md").write_text("nothing that decides")
    assert {read_folder(folder).digest} == found
    (folder / "vocab.txt").write_text("a\nb\n")
    found.add(read_folder(folder).digest)
    (folder / "model.safetensors").write_bytes(b"other weights")
    found.add(read_folder(folder).digest)
    change(folder / "1_Pooling", pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)
    found.add(read_folder(folder).digest)
    assert len(found) == 4


@pytest.mark.parametrize("text", ["", "{", "[]", '{"architectures": "BertModel"}', "\ud800", "[" * 5000])
def test_damaged_json_is_refused(folder, text):
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InvalidInput, match="not as it should be"):
        read_folder(folder)


def test_a_folder_of_something_else_is_told_what_is_expected(tmp_path):
    assert not is_folder(tmp_path)
    with pytest.raises(NotFound, match=r"neither a config.json nor a modules.json"):
        read_folder(tmp_path)
    encoders.sentence_folder(tmp_path)
    with pytest.raises(NotFound, match=r"no config.json"):
        read_folder(tmp_path)
