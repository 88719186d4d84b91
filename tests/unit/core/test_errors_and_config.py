"""Errors keep what they carry across processes; settings come from where they say."""

import pickle

import pytest

from argosy.core import errors
from argosy.core.config import allows_plain_http, child_environment, load_settings, private_folder

KINDS = errors.ArgosyError.__subclasses__()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_survives_pickling_and_plain_values_with_its_context(kind):
    error = kind("model 'a' has no version 9", hint="list them", code="own_code", found=7)
    for again in (pickle.loads(pickle.dumps(error)), errors.from_dict(errors.to_dict(error))):
        assert type(again) is kind
        assert (again.message, again.hint, again.code) == (error.message, error.hint, error.code)
        assert again.context["found"] == 7


def test_codes_and_exit_codes_are_distinct():
    built_in = [kind for kind in KINDS if kind.__module__ == errors.__name__]
    assert len({kind.code for kind in built_in}) == len(built_in)
    assert len({kind.exit_code for kind in built_in}) == len(built_in)


def test_settings_tell_where_each_came_from(tmp_path):
    settings = load_settings({"ARGOSY_HOME": str(tmp_path), "HOME": "/nowhere", "USER": "ada"})
    assert settings.home == tmp_path
    assert settings.store == (tmp_path / "store").as_uri()
    assert settings.actor == "ada"
    assert settings.sources["home"] == "ARGOSY_HOME"
    assert settings.sources["store"] == "default"


def test_the_default_home_follows_xdg(tmp_path):
    assert load_settings({"XDG_DATA_HOME": str(tmp_path)}).home == tmp_path / "argosy"
    assert load_settings({"HOME": str(tmp_path)}).home == tmp_path / ".local/share/argosy"


def test_the_socket_folder_is_short_however_long_the_home_is(tmp_path):
    settings = load_settings({"ARGOSY_HOME": str(tmp_path / ("x" * 200))})
    assert len(str(settings.runtime)) < 60


def test_a_private_folder_is_closed_to_others(tmp_path):
    folder = private_folder(tmp_path / "run")
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("text", "allowed"), [("true", True), ("1", True), ("", False), ("false", False)])
def test_an_object_store_without_tls_is_used_only_when_that_is_asked_for(text, allowed):
    assert allows_plain_http({"AWS_ALLOW_HTTP": text}) is allowed


KEY = "argosy_abcdefgh_" + "s" * 52


@pytest.mark.capability("Z2")
def test_the_api_key_comes_from_the_environment_or_a_file_and_is_never_printed(tmp_path):
    named = load_settings({"ARGOSY_API_KEY": f" {KEY}\n", "HOME": "/nowhere"})
    path = tmp_path / "key"
    path.write_text(KEY + "\n")
    in_file = load_settings({"ARGOSY_API_KEY_FILE": str(path), "HOME": "/nowhere"})
    assert named.api_key == in_file.api_key == KEY
    assert f"Bearer {named.api_key}" == f"Bearer {KEY}"
    assert (named.sources["api_key"], in_file.sources["api_key"]) == ("ARGOSY_API_KEY", "ARGOSY_API_KEY_FILE")
    assert "ssss" not in repr(named) + repr(in_file)
    assert load_settings({"HOME": "/nowhere"}).api_key == ""


def test_a_key_file_that_cannot_be_read_is_named_and_its_content_is_not(tmp_path):
    (tmp_path / "key").write_bytes(b"argosy_\xff")
    for name in ("nowhere", "key"):
        with pytest.raises(errors.InvalidInput, match=f"ARGOSY_API_KEY_FILE names .*{name}") as caught:
            load_settings({"ARGOSY_API_KEY_FILE": str(tmp_path / name), "HOME": "/nowhere"})
        assert "argosy_" not in str(caught.value)


@pytest.mark.parametrize("found", [f"{KEY}\nX-Evil: 1", f"key {KEY}", f"{KEY}\x00", "schlüssel"])
def test_a_key_that_could_not_stand_in_a_header_is_refused_without_repeating_it(found, tmp_path):
    (tmp_path / "key").write_text(found, encoding="utf-8")
    for variable, value in (("ARGOSY_API_KEY", found), ("ARGOSY_API_KEY_FILE", str(tmp_path / "key"))):
        with pytest.raises(errors.InvalidInput, match=variable) as caught:
            load_settings({variable: value, "HOME": "/nowhere"})
        assert "ssss" not in str(caught.value)
        assert "schl" not in str(caught.value)


def test_started_processes_do_not_inherit_the_api_key(monkeypatch):
    monkeypatch.setenv("ARGOSY_API_KEY", KEY)
    monkeypatch.setenv("ARGOSY_API_KEY_FILE", "/nowhere")
    monkeypatch.setenv("ARGOSY_HOME", "/somewhere")
    found = child_environment({"OMP_NUM_THREADS": "1"})
    assert KEY not in found.values()
    assert "ARGOSY_API_KEY_FILE" not in found
    assert (found["ARGOSY_HOME"], found["OMP_NUM_THREADS"]) == ("/somewhere", "1")
