"""`predict`: ask a served endpoint, as any HTTP client would."""

import http.client
import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from argosy.cli.output import Output
from argosy.cli.workspace import Workspace
from argosy.core.errors import ArgosyError, InvalidInput, Unavailable

_TIMEOUT_S = 60.0


class Refused(ArgosyError):
    """The endpoint answered with an error."""

    code = "refused"


def predict(endpoint: str, inputs: str, *, as_json: bool) -> None:
    """Send the inputs to the endpoint and show the answer."""
    output = Output(as_json=as_json)
    body = as_body(read_inputs(inputs))
    url = Workspace().gateway_url()
    status, found, headers = _post(url, f"/predict/{quote(endpoint, safe='')}", body)
    if status != 200:
        says = found if isinstance(found, dict) else {}
        raise Refused(
            f"'{endpoint}' answered {status}: {says.get('error', found)}",
            hint=str(says.get("hint", "")),
            code=str(says.get("code", "refused")),
            status=status,
        )
    for name, value in found.get("outputs", {}).items():
        output.line(f"{name:<14} {json.dumps(value)}")
    output.line(f"[dim]by {headers.get('argosy-version', '?')}[/]")
    output.line(f"[dim]why: argosy why {headers.get('argosy-prediction', '?')}[/]")
    output.result(found)


def read_inputs(inputs: str) -> str:
    """Return the JSON text that was typed, or that stands in a file or on standard input."""
    if inputs == "-":
        return sys.stdin.read()
    if inputs.lstrip().startswith(("{", "[")):
        return inputs
    try:
        return Path(inputs).read_text()
    except OSError as error:
        raise InvalidInput(
            f"the inputs {inputs!r} are neither JSON nor a file that can be read", hint="try: '{\"x\": 1.5}'"
        ) from error


def as_body(text: str) -> bytes:
    """Return the body of a request from what people type. Raises InvalidInput."""
    try:
        found: Any = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"the inputs are not JSON: {error}") from error
    # `{"x": 1}` is what people type; `{"inputs": {"x": 1}}` is what goes over the wire.
    whole = found if isinstance(found, dict) and "inputs" in found else {"inputs": found}
    return json.dumps(whole).encode()


def _post(url: str, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=_TIMEOUT_S)
    try:
        connection.request("POST", path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read()), {k.lower(): v for k, v in answer.getheaders()}
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unavailable(f"the gateway at {url} did not answer: {error}", hint="start it with: argosy up") from error
    finally:
        connection.close()
