"""The annotations of `predict` are the signature, and everything that can't be one is said clearly."""

import pytest

from argosy.core.errors import InvalidInput
from models_of_own import load


def inputs_of(text):
    return [(s.name, s.datatype, s.shape, s.columns, s.content) for s in load(text).signature.inputs]


def outputs_of(text):
    return [(s.name, s.datatype, s.shape, s.columns, s.content) for s in load(text).signature.outputs]


def test_a_batch_model_takes_arrays_with_the_batch_first():
    assert inputs_of("""
        class M(argosy.Model):
            def predict(self, text: argosy.Text, raw: argosy.Bytes, photo: argosy.Image, n: argosy.INT64,
                        x: Annotated[argosy.FP32, argosy.Shape(3, -1)], flag: argosy.BOOL,
                        row: Annotated[argosy.FP64, argosy.Columns("age", "income")]) -> argosy.FP32: ...
        """) == [
        ("text", "BYTES", (-1,), (), "text"),
        ("raw", "BYTES", (-1,), (), ""),
        ("photo", "BYTES", (-1,), (), "image"),
        ("n", "INT64", (-1,), (), ""),
        ("x", "FP32", (-1, 3, -1), (), ""),
        ("flag", "BOOL", (-1,), (), ""),
        ("row", "FP64", (-1, 2), ("age", "income"), ""),
    ]  # fmt: skip


def test_a_row_model_takes_plain_values():
    assert inputs_of("""
        class M(argosy.RowModel):
            def predict(self, text: str, raw: bytes, photo: argosy.ImageFile, n: int, f: float, flag: bool,
                        x: Annotated[argosy.FP32, argosy.Shape(3)]) -> float: ...
        """) == [
        ("text", "BYTES", (-1,), (), "text"),
        ("raw", "BYTES", (-1,), (), ""),
        ("photo", "BYTES", (-1,), (), "image"),
        ("n", "INT64", (-1,), (), ""),
        ("f", "FP64", (-1,), (), ""),
        ("flag", "BOOL", (-1,), (), ""),
        ("x", "FP32", (-1, 3), (), ""),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["class Answer(NamedTuple)", "class Answer(TypedDict)", "@dataclass\nclass Answer"])
def test_the_result_is_a_namedtuple_a_dict_or_a_dataclass(kind):
    text = f"""
{kind}:
    label: argosy.Text
    scores: Annotated[argosy.FP32, argosy.Columns("no", "yes")]

class M(argosy.Model):
    def predict(self, text: argosy.Text) -> Answer: ...
"""
    assert outputs_of(text) == [
        ("label", "BYTES", (-1,), (), "text"),
        ("scores", "FP32", (-1, 2), ("no", "yes"), ""),
    ]


def test_a_single_type_is_the_output_named_output():
    found = outputs_of("class M(argosy.Model):\n    def predict(self, x: argosy.FP32) -> argosy.FP16: ...")
    assert found == [("output", "FP16", (-1,), (), "")]


def test_annotations_may_be_given_as_text():
    found = inputs_of("class M(argosy.Model):\n    def predict(self, x: 'argosy.FP32') -> 'argosy.FP32': ...")
    assert found == [("x", "FP32", (-1,), (), "")]


def test_a_decorated_predict_keeps_its_signature():
    found = inputs_of("""
        import functools

        def logged(function):
            @functools.wraps(function)
            def inner(*args, **kwargs):
                return function(*args, **kwargs)
            return inner

        class M(argosy.Model):
            @logged
            def predict(self, x: argosy.FP32) -> argosy.FP32: ...
        """)
    assert [name for name, *_ in found] == ["x"]


