"""Small pieces the page is put together from. Text goes in as text, never as markup or a property's name."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

from argosy.web.page.look import tone_of, words


class Text(TextElement):
    """An HTML element with text in it, which is sent only when it has changed."""

    def __init__(self, tag: str, text: str = "", classes: str = "") -> None:
        super().__init__(tag=tag, text=text)
        self._shown = ""
        if classes:
            self.classes(classes)

    def show(self, text: str, tone: str | None = None) -> Self:
        """Show this text, in this tone (one of the classes good, warn, bad, quiet, or none)."""
        if text != self.text:
            self.text = text
        if tone is not None and tone != self._shown:
            self.classes(replace=" ".join(c for c in (*self._kept(), tone) if c))
            self._shown = tone
        return self

    def _kept(self) -> list[str]:
        return [c for c in self.classes if c != self._shown]


def box(tag: str, classes: str = "", **properties: str) -> ui.element:
    """Return an element to put others into. Properties may hold anything: they are set, not parsed."""
    found = ui.element(tag)
    if classes:
        found.classes(classes)
    for name, value in properties.items():
        found.props[name.rstrip("_").replace("_", "-")] = value
    return found


class State:
    """A state as a sign and a word."""

    def __init__(self, classes: str = "") -> None:
        self._tone = ""
        with box("span", f"state {classes}") as self._box:
            self._icon = ui.icon("help")
            self._icon.props["aria-hidden"] = "true"
            self._text = Text("span")

    def show(self, state: str, says: str = "") -> None:
        """Show a state, with other words than its own if wanted."""
        tone, icon = tone_of(state)
        self._text.show(says or words(state))
        if tone != self._tone or self._icon.props["name"] != icon:
            self._box.classes(remove=self._tone or None, add=tone)
            self._icon.props["name"] = icon
            self._icon.update()
            self._tone = tone


class Cell(NamedTuple):
    """What stands in one place of a table."""

    text: str
    tone: str = ""
    bar: float | None = None
    """A share of one, drawn beside the text."""
    color: str = ""
    """A colour that the row has in the charts."""


class Column(NamedTuple):
    """A column of a table."""

    title: str
    is_number: bool = False
    is_wide: bool = False
    """Whether it takes what room is left, and breaks its lines."""


class Grid:
    """A small table whose numbers change all the time: only what changed is sent."""

    def __init__(self, columns: Sequence[Column], caption: str) -> None:
        self._columns = columns
        self._cells: list[list[tuple[Text, ui.element | None, ui.element | None]]] = []
        with box("div", "scroll", tabindex="0", role="region", aria_label=caption), box("table", "grid"):
            Text("caption", caption, "unseen")
            with box("thead"), box("tr"):
                for column in columns:
                    Text("th", column.title, "number" if column.is_number else "").props["scope"] = "col"
            self._body = box("tbody")

    def show(self, rows: Sequence[Sequence[Cell]]) -> None:
        """Show these rows."""
        shape = [[(cell.bar is not None, bool(cell.color)) for cell in row] for row in rows]
        if shape != [[(bar is not None, sign is not None) for _, bar, sign in row] for row in self._cells]:
            self._build(rows)
        for row, cells in zip(rows, self._cells, strict=True):
            for cell, (text, bar, sign) in zip(row, cells, strict=True):
                text.show(cell.text, cell.tone)
                _style(bar, f"width:{100 * min(1.0, max(0.0, cell.bar or 0.0)):.1f}%")
                _style(sign, f"background:{cell.color}")

    def _build(self, rows: Sequence[Sequence[Cell]]) -> None:
        self._body.clear()
        self._cells = []
        with self._body:
            for row in rows:
                with box("tr"):
                    self._cells.append([self._place(c, cell) for c, cell in zip(self._columns, row, strict=True)])

    def _place(self, column: Column, cell: Cell) -> tuple[Text, ui.element | None, ui.element | None]:
        classes = ("number" if column.is_number else "") + (" wide" if column.is_wide else "")
        with box("td", classes.strip()), box("div", "place"):
            sign = box("i", "sign", aria_hidden="true") if cell.color else None
            bar = None
            if cell.bar is not None:
                with box("span", "bar", aria_hidden="true"):
                    bar = box("i")
                    _style(bar, f"background:{cell.color}" if cell.color else "")
            return Text("span"), bar, sign


def _style(element: ui.element | None, style: str) -> None:
    if element is not None and style:
        name = style.partition(":")[0]
        if element.style.get(name) != style.partition(":")[2]:
            element.style(style)


class Chart:
    """A chart with its title, and the newest value of each line in words beside it."""

    def __init__(self, title: str, *, classes: str = "") -> None:
        self._keys: list[tuple[Text, Text, ui.element]] = []
        self._shape: list[tuple[str, str, Any]] = []
        with box("figure", f"chart {classes}"):
            with box("figcaption"):
                self.title = Text("span", title, "title")
                self._key = box("span", "key")
            self._chart = ui.echart({"series": []}).classes("canvas")
            self._chart.props["role"] = "img"
            self._chart.props["aria-label"] = title
            self._empty = Text("span", "", "empty")

    def show(self, options: dict[str, Any], newest: Sequence[tuple[str, str]], empty: str = "") -> None:
        """Draw, and say for each line its name and newest value; `empty` is said in place of a picture of nothing."""
        self._empty.show(empty)
        named = [s for s in options["series"] if s["name"]]
        shape = [(s["name"], s["color"], s["lineStyle"]["type"]) for s in named]
        if shape != self._shape:
            self._shape = shape
            self._keys = []
            self._key.clear()
            with self._key:
                for line in named:
                    with box("span", "entry"):
                        sign = box("i", "dash " + ("solid" if line["lineStyle"]["type"] == "solid" else "dashed"))
                        sign.style(f"color:{line['color']}")
                        self._keys.append((Text("span"), Text("b"), sign))
        values = dict(newest)
        for (name, value, _), line in zip(self._keys, named, strict=True):
            name.show(line["name"])
            value.show(values.get(line["name"], ""))
        self._chart.options.clear()
        self._chart.options.update(options)
        self._chart.update()


class Rebuilt:
    """A place that is built anew when what it shows has changed, and left alone else."""

    def __init__(self, classes: str = "", tag: str = "div") -> None:
        self.box = box(tag, classes)
        self._key: Any = None

    def show(self, key: Any, build: Callable[[], None]) -> None:
        """Build if `key` is another than before."""
        if key != self._key:
            self._key = key
            self.box.clear()
            with self.box:
                build()


def command(text: str) -> None:
    """Show a command line that can be copied."""
    with box("span", "command"):
        Text("code", text)
        button = ui.button(icon="content_copy", on_click=lambda: ui.clipboard.write(text)).props(
            "flat dense round size=sm"
        )
        button.props["aria-label"] = "copy"
