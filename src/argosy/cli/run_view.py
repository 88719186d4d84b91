"""What a run looks like: a bar per stage on a terminal, a line now and then in a pipe."""

from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from argosy.cli.output import Output
from argosy.core.clock import Clock
from argosy.core.progress import Progress
from argosy.core.units import format_size, format_time

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

_LINE_EVERY_S = 5.0
# Of what a stage leaves, the values worth a place in its line; `--json` has them all.
_WORTH: dict[str, tuple[str, ...]] = {
    "data": ("task", "labels", "train", "validation", "test"),
    "train": ("epochs", "accuracy", "rmse", "perplexity", "test_accuracy", "test_rmse", "test_perplexity"),
    "convert": ("size_bytes", "agreement"),
    "compress": ("name", "size_bytes", "times_smaller", "times_faster", "drop_points"),
    "publish": ("versions",),
}


class RunView:
    """Takes the news of a run and shows it. Use as a context manager."""

    def __init__(self, output: Output, clock: Clock, does: dict[str, str]) -> None:
        self._output = output
        self._clock = clock
        self._does = does
        self._started: dict[str, float] = {}
        self._last_line = 0.0
        self._bars: Bars | None = None
        self._bar: TaskID | None = None

    def __enter__(self) -> Self:
        if self._output.is_live:
            from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bars
            from rich.table import Column

            self._bars = Bars(
                SpinnerColumn(),
                TextColumn("{task.description:<9}", table_column=Column(min_width=9, no_wrap=True)),
                BarColumn(bar_width=24, table_column=Column(min_width=24)),
                TimeElapsedColumn(table_column=Column(min_width=7)),
                TextColumn("{task.fields[news]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
                expand=True,
                console=self._output.console,
                transient=True,
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, news: Progress) -> None:
        """Show one piece of news."""
        if news.message == "started":
            self._started[news.stage] = self._clock.monotonic()
            self._begin(news.stage)
        elif news.message == "finished":
            seconds = self._clock.monotonic() - self._started.get(news.stage, self._clock.monotonic())
            self._end()
            self._output.line(
                f"[green]✓[/] {news.stage:<9} {format_time(seconds):>10}  [dim]{_values(_worth(news))}[/]"
            )
        elif news.message == "cached":
            self._output.line(f"[dim]·[/] {news.stage:<9} {'done before':>10}  [dim]{_values(_worth(news))}[/]")
        else:
            self._go_on(news)

    def _begin(self, stage: str) -> None:
        self._last_line = self._clock.monotonic()
        if self._bars is not None:
            self._bar = self._bars.add_task(stage, total=None, news=self._does.get(stage, ""))
        else:
            self._output.line(f"  {stage:<9} {self._does.get(stage, '')}")

    def _end(self) -> None:
        if self._bars is not None and self._bar is not None:
            self._bars.remove_task(self._bar)
            self._bar = None

    def _go_on(self, news: Progress) -> None:
        from rich.markup import escape

        text = _news(news)
        if news.is_note:
            self._output.line(f"  {news.stage:<9} {escape(text)}")
        elif self._bars is not None and self._bar is not None:
            self._bars.update(self._bar, completed=news.done, total=news.total or None, news=text)
        elif self._clock.monotonic() - self._last_line >= _LINE_EVERY_S:
            self._last_line = self._clock.monotonic()
            self._output.line(f"  {news.stage:<9} {escape(text)}")


def _news(news: Progress) -> str:
    parts = [news.message] if news.message else []
    if news.total:
        parts.append(f"{news.unit} {news.done:g} of {news.total:g}".strip())
    if news.values:
        parts.append(_values(news.values))
    if news.left_s >= 0:
        parts.append(f"{format_time(news.left_s)} left")
    return ", ".join(parts)


def _worth(news: Progress) -> dict[str, Any]:
    names = _WORTH.get(news.stage)
    flat = {**news.values, **news.values.get("samples", {})}
    return flat if names is None else {name: flat[name] for name in names if name in flat}


def _values(values: dict[str, Any]) -> str:
    return "  ".join(f"{name} {_value(name, value)}" for name, value in values.items() if _is_short(value))


def _is_short(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(v, str) and len(v) <= 24 for v in value)
    return isinstance(value, (int, float)) or (isinstance(value, str) and 0 < len(value) <= 48)


def _value(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        return format_size(float(value))
    if name == "seconds":
        return format_time(float(value))
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
