"""From one prediction, or one version, back to the data and code it came from: offline, signatures checked."""

from typing import Any

import msgspec

from argosy.pipeline.graph import STAGES
from argosy.registry.registry import Registry
from argosy.registry.versions import Version


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """One step back. `facts` are what is known of it; `verified` says what was checked to believe them."""

    what: str
    name: str
    facts: dict[str, Any] = {}
    verified: str = ""


def trace_version(registry: Registry, version: Version) -> list[Link]:
    """Return the links from a version back to its data, nearest first.

    The version's signature and every file's digest are verified on the way, and the log entries are those of the
    verified chain. Raises IntegrityError when anything was changed.
    """
    loaded = registry.versions.load(version.digest)
    manifest = loaded.manifest
    files = {name: f"{ref.digest[:19]} {ref.size_bytes} B" for name, ref in manifest.files.items()}
    links = [
        Link(
            what="version",
            name=str(version),
            facts={"digest": loaded.digest, "role": manifest.role, "created": manifest.created, "files": files},
            verified="signature and the digest of every file",
        ),
        Link(what="evaluation", name=manifest.evaluation.kind, facts=msgspec.to_builtins(manifest.evaluation)),
    ]
    if manifest.lineage.recipe:
        links.append(Link(what="compression", name="recipe", facts=manifest.lineage.recipe))
    if manifest.lineage.parent:
        parent = registry.versions.get(manifest.lineage.parent)
        links.append(Link(what="made from", name=str(parent), facts={"digest": parent.digest}))
    for stage in reversed(STAGES):
        key = manifest.lineage.stages.get(stage.name, "")
        entry = registry.log.last("stage.finished", key) if key else None
        if entry is not None:
            facts: dict[str, Any] = {
                k: entry.data[k] for k in ("run", "seconds", "config", "outputs") if k in entry.data
            }
            links.append(
                Link(
                    what="stage",
                    name=stage.name,
                    facts={"key": key, "entry": entry.seq, "actor": entry.actor, "time": entry.time, **facts},
                    verified=f"log entry {entry.seq}, signed by {entry.key[:12]}",
                )
            )
    if manifest.lineage.code_commit:
        links.append(Link(what="code", name=manifest.lineage.code_commit))
    if manifest.lineage.data_digest:
        links.append(Link(what="data", name=manifest.lineage.data_digest))
    return links
