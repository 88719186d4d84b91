"""The gateway is opened to others by the installed command: keys, TLS, names, and closed again."""

import json
import os
import signal
import ssl
import urllib.error
import urllib.request

import pytest

from argosy.cluster.local import LocalLauncher
from argosy.core.config import load_settings
from argosy.operate.processes import process_folder
from served import constant


@pytest.fixture
def served(installed):
    (installed.folder / "m.onnx").write_bytes(constant(1.0))
    installed.url = installed.json("deploy", "m.onnx", "--name", "m", "--port", "0")["url"]
    return installed


def ask(url, key="", cafile=None):
    """Return status and code of a prediction, asked as any program would."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(f"{url}/predict/m", b'{"inputs": {"x": [1]}}', headers)
    context = ssl.create_default_context(cafile=cafile) if cafile else None
    try:
        with urllib.request.urlopen(request, timeout=20, context=context) as answer:
            return answer.status, json.loads(answer.read())["outputs"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())["code"]


@pytest.mark.slow
@pytest.mark.capability("Z1", "Z2")
def test_a_gateway_is_opened_with_a_key_and_a_certificate_and_closed_again(served):
    assert ask(served.url) == (200, {"y": [1.0]})
    assert "without TLS and access control" in served.refused("gateway", "set", "--host", "0.0.0.0")

    granted = served.json("access", "grant", "ada", "--endpoint", "m", "--expires", "30d")
    key = granted["key"]
    assert granted["enforced"]
    assert ask(served.url) == (401, "unauthorized")
    assert ask(served.url, key)[0] == 200
    refusal = served.refused("predict", "m", '{"x": [1]}')
    assert "401" in refusal
    assert "ARGOSY_API_KEY" in refusal
    served.environment["ARGOSY_API_KEY"] = key
    assert served.json("predict", "m", '{"x": [1]}')["outputs"] == {"y": [1.0]}

    public = ("gateway", "set", "--host", "0.0.0.0", "--allow-host", "localhost", "--tls")
    assert "without TLS" in served.refused("gateway", "set", "--host", "0.0.0.0", "--allow-host", "localhost")
    opened = served.json(*public, "self-signed")
    cafile = opened["settings"]["tls_cert"]
    assert opened["url"] == f"https://localhost:{served.url.rpartition(':')[2]}"
    assert ask(opened["url"], key, cafile) == (200, {"y": [1.0]})
    assert ask(opened["url"], "", cafile) == (401, "unauthorized")
    assert served.json("predict", "m", '{"x": [1]}')["outputs"] == {"y": [1.0]}
    shown = served.json("gateway", "show")
    assert (shown["state"], shown["access"]) == ("running", {"is_on": True, "keys": 1})
    assert "localhost" in shown["certificate"]["names"]
    assert "others reach it" in served.refused("access", "off")
    assert "without TLS" in served.refused("gateway", "set", "--tls", "off")

    other = served.json("access", "grant", "bob", "--endpoint", "elsewhere")
    assert ask(opened["url"], other["key"], cafile) == (403, "forbidden")
    revoked = served.json("access", "revoke", "ada")
    assert revoked["enforced"]
    assert ask(opened["url"], key, cafile) == (401, "unauthorized")
    listed = served.json("access", "list")
    assert [(found["name"], found["endpoints"]) for found in listed["keys"]] == [("bob", ["elsewhere"])]

    served.ok(*opened["undo"].split()[1:])
    assert served.json("access", "off")["enforced"]
    closed = served.json("gateway", "show")
    assert closed["url"] == served.url
    assert ask(served.url) == (200, {"y": [1.0]})
    del served.environment["ARGOSY_API_KEY"]
    told = served.ok("audit", "show", "--json") + served.ok("config", "show") + served.ok("access", "list", "--json")
    assert key[16:] not in told
    assert served.json("audit", "verify")["entries"] > 5


@pytest.mark.capability("Z2")
def test_a_controller_that_hangs_does_not_keep_a_revoked_key_alive(served):
    key = served.json("access", "grant", "ada")["key"]
    assert ask(served.url, key)[0] == 200
    launcher = LocalLauncher(process_folder(load_settings(served.environment)))
    controller = next(info.pid for info in launcher.list("controller") if info.alive)
    os.kill(controller, signal.SIGSTOP)
    try:
        assert served.json("access", "revoke", "ada")["enforced"]
        assert ask(served.url, key) == (401, "unauthorized")
    finally:
        os.kill(controller, signal.SIGCONT)


def test_a_key_that_is_set_is_not_shown(installed):
    key = "argosy_abcdefgh_" + "s" * 52
    installed.environment["ARGOSY_API_KEY"] = key
    assert "ssss" not in installed.ok("config", "show") + installed.ok("config", "show", "--json")
    assert installed.json("config", "show")["api_key"]["source"] == "ARGOSY_API_KEY"


def test_what_a_key_may_not_be_is_refused_and_nothing_is_printed(installed):
    for arguments in (("ada", "--expires", "soon"), ("ada", "--weight", "-1"), ("a b",), ("ada", "--endpoint", "*")):
        refusal = installed.refused("access", "grant", *arguments)
        assert "argosy_" not in refusal
    assert installed.json("access", "list") == {"is_on": False, "keys": []}
    assert "nobody called 'ada' has a key" in installed.refused("access", "revoke", "ada")


def test_settings_can_be_made_before_anything_is_served(installed):
    told = installed.ok("gateway", "set", "--tls", "self-signed", "--allow-host", "models.example")
    assert "nothing is served now" in told
    assert installed.json("gateway", "show")["settings"]["hosts"] == ["models.example"]
    (installed.folder / "m.onnx").write_bytes(constant(1.0))
    found = installed.json("deploy", "m.onnx", "--name", "m", "--port", "0")
    assert found["url"].startswith("https://models.example:")
    assert installed.json("predict", "m", '{"x": [1]}')["outputs"] == {"y": [1.0]}
    assert "contradict" in installed.refused("gateway", "set", "--tls", "off", "--tls-cert", "x.pem")
    assert "is not known" in installed.refused("gateway", "set", "--tls", "on")
    nowhere = installed.refused("gateway", "set", "--tls-cert", "x.pem", "--tls-key", "y.pem")
    assert "can't be read: No such file" in nowhere
