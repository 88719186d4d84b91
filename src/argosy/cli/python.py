"""The verbs of the command line as functions: `import argosy; argosy.deploy("digits:3")`.

Each does what the command of its name does and returns, as plain values, what that writes with `--json`. Nothing is
printed. Errors are those of `argosy.core.errors`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from argosy.cli.output import quietly

Found = dict[str, Any]


def run(file: str | Path = ".", *, changes: Mapping[str, object] | None = None, until: str = "publish") -> Found:
    """Do every stage of a project that is not done yet, up to `until`; return what was made.

    `changes` are settings that win over the file, such as `{"train.epochs": 3}`. The stages' own names (`train`,
    `evaluate`, `compress`, `explain`) are packages in Python, so they are asked for by `until`. Raises GateFailed when
    the version missed a gate.
    """
    from argosy.cli.verbs import run as verb

    with quietly() as results:
        verb.run(Path(file), _sets(changes), until=until, as_json=True)
    return _last(results)


def plan(file: str | Path = ".", *, changes: Mapping[str, object] | None = None, measure: bool = False) -> Found:
    """Return what a run would do, and what a rollout would be able to see at today's traffic."""
    from argosy.cli.verbs import plan as verb

    with quietly() as results:
        verb.plan(Path(file), _sets(changes), measure=measure, as_json=True)
    return _last(results)


def deploy(
    what: str | Path = "",
    *,
    name: str = "",
    file: str | Path = ".",
    changes: Mapping[str, object] | None = None,
    replicas: int = 0,
    port: int = -1,
    grpc_port: int | None = None,
    now: bool = False,
    wait: bool = True,
) -> Found:
    """Serve a version, and with `wait` return when its rollout has ended; raises RolledBack when it ended so.

    `now` skips the rollout's judge. Arguments as of `argosy deploy`.
    """
    from argosy.cli.verbs import deploy as verb

    with quietly() as results:
        verb.deploy(
            str(what),
            name=name,
            file=Path(file),
            changes=_sets(changes),
            replicas=replicas,
            port=port,
            grpc_port=grpc_port,
            now=now,
            detach=not wait,
            extra=None,
            requires=None,
            prepare=None,
            as_json=True,
        )
    return _last(results)


def watch(endpoint: str = "") -> Found:
    """Return endpoints, replicas and rollouts as they are now. Raises NotFound for an unknown endpoint."""
    from argosy.cli.verbs import watch as verb

    with quietly() as results:
        verb.watch(endpoint, once=True, as_json=True)
    return _last(results)


def rollback(endpoint: str) -> Found:
    """End the rollout under way, or put the former version back; return when that is true."""
    from argosy.cli.verbs import deploy as verb

    with quietly() as results:
        verb.rollback(endpoint, as_json=True)
    return _last(results)


def promote(endpoint: str) -> Found:
    """Promote the rollout under way, whatever the evidence; return when the new version has all requests."""
    from argosy.cli.verbs import deploy as verb

    with quietly() as results:
        verb.promote(endpoint, as_json=True)
    return _last(results)


def abort(endpoint: str) -> Found:
    """End the rollout under way; the endpoint stays with what it serves."""
    from argosy.cli.verbs import deploy as verb

    with quietly() as results:
        verb.abort(endpoint, as_json=True)
    return _last(results)


def pause(endpoint: str) -> Found:
    """Hold the rollout under way at its share; it is still judged, and its time limits wait."""
    from argosy.cli.verbs import deploy as verb

    with quietly() as results:
        verb.pause(endpoint, as_json=True)
    return _last(results)


def resume(endpoint: str) -> Found:
    """Let a paused rollout go on."""
    from argosy.cli.verbs import deploy as verb

    with quietly() as results:
        verb.resume(endpoint, as_json=True)
    return _last(results)


def predict(endpoint: str, inputs: Mapping[str, Any] | str, *, url: str = "", timeout: float = 60.0) -> Found:
    """Ask an endpoint once; `argosy.Client` keeps its connection and is what a program should use."""
    import json

    from argosy.cli.verbs import predict as verb

    with quietly() as results:
        given = inputs if isinstance(inputs, str) else json.dumps(dict(inputs))
        verb.predict(endpoint, given, url=url, timeout_s=timeout, as_json=True)
    return _last(results)


def why(what: str) -> Found:
    """Trace a prediction, a version, or a rollout back to its evidence; a rollout's verdicts are judged again."""
    from argosy.cli.verbs import why as verb

    with quietly() as results:
        verb.why(what, as_json=True)
    return _last(results)


def _sets(changes: Mapping[str, object] | None) -> list[str] | None:
    import json

    # JSON's forms of texts, numbers, truth and lists are TOML's too.
    return [f"{name}={json.dumps(value)}" for name, value in changes.items()] if changes else None


def _last(results: list[Any]) -> Found:
    found: Found = results[-1] if results else {}
    return found
