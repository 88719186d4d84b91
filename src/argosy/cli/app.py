"""The command `argosy`, whole: every failure becomes one clear error and an exit code.

Nothing heavy is imported here: `argosy --help` has to be instant.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from argosy.cli.commands import endpoints, jobs, making, records, serving, tools, versions
from argosy.core.errors import ArgosyError, Internal
from argosy.core.version import __version__

app = typer.Typer(
    name="argosy",
    help="A large model from data to a running, watched, reversible service, from one file.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for top in (making.commands, serving.commands, jobs.commands):
    app.add_typer(top)
app.add_typer(versions.models, name="models")
app.add_typer(records.audit, name="audit")
app.add_typer(records.keys, name="keys")
app.add_typer(records.config, name="config")
app.add_typer(endpoints.endpoints, name="endpoints")
app.add_typer(endpoints.gateway, name="gateway")
app.add_typer(endpoints.access, name="access")
app.add_typer(endpoints.monitor, name="monitor")
app.add_typer(jobs.jobs, name="jobs")
app.add_typer(tools.advise, name="advise")
app.add_typer(tools.tools, name="tools")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"argosy {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; every failure becomes one clear error and an exit code, never a stack."""
    try:
        app(standalone_mode=True)
    except ArgosyError as error:
        _say(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of our output has gone: `argosy models list | head`
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        meant = _meant(error)
        _say(meant)
        sys.exit(meant.exit_code)
    except Exception as error:  # noqa: BLE001 the outermost border: the stack goes to a file, the user gets one line
        fault = _unexpected(error)
        _say(fault)
        sys.exit(fault.exit_code)


def _say(error: ArgosyError) -> None:
    from argosy.cli.output import Output

    Output(as_json="--json" in sys.argv).error(error)


def _meant(error: OSError) -> ArgosyError:
    from argosy.core.files import explained

    found = explained(error, Path(str(error.filename or "a file")))
    return found if isinstance(found, ArgosyError) else _unexpected(error)


def _unexpected(error: Exception) -> Internal:
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="argosy-fault-", suffix=".txt", delete=False) as stream:
        stream.write("".join(traceback.format_exception(error)))
    return Internal(
        f"something in Argosy itself went wrong: {type(error).__name__}: {error}",
        hint=f"please report it with '{stream.name}'",
    )
