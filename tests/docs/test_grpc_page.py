"""The pages about gRPC say what the code does, and the client they show runs."""

import re
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from argosy.core import errors
from argosy.serve.control import GatewayConfig
from argosy.serve.rpc import codec, service
from argosy.serve.rpc.status import status_of
from served import linear

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "reference" / "grpc.md").read_text()


def table(section):
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:3] == "| `"]


def names(cell):
    return set(re.findall(r"`(\w+)`", cell))


def test_every_method_stands_there():
    assert set().union(*(names(row[0]) for row in table("Methods"))) == {
        path.decode().rpartition("/")[2] for path in service.METHODS
    }


def test_every_datatype_stands_there_with_its_field():
    found = {name: names(field) for kinds, field in table("Tensors") for name in names(kinds)}
    assert found == {name: {field} for name, field in codec._FIELDS.items()} | {"FP16": set()}


def test_every_status_an_error_can_have_stands_there():
    kinds = errors.ArgosyError.__subclasses__()
    codes = ("", "unauthorized", "body_too_large", "answer_too_large", "unknown_method")
    numbers = {status_of(kind("no", code=code)) for kind in kinds for code in codes}
    told = {getattr(grpc.StatusCode, name).value[0] for row in table("Errors") for name in names(row[0])}
    # Nothing a caller can ask for meets a conflict.
    assert numbers - told == {grpc.StatusCode.ABORTED.value[0]}


def test_the_limits_are_those_that_hold():
    config = GatewayConfig(socket="", state="", key="")
    assert f"within {config.receive_s:.0f} s" in PAGE
    assert f"{config.max_connections:,} connections" in PAGE
    assert f"Messages may have {config.max_body_bytes >> 20} MiB" in PAGE
    assert f"typed contents may have {codec.MAX_TYPED_BYTES >> 20} MiB" in PAGE
    assert f"the gateway's {config.timeout_s:.0f} s" in PAGE


@pytest.mark.capability("I1")
def test_the_client_of_the_how_to_runs_as_it_stands(installed):
    (installed.folder / "model.onnx").write_bytes(linear())
    page = (DOCS / "how-to" / "ask-over-grpc.md").read_text()
    command = re.search(r"```sh\nargosy (.*?)\n```", page)[1]
    shown = installed.ok(*command.split(), "--port", "0")
    address = re.search(r"^  grpc  (\S+)$", shown, re.MULTILINE)[1]
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    assert "127.0.0.1:8701" in code
    done = subprocess.run(
        [sys.executable, "-c", code.replace("127.0.0.1:8701", address)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[[")