PREDICT = "class M(argosy.Model):\n    def predict({}"
ROW = "class M(argosy.RowModel):\n    def predict({}"
WRONG = {
    "no predict": ("class M(argosy.Model):\n    pass", "has no method 'predict'"),
    "static": ("class M(argosy.Model):\n    @staticmethod\n    def predict(x): ...", "has no method 'predict'"),
    "no input": (PREDICT.format("self) -> argosy.FP32: ..."), "takes no input"),
    "no annotation": (PREDICT.format("self, x) -> argosy.FP32: ..."), "input 'x' of 'M' has no annotation"),
    "no result": (PREDICT.format("self, x: argosy.FP32): ..."), "doesn't say what it returns"),
    "none": (PREDICT.format("self, x: argosy.FP32) -> None: ..."), "is None"),
    "default": (PREDICT.format("self, x: argosy.FP32 = 1) -> argosy.FP32: ..."), "input 'x' of 'M' has a default"),
    "args": (PREDICT.format("self, *x: argosy.FP32) -> argosy.FP32: ..."), "takes '*x"),
    "kwargs": (PREDICT.format("self, **x: argosy.FP32) -> argosy.FP32: ..."), "takes '**x"),
    "positional": (PREDICT.format("self, x: argosy.FP32, /) -> argosy.FP32: ..."), "can't be given by name"),
    "unknown type": (PREDICT.format("self, x: list) -> argosy.FP32: ..."), "'list', which is no type of a tensor"),
    "bare array": (PREDICT.format("self, x: np.ndarray) -> argosy.FP32: ..."), "'ndarray', which is no type"),
    "unknown name": (PREDICT.format("self, x: 'argosy.BF16') -> argosy.FP32: ..."), "can't be understood"),
    "plain in a batch": (PREDICT.format("self, x: str) -> argosy.FP32: ..."), "but predict gets a whole batch"),
    "array in a row": (ROW.format("self, x: argosy.FP32) -> float: ..."), "a row of it is a single value"),
    "shape of a plain one": (ROW.format("self, x: Annotated[int, argosy.Shape(2)]) -> float: ..."), "has no shape"),
    "no sizes": (PREDICT.format("self, x: Annotated[argosy.FP32, argosy.Shape()]) -> argosy.FP32: ..."), "shape []"),
    "size 0": (PREDICT.format("self, x: Annotated[argosy.FP32, argosy.Shape(0)]) -> argosy.FP32: ..."), "shape [0]"),
    "size": (PREDICT.format("self, x: Annotated[argosy.FP32, argosy.Shape('3')]) -> argosy.FP32: ..."), "['3']"),
    "two shapes": (
        PREDICT.format("self, x: Annotated[argosy.FP32, argosy.Shape(2), argosy.Shape(3)]) -> argosy.FP32: ..."),
        "has 2 shapes",
    ),
    "columns": (
        PREDICT.format("self, x: Annotated[argosy.FP32, argosy.Columns('a', 'a')]) -> argosy.FP32: ..."),
        "has the columns ['a', 'a']",
    ),
    "async": ("class M(argosy.Model):\n    async def predict(self, x: argosy.FP32) -> argosy.FP32: ...", "is async"),
    "stream": (PREDICT.format("self, x: argosy.FP32) -> argosy.FP32: yield 1"), "answers can't be streamed yet"),
    "async load": (
        PREDICT.format("self, x: argosy.FP32) -> argosy.FP32: ...\n    async def load(self, files): ..."),
        "load of 'M' is async",
    ),
    "load without files": (
        "class M(argosy.Model):\n    def load(self): ...\n    def predict(self, x: argosy.FP32) -> argosy.FP32: ...",
        "load of 'M' can't be called with the deployed files",
    ),
    "empty result": (
        "class A(NamedTuple):\n    pass\nclass M(argosy.Model):\n    def predict(self, x: argosy.FP32) -> A: ...",
        "has no fields",
    ),
    "untyped namedtuple": (
        "import collections as c\nA = c.namedtuple('A', 'y')\n" + PREDICT.format("self, x: argosy.FP32) -> A: ..."),
        "output 'y' of 'M' has no annotation",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_signature_is_refused_and_says_what_to_write(case):
    text, said = WRONG[case]
    with pytest.raises(InvalidInput) as caught:
        load(text)
    assert said in caught.value.message
    assert caught.value.code == "model_class_wrong"
    assert caught.value.hint
