"""Certificates are checked when they are given, with errors that say what to do."""

import datetime as dt

import pytest

from argosy.core.errors import InvalidInput
from argosy.security.certificates import check_files, read_certificate, self_signed

NOW = 1_800_000_000.0
DAY_S = 86400.0


def write(folder, names=("models.example",), name="tls", now=NOW, days=10):
    certificate, key = self_signed(names, now, days)
    paths = folder / f"{name}-cert.pem", folder / f"{name}-key.pem"
    paths[0].write_bytes(certificate)
    paths[1].write_bytes(key)
    paths[1].chmod(0o600)
    return paths


@pytest.mark.capability("Z1")
def test_a_self_signed_certificate_is_for_its_names_and_its_time(tmp_path):
    certificate, key = write(tmp_path, ["models.example", "127.0.0.1", "::1"])
    found = check_files(certificate, key, ["models.example", "127.0.0.1", "::1"], NOW)
    assert found == read_certificate(certificate)
    assert set(found.names) == {"models.example", "127.0.0.1", "::1"}
    assert found.is_self_signed
    assert found.not_after == NOW + 10 * DAY_S
    assert found.not_before < NOW


@pytest.mark.parametrize(
    ("pattern", "name", "covers"),
    [
        ("models.example", "models.example", True),
        ("models.example", "other.example", False),
        ("models.example", "a.models.example", False),
        ("*.models.example", "a.models.example", True),
        ("*.models.example", "a.b.models.example", False),
        ("*.models.example", "models.example", False),
        ("*.models.example", ".models.example", False),
        ("10.0.0.7", "10.0.0.7", True),
        ("10.0.0.7", "10.0.0.8", False),
        ("2001:db8::1", "2001:0db8:0:0:0:0:0:1", True),
    ],
)
def test_names_are_matched_as_clients_match_them(tmp_path, pattern, name, covers):
    certificate, _ = write(tmp_path, [pattern])
    assert read_certificate(certificate).covers(name) is covers


def refused(match, *given):
    with pytest.raises(InvalidInput, match=match) as caught:
        check_files(*given)
    assert "PRIVATE KEY" not in str(caught.value) + caught.value.hint
    return caught.value.code


def test_a_missing_name_is_named_with_those_that_are_there(tmp_path):
    code = refused("is for 'models.example', not for 'other.example'", *write(tmp_path), ["other.example"], NOW)
    assert code == "certificate_names"


def test_a_certificate_is_refused_before_its_time_and_after_it(tmp_path):
    certificate, key = write(tmp_path)
    ends = dt.datetime.fromtimestamp(NOW + 10 * DAY_S, dt.UTC)
    found = refused(f"expired on {ends:%Y-%m-%d}", certificate, key, [], NOW + 11 * DAY_S)
    assert found == "certificate_expired"
    assert refused("is not valid before", certificate, key, [], NOW - DAY_S) == "certificate_expired"
    assert check_files(certificate, key, [], NOW + 9 * DAY_S)


def test_a_key_of_another_certificate_is_refused(tmp_path):
    certificate, _ = write(tmp_path)
    _, other = write(tmp_path, name="other")
    assert refused("is not the one of the certificate", certificate, other, [], NOW) == "key_mismatch"


def test_files_that_are_missing_or_something_else_are_named(tmp_path):
    certificate, key = write(tmp_path)
    nowhere, text = tmp_path / "nowhere.pem", tmp_path / "text.pem"
    text.write_text("hello")
    text.chmod(0o600)
    assert refused("certificate '.*nowhere.pem' can't be read: No such file", nowhere, key, [], NOW)
    assert refused("private key '.*nowhere.pem' can't be read", certificate, nowhere, [], NOW)
    assert refused("holds no certificate in PEM form", text, key, [], NOW) == "bad_certificate"
    assert refused("holds no private key in PEM form", certificate, text, [], NOW) == "bad_private_key"
    assert refused("holds no private key in PEM form", certificate, certificate, [], NOW)


def test_an_encrypted_key_is_refused_because_nobody_types_its_passphrase(tmp_path):
    from cryptography.hazmat.primitives import serialization

    certificate, key = write(tmp_path)
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    locked = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    key.write_bytes(locked)
    assert refused("is encrypted, and a gateway that restarts", certificate, key, [], NOW) == "bad_private_key"


def test_a_private_key_that_everybody_can_read_is_refused_with_the_remedy(tmp_path):
    certificate, key = write(tmp_path)
    key.chmod(0o644)
    with pytest.raises(InvalidInput, match="can be read by everybody") as caught:
        check_files(certificate, key, [], NOW)
    assert caught.value.hint == f"chmod 600 '{key}'"
