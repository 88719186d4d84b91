import json

import numpy as np
import onnx
import pytest

import encoders
from argosy.core.errors import InvalidInput, PluginError
from argosy.core.tensors import Signature, TensorSpec
from argosy.data.prepare import finishing, preparation
from argosy.data.text import Pool, Tokenize
from argosy.formats import hf_export
from argosy.formats.hf_export import Form, check_tokens, export, sample_texts
from argosy.formats.hf_folder import read_folder
from argosy.formats.onnx_runtime import OnnxRunner
from argosy.serve.engine import Engine
from served import graph

FORM = Form(("input_ids", "attention_mask"), "last_hidden_state", 0)
TEXTS = ["a b c", "a", "j i h g f e d c b a j i h g f e d c b a j i h", "日本 a, b."]


def column(items):
    found = np.empty(len(items), dtype=object)
    found[:] = items
    return found


def served(folder, content, tokenizer, found, *, output, finish):
    """Return what a version made of an export answers for TEXTS."""
    step = Tokenize(max_length=folder.max_length, outputs=found.inputs, datatype=found.datatype, pad_id=folder.pad_id)
    engine = Engine(
        Signature(
            inputs=(TensorSpec(name="text", datatype="BYTES", shape=(-1,), content="text"),),
            outputs=(TensorSpec(name=output, datatype="FP32", shape=(-1, found.width)),),
        ),
        preparation([step], {"tokenizer.json": tokenizer}),
        OnnxRunner.load(content).run,
        finishing(finish) if finish else None,
    )
    return engine.compute({"text": column([text.encode() for text in TEXTS])})[output]


