"""`argosy advise` and `tools`."""

from pathlib import Path
from typing import Annotated

import typer

from argosy.cli.commands.options import AsJson, File, Set, group

advise = group("What to do, with the numbers it follows from.")
tools = group("Tools of other frameworks, each in an environment of its own.")


@advise.command("training")
def advise_training(
    file: File = Path(),
    changes: Set = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure again, even if this training was measured before.")
    ] = False,
    hosts: Annotated[int, typer.Option(help="Machines like this one that train together.")] = 1,
    link: Annotated[str, typer.Option(help="What joins them: bandwidth, and time there and back.")] = "1Gbit/s, 0.5ms",
    as_json: AsJson = False,
) -> None:
    """Measure for seconds how your model trains in every way: time of a step and in all, memory, and what to take."""
    from argosy.cli.verbs import plan as verb

    verb.advise_training(file, changes, measure=measure, hosts=hosts, link=link, as_json=as_json)


@advise.command("compression")
def advise_compression(
    model: Annotated[str, typer.Argument(help="A version, or an ONNX file or Hugging Face folder.")],
    data: Annotated[str, typer.Option("--data", help="File or folder to judge by; default: that of its run.")] = "",
    label: Annotated[str, typer.Option("--label", help="Column of the answers; default: the usual names.")] = "",
    max_drop: Annotated[str, typer.Option("--max-drop", help="Largest loss, such as 1pt of accuracy.")] = "1pt",
    as_json: AsJson = False,
) -> None:
    """Measure what makes this model smaller or faster on this machine: each method, and which to take."""
    from argosy.cli.verbs import compress as verb

    verb.advise(model, data=data, label=label, max_drop=max_drop, as_json=as_json)


@tools.command("list")
def tools_list(as_json: AsJson = False) -> None:
    """List the tools that conversions use, and where each is installed."""
    from argosy.cli.verbs import convert as verb

    verb.list_tools(as_json=as_json)


@tools.command("install")
def tools_install(
    name: Annotated[str, typer.Argument(help="As `argosy tools list` calls it.")], as_json: AsJson = False
) -> None:
    """Install a tool apart from your own packages. Run it again after an interruption."""
    from argosy.cli.verbs import convert as verb

    verb.install_tool(name, as_json=as_json)
