"""`argosy models`: the versions there are."""

from pathlib import Path
from typing import Annotated

import typer

from argosy.cli.commands.options import AsJson, Prepare, Requires, With, group

models = group("Versions: list, show, history.")


@models.command("list")
def models_list(
    name: Annotated[str, typer.Argument(help="Name of the model; default: all.")] = "", as_json: AsJson = False
) -> None:
    """List versions with their gates, size and role."""
    from argosy.cli.verbs import models as verb

    verb.list_versions(name, as_json=as_json)


@models.command("show")
def models_show(version: Annotated[str, typer.Argument(help="For example digits:3.")], as_json: AsJson = False) -> None:
    """Show one version, its signature checked."""
    from argosy.cli.verbs import models as verb

    verb.show(version, as_json=as_json)


@models.command("import")
def models_import(
    what: Annotated[
        str, typer.Argument(help="An ONNX file, a Hugging Face folder, or a Python file (model.py:Class).")
    ],
    name: Annotated[str, typer.Option(help="Name of the model; default: the file's.")] = "",
    extra: With = None,
    requires: Requires = None,
    prepare: Prepare = None,
    as_json: AsJson = False,
) -> None:
    """Publish a file or folder as a signed version, without serving it."""
    from argosy.cli.verbs import import_model as verb

    verb.publish(what, name=name, prepare=prepare, extra=extra or (), requires=requires or (), as_json=as_json)


@models.command("report")
def models_report(
    version: Annotated[str, typer.Argument(help="For example digits:3.")],
    save: Annotated[Path | None, typer.Option(help="Folder to write the pictures and reports to.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show how a version was compressed: every candidate; with --save, also how it was trained, with pictures."""
    from argosy.cli.verbs import models as verb

    verb.report(version, save, as_json=as_json)


@models.command("history")
def models_history(
    name: Annotated[str, typer.Argument(help="Name of the model or endpoint.")], as_json: AsJson = False
) -> None:
    """What served when, and who moved it."""
    from argosy.cli.verbs import models as verb

    verb.history(name, as_json=as_json)