def original(path, kind, max_length):
    """Return what transformers answers for TEXTS, one by one: logits, or token vectors averaged."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    model = getattr(transformers, kind).from_pretrained(path, local_files_only=True).eval()
    rows = []
    for text in TEXTS:
        given = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
        with torch.no_grad():
            found = model(**given)
        rows.append((found.logits if hasattr(found, "logits") else found.last_hidden_state.mean(dim=1)).numpy()[0])
    return np.stack(rows)


def test_an_encoder_answers_as_transformers_does_alone_and_padded(tmp_path):
    path = encoders.bert_folder(tmp_path)
    folder = read_folder(path)
    content, tokenizer, found = export(folder)
    assert found.how == "torchscript"
    # The mask is added as it is: nothing computes it from positions.
    kinds = {node.op_type for node in onnx.load_from_string(content).graph.node}
    assert not kinds & {"Range", "Expand", "Where", "ConstantOfShape", "GreaterOrEqual", "Equal"}
    assert found.inputs == ("input_ids", "attention_mask", "token_type_ids")
    assert found.width == encoders.WIDTH
    assert found.checks["parity"] < 1e-5
    assert found.checks["padding"] < 1e-5
    answers = served(folder, content, tokenizer, found, output="embedding", finish=[Pool()])
    np.testing.assert_allclose(answers, original(path, "AutoModel", 20), rtol=0, atol=1e-5)
    # Equal folders give equal versions.
    again = export(folder)
    assert (again[0], again[1]) == (content, tokenizer)


def test_a_classifier_answers_as_transformers_does(tmp_path):
    kind = "BertForSequenceClassification"
    path = encoders.bert_folder(tmp_path, kind, id2label={0: "bad", 1: "so so", 2: "good"})
    folder = read_folder(path)
    assert folder.labels == ("bad", "so so", "good")
    content, tokenizer, found = export(folder)
    assert (found.output, found.width) == ("logits", 3)
    answers = served(folder, content, tokenizer, found, output="logits", finish=[])
    np.testing.assert_allclose(answers, original(path, f"AutoModelFor{kind[7:]}", 20), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "kind", "changes"),
    [
        ("distilbert", "DistilBertModel", {"dim": 16, "hidden_dim": 32, "n_heads": 2, "n_layers": 2}),
        ("roberta", "RobertaModel", {"pad_token_id": 1}),
        ("xlm-roberta", "XLMRobertaModel", {"pad_token_id": 1}),
        ("mpnet", "MPNetModel", {"pad_token_id": 1}),
        ("electra", "ElectraModel", {"embedding_size": 16}),
        ("albert", "AlbertModel", {"embedding_size": 8}),
        ("deberta-v2", "DebertaV2Model", {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
        ("modernbert", "ModernBertModel", {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}),
        ("nomic_bert", "NomicBertModel", {}),
    ],
)
def test_other_encoders_are_exported_as_well(tmp_path, model_type, kind, changes):
    path = encoders.bert_folder(tmp_path, kind, model_type=model_type, **changes)
    folder = read_folder(path)
    content, tokenizer, found = export(folder)
    assert found.checks["parity"] < 1e-4
    answers = served(folder, content, tokenizer, found, output="embedding", finish=[Pool()])
    assert np.isfinite(answers).all()


def test_a_model_that_reads_an_added_mask_in_another_way_is_given_the_mask_itself(tmp_path, monkeypatch):
    path = encoders.bert_folder(tmp_path)
    folder = read_folder(path)
    plain = hf_export._with_torchscript
    tried = []

    def _with_torchscript(module, rows, output):
        tried.append(module.adds_mask)
        if module.adds_mask:
            # As a model that knows only masks of tokens: four dimensions are of no use to it.
            module.model.register_forward_pre_hook(_forgets_mask, with_kwargs=True)
        else:
            module.model._forward_pre_hooks.clear()
        return plain(module, rows, output)

    monkeypatch.setattr(hf_export, "_with_torchscript", _with_torchscript)
    content, tokenizer, found = export(folder)
    assert tried == [True, False]
    answers = served(folder, content, tokenizer, found, output="embedding", finish=[Pool()])
    np.testing.assert_allclose(answers, original(path, "AutoModel", 20), rtol=0, atol=1e-5)


def _forgets_mask(module, positional, named):
    del module
    return positional, {name: value for name, value in named.items() if name != "attention_mask"}


def test_weights_that_are_not_those_of_the_configuration_are_refused(tmp_path):
    path = encoders.bert_folder(tmp_path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(InvalidInput, match="are missing or differ in shape"):
        export(read_folder(path))
    (path / "config.json").write_text(json.dumps(config | {"hidden_size": 20}))
    with pytest.raises(InvalidInput, match=r"transformers can't load it|differ in shape"):
        export(read_folder(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"not weights"),
        ("model.safetensors", b""),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"x"),
    ],
)
def test_damaged_files_are_an_error_and_not_a_fault(tmp_path, name, content):
    path = encoders.bert_folder(tmp_path)
    (path / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=r"can't load it|tokenizer can't be loaded|attention_mask|types other"):
        export(read_folder(path))


def test_an_exporter_that_gives_other_answers_is_passed_over(tmp_path, monkeypatch):
    path = encoders.bert_folder(tmp_path)
    real = hf_export._with_torchscript

    def _with_torchscript(module, rows, output):
        made = real(module, rows, output)
        table = next(t for t in made.graph.initializer if t.dims == [len(encoders.WORDS), encoders.WIDTH])
        table.raw_data = b"\0" * len(table.raw_data)
        return made

    monkeypatch.setattr(hf_export, "_with_torchscript", _with_torchscript)
    monkeypatch.setattr(hf_export, "_with_dynamo", lambda *_: 1 / 0)
    with pytest.raises(InvalidInput, match=r"answers otherwise than the original.*ZeroDivisionError") as caught:
        export(read_folder(path))
    assert caught.value.code == "export_failed"


def test_the_dynamo_exporter_does_when_the_other_one_fails(tmp_path, monkeypatch):
    path = encoders.bert_folder(tmp_path)

    def _with_torchscript(*_):
        raise RuntimeError("unsupported operator")

    monkeypatch.setattr(hf_export, "_with_torchscript", _with_torchscript)
    _, _, found = export(read_folder(path))
    assert found.how == "dynamo"
    assert found.checks["parity"] < 1e-4


def test_without_transformers_the_error_names_the_extra(tmp_path, monkeypatch):
    import sys

    path = encoders.write(tmp_path, config_json=encoders.BERT)
    (path / "model.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(PluginError) as caught:
        export(read_folder(path))
    assert "argosy[hf]" in caught.value.hint


def test_an_onnx_file_in_the_folder_is_taken_after_a_check_of_its_padding(tmp_path):
    folder = read_folder(encoders.onnx_folder(tmp_path))
    content, tokenizer, found = export(folder)
    assert content == (tmp_path / "onnx" / "model.onnx").read_bytes()
    assert found.how == "onnx/model.onnx"
    assert set(found.checks) == {"padding"}
    assert json.loads(tokenizer)["truncation"] is None
    assert served(folder, content, tokenizer, found, output="embedding", finish=[Pool()]).shape == (4, encoders.WIDTH)


def replaced(path, content):
    (path / "onnx" / "model.onnx").write_bytes(content)
    return read_folder(path)


def test_an_onnx_file_that_is_no_encoder_or_heeds_its_padding_is_refused(tmp_path):
    path = encoders.onnx_folder(tmp_path)
    with pytest.raises(InvalidInput, match="depends on the padding") as caught:
        export(replaced(path, encoders.leaky_onnx()))
    assert caught.value.code == "rows_depend"
    flat = graph([("Relu", ["x"], ["y"], {})], [("x", "FLOAT", ["n", 4])], [("y", "FLOAT", ["n", 4])])
    with pytest.raises(InvalidInput, match="takes x; an encoder takes"):
        export(replaced(path, flat))
    taken = [(name, "FLOAT", ["n", "t"]) for name in ("input_ids", "attention_mask")]
    floats = graph([("Add", ["input_ids", "attention_mask"], ["y"], {})], taken, [("y", "FLOAT", ["n", "t"])])
    with pytest.raises(InvalidInput, match="FP32, not INT64 or INT32"):
        export(replaced(path, floats))
    with pytest.raises(InvalidInput, match="not an ONNX model"):
        export(replaced(path, b"no graph"))
    (path / "tokenizer.json").unlink()
    with pytest.raises(InvalidInput, match=r"no tokenizer.json"):
        export(replaced(path, encoders.encoder_onnx()))


def test_the_check_of_tokens_would_notice_each_kind_of_difference():
    runner = OnnxRunner.load(encoders.encoder_onnx())
    encoded = [[2, 4, 3], [2, 5, 6, 7, 3], [2] + [8] * 9]
    wanted = [hf_export.run_alone(runner, tokens, FORM) for tokens in encoded]
    assert check_tokens(runner, encoded, wanted, FORM) == {"parity": 0.0, "padding": pytest.approx(0.0, abs=1e-6)}
    with pytest.raises(InvalidInput) as caught:
        check_tokens(runner, encoded, [answer + 0.1 for answer in wanted], FORM)
    assert caught.value.code == "parity"
    with pytest.raises(InvalidInput, match="numbers, not"):
        check_tokens(runner, encoded, [answer[:-1] for answer in wanted], FORM)
    leaky = OnnxRunner.load(encoders.leaky_onnx())
    alone = [hf_export.run_alone(leaky, tokens, FORM) for tokens in encoded]
    with pytest.raises(InvalidInput) as caught:
        check_tokens(leaky, encoded, alone, FORM)
    assert caught.value.code == "rows_depend"


def test_sample_texts_are_the_same_each_time_of_several_lengths_and_scripts():
    assert sample_texts(64) == sample_texts(64)
    lengths = [len(text.split()) for text in sample_texts(64)]
    assert lengths == [1, 2, 5, 9, 17, 40, 90, 72]
    assert not "".join(sample_texts(64)).isascii()
