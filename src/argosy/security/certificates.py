"""Certificates of the gateway: are they right, whom are they for, until when; and one to try things with.

Names are those of RFC 6125 and RFC 9525: the subject's alternative names only, wildcards for one whole label.
"""

import datetime as dt
import ipaddress
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from argosy.core.errors import InvalidInput

if TYPE_CHECKING:
    from cryptography import x509

_BACKDATED = dt.timedelta(minutes=5)


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """What a certificate says."""

    names: tuple[str, ...]
    """DNS names and addresses it is for."""
    issuer: str
    not_before: float
    not_after: float
    """Wall clock, seconds."""
    is_self_signed: bool

    def covers(self, name: str) -> bool:
        """Return whether a client that calls the server `name` accepts this certificate."""
        return any(_matches(pattern, name) for pattern in self.names)


def read_certificate(path: Path) -> Certificate:
    """Read the first certificate of a PEM file, the server's own. Raises InvalidInput."""
    found = _load_certificate(path)
    return Certificate(
        names=_names(found),
        issuer=found.issuer.rfc4514_string(),
        not_before=found.not_valid_before_utc.timestamp(),
        not_after=found.not_valid_after_utc.timestamp(),
        is_self_signed=found.issuer == found.subject,
    )


def check_files(certificate: Path, key: Path, names: Sequence[str], now: float) -> Certificate:
    """Return what the certificate says, after checking that a server called `names` can use it now.

    Raises InvalidInput when a file can't be read, the key is another certificate's or readable by everybody, the time
    is wrong, or a name is missing.
    """
    found = read_certificate(certificate)
    _check_key(certificate, key)
    if not found.not_before <= now < found.not_after:
        word, moment = ("expired", found.not_after) if now >= found.not_after else ("is not valid", found.not_before)
        raise InvalidInput(
            f"the certificate '{certificate}' {word} {'on' if word == 'expired' else 'before'} {_date(moment)}",
            hint="renew it",
            code="certificate_expired",
        )
    missing = [name for name in names if not found.covers(name)]
    if missing:
        raise InvalidInput(
            f"the certificate '{certificate}' is for {_listed(found.names)}, not for {_listed(missing)}",
            hint="name what it is for with --allow-host, or get one for these names",
            code="certificate_names",
        )
    return found


def self_signed(names: Iterable[str], now: float, days: int) -> tuple[bytes, bytes]:
    """Return certificate and private key (PEM) for these names, for trying things: no client trusts it unasked."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "argosy gateway, self-signed")])
    begin = dt.datetime.fromtimestamp(now, dt.UTC)
    usages = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - _BACKDATED)
        .not_valid_after(begin + dt.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usages, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return made.public_bytes(serialization.Encoding.PEM), private


def _load_certificate(path: Path) -> "x509.Certificate":
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(_read(path, "certificate"))[0]
    except ValueError as error:
        raise InvalidInput(
            f"'{path}' holds no certificate in PEM form",
            hint="it begins with '-----BEGIN CERTIFICATE-----'",
            code="bad_certificate",
        ) from error


def _check_key(certificate: Path, key: Path) -> None:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    text = _read(key, "private key")
    try:
        private = load_pem_private_key(text, password=None)
    except TypeError as error:
        raise InvalidInput(
            f"the private key '{key}' is encrypted, and a gateway that restarts has nobody to ask for the passphrase",
            hint="store it without one, readable by the gateway's user alone: openssl pkey -in <file> -out <new file>",
            code="bad_private_key",
        ) from error
    except ValueError as error:
        # What the library says may quote the file.
        raise InvalidInput(f"'{key}' holds no private key in PEM form", code="bad_private_key") from error
    if key.stat().st_mode & 0o007:
        raise InvalidInput(
            f"the private key '{key}' can be read by everybody on this machine",
            hint=f"chmod 600 '{key}'",
            code="open_private_key",
        )
    if private.public_key() != _load_certificate(certificate).public_key():
        raise InvalidInput(
            f"the private key '{key}' is not the one of the certificate '{certificate}'",
            hint="give the two files that were made together",
            code="key_mismatch",
        )


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(
            f"the {what} '{path}' can't be read: {error.strerror}", code="certificate_unreadable"
        ) from error


def _names(certificate: "x509.Certificate") -> tuple[str, ...]:
    from cryptography import x509

    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    addresses = [str(address) for address in found.get_values_for_type(x509.IPAddress)]
    return tuple(name.lower() for name in (*found.get_values_for_type(x509.DNSName), *addresses))


def _general_name(name: str) -> "x509.GeneralName":
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _matches(pattern: str, name: str) -> bool:
    try:
        return ipaddress.ip_address(pattern) == ipaddress.ip_address(name)
    except ValueError:
        pass
    head, _, rest = name.partition(".")
    return pattern == name or (pattern.startswith("*.") and bool(head) and pattern[2:] == rest)


def _date(moment: float) -> str:
    return f"{dt.datetime.fromtimestamp(moment, dt.UTC):%Y-%m-%d %H:%M} UTC"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "no name"
