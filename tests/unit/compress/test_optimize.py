from pathlib import Path

import pytest

from argosy.compress.candidate import Candidate, Timing
from argosy.compress.config import CompressConfig
from argosy.compress.passes import Model, SoFar, optimize
from argosy.compress.passes.optimize import Optimize

pytestmark = pytest.mark.capability("C7")

INT8 = ("quantize", {"operands": "u8s8"})


@pytest.fixture(autouse=True)
def _installed(monkeypatch):
    monkeypatch.setattr(optimize, "has_openvino", lambda: True)


def measured(*recipe, ratio, status="measured"):
    timing = Timing(batch=1, p50_s=ratio, p95_s=ratio, cpu_s=ratio, ratio=ratio)
    return Candidate(name="x", recipe=list(recipe), status=status, timings=[timing])


def on(engine):
    return ("optimize", {"engine": engine})


def proposed(*recipe, tried=(), elsewhere=(), engine="onnxruntime"):
    model = Model(path=Path("model.onnx"), recipe=recipe, engine=engine)
    so_far = SoFar(
        tried=list(tried), elsewhere=list(elsewhere), budget=CompressConfig().budget(), sketch=lambda _: None
    )
    found = Optimize().propose(model, so_far)
    return found and found["engine"]


def test_every_engine_that_is_installed_is_tried_on_the_original(monkeypatch):
    first = measured(on("openvino-bf16"), ratio=0.5)
    assert proposed() == "openvino-bf16"
    assert proposed(tried=[first]) == "openvino"
    assert proposed(tried=[first, measured(on("openvino"), ratio=0.9)]) is None
    assert proposed(engine="openvino", tried=[first]) is None
    monkeypatch.setattr(optimize, "has_openvino", lambda: False)
    assert proposed() is None


def test_what_was_made_of_the_original_goes_to_engines_that_paid_for_its_datatype():
    thin = ("slim", {"ratio": 0.5})
    on_original = [measured(on("openvino-bf16"), ratio=0.5), measured(on("openvino"), ratio=1.2)]
    assert proposed(thin, elsewhere=on_original) == "openvino-bf16"
    assert proposed(thin, tried=[measured(thin, on("openvino-bf16"), ratio=0.2)], elsewhere=on_original) is None
    # Of float nothing is known for int8.
    assert proposed(INT8, elsewhere=[*on_original, measured(INT8, ratio=0.4)]) == "openvino-bf16"
    slower = [measured(INT8, ratio=0.4), measured(INT8, on("openvino-bf16"), ratio=0.5)]
    assert proposed(thin, INT8, elsewhere=slower) == "openvino"
    failed = [measured(INT8, ratio=0.4), measured(INT8, on("openvino-bf16"), ratio=1.0, status="failed")]
    assert proposed(thin, INT8, elsewhere=failed) == "openvino"


def test_an_engine_without_kernels_for_a_form_of_graph_is_not_tried_in_another_precision():
    base = measured(INT8, ratio=0.4)
    slow, near = (measured(INT8, on("openvino-bf16"), ratio=ratio) for ratio in (0.85, 0.75))
    assert proposed(INT8, tried=[slow], elsewhere=[base]) is None
    assert proposed(INT8, tried=[near], elsewhere=[base]) == "openvino"
    assert proposed(tried=[measured(on("openvino-bf16"), ratio=2.1)]) is None
