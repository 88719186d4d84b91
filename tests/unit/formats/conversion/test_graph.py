"""The graph of formats: the shortest trusted path, and what is said where none leads."""

import pytest

from argosy.core.errors import InvalidInput, NotFound
from argosy.formats.conversion.graph import CONVERTERS, FORMATS, Converter, all_converters, find_path


def names(path):
    return [f"{edge.source}>{edge.target}" for edge in path]


def edge(source, target, cost=1.0, job=""):
    return Converter(source=source, target=target, job=job or f"{source}:{target}", does="test", cost=cost)


def test_every_edge_joins_formats_that_exist_and_every_end_can_be_asked():
    for one in all_converters():
        assert FORMATS.load(one.source).job
        assert FORMATS.load(one.target).job


def test_every_edge_is_in_the_table_under_its_ends():
    assert len({(one.source, one.target) for one in all_converters()}) == len(CONVERTERS.names())


@pytest.mark.parametrize(
    ("source", "target", "wanted"),
    [
        ("pytorch", "onnx", ["pytorch>onnx"]),
        ("keras", "pytorch", ["keras>onnx", "onnx>pytorch"]),
        ("keras", "litert", ["keras>litert"]),
        ("huggingface", "openvino", ["huggingface>onnx", "onnx>openvino"]),
        ("torchscript", "tvm", ["torchscript>onnx", "onnx>tvm"]),
        ("scikit-learn", "mindir", ["scikit-learn>onnx", "onnx>mindir"]),
    ],
)
def test_the_shortest_path_is_taken(source, target, wanted):
    assert names(find_path(source, target)) == wanted


def test_two_trusted_steps_are_better_than_one_that_is_not():
    edges = [edge("keras", "pytorch", cost=3.0), edge("keras", "onnx"), edge("onnx", "pytorch")]
    assert names(find_path("keras", "pytorch", edges)) == ["keras>onnx", "onnx>pytorch"]


def test_equal_costs_give_the_same_path_in_every_order():
    edges = [edge("keras", "onnx", job="b:x"), edge("keras", "onnx", job="a:x")]
    assert find_path("keras", "onnx", edges)[0].job == find_path("keras", "onnx", edges[::-1])[0].job == "a:x"


def test_where_nothing_leads_it_says_what_can_be_reached():
    with pytest.raises(InvalidInput, match="no converter leads from 'scikit-learn' to 'keras'") as found:
        find_path("scikit-learn", "keras")
    assert found.value.code == "no_conversion"
    assert "onnx" in found.value.hint
    with pytest.raises(InvalidInput) as found:
        find_path("tvm", "onnx")
    assert found.value.hint == "'tvm' is an output only"


def test_a_format_nobody_knows_and_one_it_has_already_are_refused():
    with pytest.raises(NotFound, match="not one of the known formats"):
        find_path("onnx", "caffe")
    with pytest.raises(InvalidInput, match="already"):
        find_path("onnx", "onnx")
