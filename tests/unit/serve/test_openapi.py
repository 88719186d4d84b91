"""The OpenAPI document, the snippets and the page: what they say is what the gateway does."""

import ast
import contextlib
import json
import re
import shlex

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openapi_spec_validator import validate

from argosy.core.errors import InvalidInput
from argosy.core.tensors import DATATYPES, Signature, TensorSpec
from argosy.serve import pages, plain
from argosy.serve.access import POLICIES
from argosy.serve.openapi import Described, describe, predict_schema
from argosy.serve.requests import check_inputs
from argosy.serve.snippets import sample, snippets

TABLE = Signature(
    inputs=(TensorSpec(name="features", datatype="FP32", shape=(-1, 2), columns=("age", 'it\'s "odd"')),),
    outputs=(
        TensorSpec(name="probabilities", datatype="FP32", shape=(-1, 2), columns=("no", "yes")),
        TensorSpec(name="label", datatype="BYTES", shape=(-1,)),
    ),
)
TEXT = Signature(
    inputs=(TensorSpec(name="text", datatype="BYTES", shape=(-1,), content="text"),),
    outputs=(TensorSpec(name="embedding", datatype="FP32", shape=(-1, 4)),),
)
IMAGE = Signature(
    inputs=(TensorSpec(name="photo", datatype="BYTES", shape=(-1,), content="image"),),
    outputs=(TensorSpec(name="label", datatype="BYTES", shape=(-1,)),),
)
LARGE = Signature(
    inputs=(TensorSpec(name="pixels", datatype="FP16", shape=(-1, 3, 224, 224)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 1000)),),
)
MIXED = Signature(
    inputs=(
        TensorSpec(name="ids", datatype="INT64", shape=(-1, -1)),
        TensorSpec(name="flag", datatype="BOOL", shape=(-1,)),
        TensorSpec(name="word", datatype="BYTES", shape=(-1, 2)),
    ),
    outputs=(TensorSpec(name="y", datatype="UINT8", shape=(-1, -1)),),
)
FIXED = Signature(
    inputs=(TensorSpec(name="x", datatype="FP64", shape=(3, 2)),),
    outputs=(TensorSpec(name="y", datatype="FP64", shape=()),),
)
ALL = {"table": TABLE, "text": TEXT, "image": IMAGE, "large": LARGE, "mixed": MIXED, "fixed": FIXED}


def document(**options):
    described = [Described(name, f"{name}:1", ("1",), signature) for name, signature in ALL.items()]
    described.append(Described("loading", "loading:1", (), None))
    return describe(described, "http://127.0.0.1:8700", release="1.0", **options)


@pytest.mark.parametrize("needs_key", [True, False])
def test_the_document_is_valid_openapi(needs_key):
    made = document(needs_key=needs_key)
    validate(json.loads(json.dumps(made)))
    assert ("security" in made) is needs_key
    validate(describe([], "http://127.0.0.1:8700", release="1.0"))


def test_every_path_of_the_gateway_is_described_and_no_other():
    described = {re.sub(r"\{name\}", "{endpoint}", path) for path in document()["paths"]}
    described = {re.sub(rf"/({'|'.join(ALL)})(?=/|$)", "/{endpoint}", path) for path in described}
    assert described == set(POLICIES)


def test_open_paths_need_no_key_in_the_document():
    paths = document(needs_key=True)["paths"]
    is_open = {path for path, methods in paths.items() for m in methods.values() if m.get("security") == []}
    assert is_open == {path for path, policy in POLICIES.items() if policy == "open"}


