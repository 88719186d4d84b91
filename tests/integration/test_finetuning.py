"""From texts and a pretrained folder to sentences on /predict: in small always, with a real model and texts slowly."""

import json
import math
import os
import sys
from pathlib import Path

import pytest

import encoders
from sentences import LABELS, sentences, verses, write_csv

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

PROJECT = """[project]
name = "fruit"

[data]
train = "texts.csv"
max_length = 16

[model]
init = "encoder"
options = {{ config = {{ hidden_dropout_prob = 0.0, attention_probs_dropout_prob = 0.0 }} }}
{lora}

[train]
workers = 2
epochs = {epochs}
batch_size = 16
learning_rate = {rate}
schedule = "linear"

[evaluate]
accuracy = ">= 0.8"
"""


def write_project(folder, *, lora="", epochs=8, rate=3e-3):
    write_csv(folder / "texts.csv", *sentences(n=240))
    if not (folder / "encoder").exists():
        encoders.sentence_folder(encoders.bert_folder(folder / "encoder"))
    (folder / "argosy.toml").write_text(PROJECT.format(lora=lora, epochs=epochs, rate=rate))


WRITER = """[project]
name = "writer"

[data]
task = "language-model"
train = "verse.txt"
context = 32

[model]
init = "decoder"
{lora}

[train]
workers = {workers}
epochs = 4
batch_size = 4
learning_rate = 1e-2

[evaluate]
perplexity = "<= {most}"
"""


@pytest.mark.parametrize(
    ("kind", "workers", "lora", "most"),
    [("gpt2", 1, "", 12), pytest.param("llama", 2, "lora = { rank = 16 }", 30, marks=pytest.mark.slow)],
)
@pytest.mark.capability("T9", "B1", "F1")
def test_a_folder_of_a_language_model_goes_on_learning_and_then_answers_texts(installed, kind, workers, lora, most):
    (installed.folder / "verse.txt").write_text(verses(700))
    folder = encoders.decoder_folder(installed.folder / "decoder", kind)
    (installed.folder / "argosy.toml").write_text(WRITER.format(workers=workers, lora=lora, most=most))
    ran = installed.json("run", timeout=600)
    (version,) = ran["versions"]
    assert version["passed"], version["metrics"]
    assert any("[model] init" in note for note in ran["values"]["data"]["notes"])
    assert installed.json("run")["executed"] == []
    installed.ok("models", "report", "writer:1", "--save", "report")
    assert "What it writes" in (installed.folder / "report" / "training.html").read_text()
    installed.ok("deploy", "writer:1", "--now", "--port", "0")
    told = installed.json("predict", "writer", json.dumps({"text": ["the dog ran to the big r", "x"]}))["outputs"]
    assert [len(row) for row in told["logits"]] == [257, 257]
    assert told["nats"][0] < math.log(most) + 0.5
    assert told["nats"][1] == 0.0
    if workers > 1:
        # Another folder, another model.
        encoders.decoder_folder(folder, kind, num_hidden_layers=1)
        assert "train" in installed.json("run", timeout=600)["executed"]


@pytest.mark.slow
@pytest.mark.capability("T9", "T1", "B1", "I1")
def test_a_folder_is_fine_tuned_by_two_workers_and_then_answers_sentences(installed):
    write_project(installed.folder)
    done = installed.json("run", timeout=600)
    (version,) = done["versions"]
    assert version["metrics"]["accuracy"] >= 0.8
    assert installed.json("run")["executed"] == []
    said = installed.json("deploy", "--port", "0", timeout=600)
    assert said["url"]
    texts, labels = sentences(n=30, seed=5)
    found = [installed.json("predict", "fruit", text)["outputs"] for text in texts[:6]]
    right = sum(answer["label"] == label for answer, label in zip(found, labels, strict=False))
    assert right >= 4
    assert all(set(answer["probabilities"]) == set(LABELS) for answer in found)
    # Together and alone a text gets the same answer, whatever stands beside it.
    both = installed.json("predict", "fruit", json.dumps({"text": texts[:6]}))["outputs"]
    assert both["label"] == [answer["label"] for answer in found]
    for one, many in zip(found, both["probabilities"], strict=True):
        assert one["probabilities"] == pytest.approx(many, abs=1e-5)
    assert "only such can be explained" in installed.refused("explain", "fruit:1", '{"text": "a a"}')
    # What training starts from is part of its key.
    path = installed.folder / "encoder" / "model.safetensors"
    encoders.bert_folder(installed.folder / "other")
    path.write_bytes((installed.folder / "other" / "model.safetensors").read_bytes()[:-8] + os.urandom(8))
    assert "train" in [step["stage"] for step in installed.json("plan")["steps"] if not step["is_done"]]


@pytest.mark.slow
@pytest.mark.capability("T9")
def test_an_adapted_model_is_published_merged_and_answers_as_a_plain_one(installed):
    write_project(installed.folder, lora="lora = { rank = 4 }", epochs=16, rate=1e-2)
    done = installed("run", timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "LoRA trains" in done.stdout
    shown = installed.json("models", "show", "fruit:1")
    assert {"model.onnx", "tokenizer.json", "weights.safetensors"} <= set(shown["manifest"]["files"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.capability("T9")
def test_a_real_encoder_gains_three_points_on_real_texts_and_lora_keeps_the_gain(tmp_path):
    import finetune

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "argosy-tests"
    found = finetune.measure(finetune.TASKS["r52"], cache, tmp_path)
    judged = finetune.verdict(found)
    assert judged.gain >= finetune.LEAST_GAIN, found
    assert judged.kept >= finetune.LEAST_KEPT, found
    assert judged.share < finetune.MOST_TRAINED, found
