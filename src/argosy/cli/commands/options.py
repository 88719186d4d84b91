"""Options that several commands share, and what groups of commands have in common."""

from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Write one JSON document instead of text.")]
File = Annotated[Path, typer.Option("--file", "-f", help="The project file, or the folder it is in.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="section.field=value, wins over the file; repeatable.")]

With = Annotated[
    list[Path] | None,
    typer.Option("--with", help="A file or folder that the Python file needs beside it; repeatable."),
]
Requires = Annotated[
    list[str] | None,
    typer.Option("--requires", help="A package the Python file needs, as for pip: 'nltk>=3.9'; repeatable."),
]
Cpus = Annotated[int, typer.Option("--cpus", help="Cores it keeps to; 0: all, so that jobs run one by one.")]
Memory = Annotated[
    str, typer.Option("--memory", help="Memory it is counted with, such as 2GB; default: as last time, or as planned.")
]
Gpus = Annotated[int, typer.Option("--gpus", help="GPUs it needs.")]
Takes = Annotated[
    str, typer.Option("--estimate", help="How long it will take, such as 10min; default: as last time, or as planned.")
]
Priority = Annotated[int, typer.Option("--priority", help="From -10 to 10; the higher goes first.")]
JobId = Annotated[str, typer.Argument(help="As `argosy jobs` lists it, such as j12.")]

Prepare = Annotated[
    Path | None,
    typer.Option("--prepare", help="A TOML file that says how images or texts become the ONNX file's input."),
]


def group(text: str = "", *, runs_alone: bool = False) -> typer.Typer:
    """Return a group of commands; without a text one whose commands stand at the top."""
    return typer.Typer(
        help=text or None, no_args_is_help=not runs_alone, invoke_without_command=runs_alone, rich_markup_mode=None
    )
