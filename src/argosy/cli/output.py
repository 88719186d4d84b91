"""How commands speak: coloured and live on a terminal, plain lines in a pipe, one JSON document with `--json`."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from argosy.core.errors import ArgosyError

if TYPE_CHECKING:
    from rich.console import Console


_RESULTS: ContextVar[list[Any] | None] = ContextVar("results", default=None)


@contextlib.contextmanager
def quietly() -> Iterator[list[Any]]:
    """Let commands that are run inside with `as_json` write nothing; what they would have written is returned."""
    results: list[Any] = []
    before = _RESULTS.set(results)
    try:
        yield results
    finally:
        _RESULTS.reset(before)


class Output:
    """Where a command says what it does. With `as_json` only `result` and `error` write, and only once."""

    sink: ClassVar[Callable[[Any], None] | None] = None
    """Where the document of a command that runs as a job goes too, whether it was asked for or not."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json

    @property
    def is_live(self) -> bool:
        """Whether somebody looks at a terminal."""
        return not self.as_json and sys.stdout.isatty()

    @cached_property
    def console(self) -> "Console":
        """Rich's console on standard output; in a pipe it writes no colours and does not wrap."""
        from rich.console import Console

        # Lines of a pipe are read by programs: they must not be broken at the width of a terminal.
        return Console(highlight=False, soft_wrap=not sys.stdout.isatty())

    def line(self, text: str = "") -> None:
        """Write one line; `text` may hold rich markup."""
        if self.as_json:
            return
        self.console.print(text)
        sys.stdout.flush()

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
        """Write a table."""
        if self.as_json:
            return
        from rich import box
        from rich.markup import escape
        from rich.table import Table

        table = Table(*columns, title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for row in rows:
            table.add_row(*[escape(cell) for cell in row])
        if not sys.stdout.isatty():
            self.console.width = 200
        self.console.print(table)

    def result(self, value: Any) -> None:
        """Write the one JSON document of a command, if it was asked for."""
        if Output.sink is not None:
            Output.sink(msgspec.json.decode(msgspec.json.encode(value, enc_hook=str)))
        results = _RESULTS.get()
        if self.as_json and results is not None:
            results.append(msgspec.json.decode(msgspec.json.encode(value, enc_hook=str)))
        elif self.as_json:
            sys.stdout.write(msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2).decode() + "\n")

    def error(self, error: ArgosyError) -> None:
        """Say what went wrong and what to do, on standard error (and as JSON on standard output when asked)."""
        if self.as_json:
            self.result({"error": error.as_dict()})
            return
        from rich.console import Console
        from rich.markup import escape

        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print(f"[bold red]error[/] [dim]({error.code})[/] {escape(error.message)}")
        if error.hint:
            console.print(f"  [bold]hint[/] {escape(error.hint)}")
