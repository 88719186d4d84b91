"""From a version to a service: `deploy` to `down`, and what one asks of it."""

from pathlib import Path
from typing import Annotated

import typer

from argosy.cli.commands.options import AsJson, File, Prepare, Requires, Set, With, group

commands = group()


@commands.command()
def deploy(
    what: Annotated[
        str,
        typer.Argument(
            help="A version (digits:3), a name, an ONNX file, a Hugging Face folder, or a Python file "
            "(model.py:Class); default: the project's newest."
        ),
    ] = "",
    name: Annotated[str, typer.Option(help="Name of the endpoint; default: the model's.")] = "",
    extra: With = None,
    requires: Requires = None,
    prepare: Prepare = None,
    file: File = Path(),
    changes: Set = None,
    replicas: Annotated[int, typer.Option(help="Replicas, 0: as [endpoint] says.")] = 0,
    port: Annotated[int, typer.Option(help="Port of the gateway, 0: any free one; default 8700.")] = -1,
    grpc_port: Annotated[
        int | None,
        typer.Option("--grpc-port", help="Port of gRPC, 0: any free one, -1: off; default the one after --port."),
    ] = None,
    now: Annotated[
        bool, typer.Option("--now", help="Skip the canary: switch over as soon as the version is ready.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Don't follow the rollout to its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Serve a version; a canary if the file has a [rollout] section."""
    from argosy.cli.verbs import deploy as verb

    verb.deploy(
        what,
        name=name,
        file=file,
        changes=changes,
        replicas=replicas,
        port=port,
        grpc_port=grpc_port,
        now=now,
        detach=detach,
        extra=extra,
        requires=requires,
        prepare=prepare,
        as_json=as_json,
    )


@commands.command()
def watch(
    endpoint: Annotated[str, typer.Argument(help="Name of the endpoint; default: all.")] = "",
    once: Annotated[bool, typer.Option("--once", help="Show the state and exit.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show endpoints, replicas and rollouts live; ends when the rollout does."""
    from argosy.cli.verbs import watch as verb

    verb.watch(endpoint, once=once, as_json=as_json)


@commands.command()
def ui(
    port: Annotated[int, typer.Option(help="Port of the page, 0: any free one.")] = 8710,
    read_only: Annotated[bool, typer.Option("--read-only", help="Offer nothing that changes anything.")] = False,
    browser: Annotated[bool, typer.Option(help="Open it in a browser, where there is a desktop.")] = True,
) -> None:
    """Show the same in the browser, live, and act from there; on this machine only."""
    from argosy.cli.verbs import ui as verb

    verb.ui(port, read_only=read_only, browser=browser)


@commands.command()
def rollback(
    endpoint: Annotated[str, typer.Argument(help="Name of the endpoint.")],
    as_json: AsJson = False,
) -> None:
    """Put the former version back, or stop the rollout that runs."""
    from argosy.cli.verbs import deploy as verb

    verb.rollback(endpoint, as_json=as_json)


@commands.command()
def promote(
    endpoint: Annotated[str, typer.Argument(help="Name of the endpoint.")],
    as_json: AsJson = False,
) -> None:
    """Promote the rollout that runs now, whatever the evidence says."""
    from argosy.cli.verbs import deploy as verb

    verb.promote(endpoint, as_json=as_json)


@commands.command()
def abort(
    endpoint: Annotated[str, typer.Argument(help="Name of the endpoint.")],
    as_json: AsJson = False,
) -> None:
    """End the rollout that runs; the endpoint stays with what it serves."""
    from argosy.cli.verbs import deploy as verb

    verb.abort(endpoint, as_json=as_json)


@commands.command()
def pause(
    endpoint: Annotated[str, typer.Argument(help="Name of the endpoint.")],
    as_json: AsJson = False,
) -> None:
    """Hold the rollout that runs at its share; it is still judged and may be rolled back, its time limits wait."""
    from argosy.cli.verbs import deploy as verb

    verb.pause(endpoint, as_json=as_json)


@commands.command()
def resume(
    endpoint: Annotated[str, typer.Argument(help="Name of the endpoint.")],
    as_json: AsJson = False,
) -> None:
    """Let a paused rollout go on."""
    from argosy.cli.verbs import deploy as verb

    verb.resume(endpoint, as_json=as_json)


@commands.command()
def predict(
    endpoint: Annotated[str, typer.Argument(help="Name of the endpoint.")],
    inputs: Annotated[
        str,
        typer.Argument(help="JSON, a sentence, a file (data.json, @photo.jpg, @text.txt), or - for standard input."),
    ] = "-",
    url: Annotated[str, typer.Option(help="Address of the gateway; default: this machine's.")] = "",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer, further attempts included.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Ask an endpoint for a prediction."""
    from argosy.cli.verbs import predict as verb

    verb.predict(endpoint, inputs, url=url, timeout_s=timeout, as_json=as_json)


@commands.command()
def explain(
    version: Annotated[str, typer.Argument(help="For example digits:3, or digits for the newest.")],
    inputs: Annotated[str, typer.Argument(help="One row: JSON text, a JSON file, or - for standard input.")] = "-",
    seconds: Annotated[float, typer.Option(help="Time it may take.")] = 5.0,
    save: Annotated[Path | None, typer.Option(help="Draw it to this .png or .svg file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show which parts of an input made a version answer as it does (Shapley values)."""
    from argosy.cli.verbs import explain as verb

    verb.explain(version, inputs, seconds=seconds, save=save, as_json=as_json)


@commands.command()
def why(
    what: Annotated[
        str, typer.Argument(help="A prediction's id, a version (digits:3), a rollout's id (r12), or an endpoint.")
    ],
    save: Annotated[Path | None, typer.Option(help="Draw a rollout's evidence over time to this .svg file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Trace a prediction or version back to its evaluation, run, code and data; judge a rollout's evidence again."""
    from argosy.cli.verbs import why as verb

    verb.why(what, save=save, as_json=as_json)


@commands.command()
def up(as_json: AsJson = False) -> None:
    """Bring back what was deployed from this ARGOSY_HOME, and start its controller if it is not running."""
    from argosy.cli.verbs import deploy as verb

    verb.up(as_json=as_json)


@commands.command()
def down(as_json: AsJson = False) -> None:
    """Stop every process of this ARGOSY_HOME. What was deployed is remembered for `argosy up`."""
    from argosy.cli.verbs import deploy as verb

    verb.down(as_json=as_json)
