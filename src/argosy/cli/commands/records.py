"""`argosy audit`, `keys` and `config`."""

from typing import Annotated

import typer

from argosy.cli.commands.options import AsJson, group

audit = group("The tamper-evident log: verify it, read it.")
keys = group("Signing keys of this machine and keys it trusts.")
config = group("Settings and where each came from.")


@audit.command("verify")
def audit_verify(as_json: AsJson = False) -> None:
    """Check every entry, its place and its signature; name the first bad one."""
    from argosy.cli.verbs import audit as verb

    verb.verify(as_json=as_json)


@audit.command("show")
def audit_show(
    last: Annotated[int, typer.Option(help="How many of the newest entries.")] = 20, as_json: AsJson = False
) -> None:
    """Show the newest entries of the log."""
    from argosy.cli.verbs import audit as verb

    verb.show(last=last, as_json=as_json)


@keys.command("show")
def keys_show(as_json: AsJson = False) -> None:
    """Show this machine's key and the keys it trusts."""
    from argosy.cli.verbs import audit as verb

    verb.keys(as_json=as_json)


@keys.command("trust")
def keys_trust(
    public_key: Annotated[str, typer.Argument(help="As `argosy keys show` prints it on the other machine.")],
    as_json: AsJson = False,
) -> None:
    """Admit another machine's key: what it signs is believed from now on."""
    from argosy.cli.verbs import audit as verb

    verb.trust(public_key, as_json=as_json)


@config.command("show")
def config_show(as_json: AsJson = False) -> None:
    """Show every setting of this machine and where it came from."""
    from argosy.cli.verbs import audit as verb

    verb.config(as_json=as_json)
