"""Draw what `argosy watch` shows now as an SVG: how the picture in the README was made.

ARGOSY_HOME=.demo python picture.py watch.svg
"""

import io
import sys

from rich.console import Console

from argosy.cli.endpoint_view import picture
from argosy.cli.workspace import Workspace


def main() -> None:
    console = Console(record=True, width=118, file=io.StringIO())
    console.print("[bold]$ argosy watch[/]\n")
    console.print(picture(Workspace().observer.look()))
    console.save_svg(sys.argv[1], title="argosy")


if __name__ == "__main__":
    main()
