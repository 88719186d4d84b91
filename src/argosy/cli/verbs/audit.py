"""`audit verify|show`, `keys show`, `config show`."""

import msgspec

from argosy.cli.output import Output
from argosy.cli.verbs.models import when
from argosy.cli.workspace import Workspace
from argosy.core.clock import SystemClock
from argosy.core.config import Secret
from argosy.registry.registry import open_registry
from argosy.security.keys import parse_public, public_text


def verify(*, as_json: bool) -> None:
    """Check the whole log from its first entry; raises IntegrityError naming the first bad one."""
    output = Output(as_json=as_json)
    settings, clock = Workspace().settings, SystemClock()
    # Not through the workspace: it reads the log first, and a damaged one would end there.
    report = open_registry(settings, clock).log.verify()
    output.line(f"[green]✓[/] {report.entries} entries: chain, order and every signature hold")
    output.line(f"  head {report.head_hash}")
    output.result(msgspec.to_builtins(report))


def show(*, last: int, as_json: bool) -> None:
    """Show the newest entries."""
    output = Output(as_json=as_json)
    log = Workspace().registry.log
    entries = list(log.entries(after=max(0, log.head - last)))
    rows = [(str(e.seq), when(e.time), e.actor, e.kind, e.subject, e.hash[7:19]) for e in entries]
    output.table(("entry", "time", "who", "what", "subject", "hash"), rows)
    output.result([msgspec.to_builtins(e) for e in entries])


def keys(*, as_json: bool) -> None:
    """Show this machine's key and the trusted ones."""
    output = Output(as_json=as_json)
    ring = Workspace().registry.keys
    public = public_text(ring.public_key)
    output.line(f"[bold]{public}[/]  this machine signs with it")
    for key in ring.trusted():
        output.line(f"trusted  {key}" + ("  (its own)" if key == ring.key_id else ""))
    output.line(f"on another machine with the same store: argosy keys trust {public}")
    output.result({"key": ring.key_id, "public": public, "trusted": ring.trusted()})


def trust(public_key: str, *, as_json: bool) -> None:
    """Admit another key to the log; the entry that does so is signed with this machine's."""
    output = Output(as_json=as_json)
    entry = Workspace().registry.log.trust(parse_public(public_key))
    output.line(f"[green]✓[/] admitted by entry {entry.seq} of the log: {entry.subject}")
    output.result({"entry": entry.seq, "key": entry.subject})


def config(*, as_json: bool) -> None:
    """Show the settings and their sources."""
    output = Output(as_json=as_json)
    settings = Workspace().settings
    values = {name: getattr(settings, name) for name in settings.sources}
    found = {name: repr(value) if isinstance(value, Secret) else str(value) for name, value in values.items()}
    output.table(("setting", "value", "from"), [(n, v, settings.sources[n]) for n, v in found.items()])
    output.result({n: {"value": v, "source": settings.sources[n]} for n, v in found.items()})