def test_names_and_ids_are_unique():
    ids = [m["operationId"] for methods in document()["paths"].values() for m in methods.values()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", ALL)
def test_the_sample_fits_the_schema_and_the_decoder(name):
    signature = ALL[name]
    body = {"inputs": sample(signature)}
    jsonschema.validate(body, predict_schema(signature))
    if name != "image":  # whose sample only says what belongs there
        check_inputs(signature, plain.decode_request(json.dumps(body).encode(), signature).inputs)


# What fits the schema is taken, what is taken fits -----------------------------------------------------------------

SPECS = st.builds(
    lambda name, datatype, inner, columns: TensorSpec(
        name=name,
        datatype=datatype,
        shape=(-1, len(columns)) if columns else (-1, *inner),
        columns=tuple(columns),
    ),
    st.sampled_from("xyz"),
    st.sampled_from(list(DATATYPES)),
    st.lists(st.integers(1, 3), max_size=2),
    st.just([]) | st.lists(st.text("abc", min_size=1, max_size=2), unique=True, min_size=1, max_size=3),
)
SIGNATURES = st.lists(SPECS, min_size=1, max_size=2, unique_by=lambda spec: spec.name).map(
    lambda specs: Signature(inputs=tuple(specs), outputs=())
)


def element(schema):
    if "anyOf" in schema:
        return st.one_of(*(element(inner) for inner in schema["anyOf"]))
    kind = schema["type"]
    if kind == "array":
        most = schema.get("maxItems", schema.get("minItems", 0) + 2)
        return st.lists(element(schema["items"]), min_size=schema.get("minItems", 0), max_size=most)
    if kind == "object":
        return st.fixed_dictionaries({name: element(inner) for name, inner in schema["properties"].items()})
    if kind == "number":
        low, high = schema.get("minimum"), schema.get("maximum")
        return st.floats(low, high, allow_nan=False, allow_infinity=False) | st.integers(-5, 5)
    if kind == "integer":
        return st.integers(schema["minimum"], schema["maximum"])
    return {"boolean": st.booleans(), "null": st.none(), "string": st.text(max_size=5)}[kind]


def is_distinct(signature):
    """Names of columns and tensors must differ, or JSON can't tell them apart; publishing refuses others."""
    names = [name for spec in signature.inputs for name in (spec.columns or (spec.name,))]
    return len(names) == len(set(names)) and not set(names) & {s.name for s in signature.inputs if s.columns}


@given(st.data())
def test_what_fits_the_schema_is_taken(data):
    signature = data.draw(SIGNATURES.filter(is_distinct))
    body = data.draw(element(predict_schema(signature)))
    check_inputs(signature, plain.decode_request(json.dumps(body).encode(), signature).inputs)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyzabc"), inner, max_size=3),
    max_leaves=8,
)


@given(SIGNATURES.filter(is_distinct), JSON)
@settings(max_examples=300)
def test_what_does_not_fit_the_schema_is_refused_or_one_of_the_forms_it_can_not_say(signature, inputs):
    body = {"inputs": inputs}
    try:
        jsonschema.validate(body, predict_schema(signature))
    except jsonschema.ValidationError:
        known = {name for spec in signature.inputs for name in (*spec.columns, spec.name)}
        rows = inputs if isinstance(inputs, list) else [inputs]
        if rows and all(isinstance(row, dict) and row and set(row) <= known for row in rows):
            return  # lists of equal length, column by column, or a table's row as a whole
        with pytest.raises(InvalidInput):
            plain.decode_request(json.dumps(body).encode(), signature)
    else:
        with contextlib.suppress(InvalidInput):
            plain.decode_request(json.dumps(body).encode(), signature)


# Snippets ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("needs_key", [True, False])
@pytest.mark.parametrize("name", ALL)
def test_snippets_are_well_formed_whatever_the_names(name, needs_key):
    awkward = 'it\'s "odd" $(x)'
    for label, text in snippets(
        awkward, ALL[name], "https://h:1", grpc="h:2", needs_key=needs_key, ca_file="/a b/ca.pem"
    ).items():
        if label == "curl":
            words = shlex.split("\n".join(line for line in text.splitlines() if line[0] != "#"))
            assert "https://h:1/predict/it%27s%20%22odd%22%20%24%28x%29" in words
            assert words[words.index("--cacert") + 1] == "/a b/ca.pem"
            assert ("authorization: Bearer $ARGOSY_API_KEY" in words) is needs_key
        else:
            ast.parse(text)
            assert repr(awkward) in text
            # argosy.Client finds the key by itself
            assert ("ARGOSY_API_KEY" in text) is (needs_key and label != "python")


def test_without_grpc_there_is_no_snippet_for_it():
    assert list(snippets("m", TEXT, "http://h:1")) == ["curl", "python", "tritonclient"]


# The page ------------------------------------------------------------------------------------------------------------


def test_the_page_loads_nothing_from_elsewhere_and_runs_only_its_own_script():
    page, headers = pages.docs()
    text = page.decode()
    assert not re.findall(
        r"""(?:src|href|url)\s*[=(]\s*["']?(?!data:,|openapi\.json)[^\s"'>)]+""", text.split("<script>")[0]
    )
    assert "http" not in text
    assert text.count("<script>") == text.count("<style>") == 1
    assert not re.search(r"\son[a-z]+=|style=|innerHTML", text)
    policy = headers.partition("content-security-policy: ")[2].partition("\r\n")[0]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
