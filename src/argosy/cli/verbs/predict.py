"""`predict`: ask a served endpoint, as any HTTP client would."""

import http.client
import json
import socket
import ssl
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

from argosy.cli.output import Output
from argosy.cli.workspace import GatewayAddress, Workspace
from argosy.core.errors import ArgosyError, InvalidInput, Unavailable

_TIMEOUT_S = 60.0


class Refused(ArgosyError):
    """The endpoint answered with an error."""

    code = "refused"


def predict(endpoint: str, inputs: str, *, as_json: bool) -> None:
    """Send the inputs to the endpoint and show the answer."""
    output = Output(as_json=as_json)
    body = as_body(read_inputs(inputs))
    workspace = Workspace()
    status, found, headers = _post(
        workspace.gateway_address(), f"/predict/{quote(endpoint, safe='')}", body, workspace.settings.api_key
    )
    if status != 200:
        says = found if isinstance(found, dict) else {}
        raise Refused(
            f"'{endpoint}' answered {status}: {says.get('error', found)}",
            hint="set ARGOSY_API_KEY to a key for it" if status in (401, 403) else str(says.get("hint", "")),
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


def _post(address: GatewayAddress, path: str, body: bytes, key: str) -> tuple[int, Any, dict[str, str]]:
    connection = http.client.HTTPConnection(address.name, address.port, timeout=_TIMEOUT_S)
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    try:
        connection.sock = _connected(address)
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read()), {k.lower(): v for k, v in answer.getheaders()}
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unavailable(
            f"the gateway at {address.url} did not answer: {error}", hint="start it with: argosy up"
        ) from error
    finally:
        connection.close()


def _connected(address: GatewayAddress) -> socket.socket:
    plain = socket.create_connection((address.host, address.port), timeout=_TIMEOUT_S)
    if not address.certificate:
        return plain
    try:
        context = ssl.create_default_context()
        # Its own certificate stands on this machine, so it is known without any authority.
        context.load_verify_locations(address.certificate)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context.wrap_socket(plain, server_hostname=address.name.strip("[]"))
    except BaseException:
        plain.close()
        raise
