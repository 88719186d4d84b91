"""The page about a training: what came out, how it got there, and with which settings."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import msgspec

from argosy.core.units import format_time
from argosy.pipeline.report.chart import STYLE, Chart, Line, Point, inline, picture

_HIGHER_IS_BETTER = ("accuracy", "f1", "r2")
_NAMES = {"rmse": "RMSE", "mae": "MAE", "r2": "R²", "f1": "F1", "loss": "training loss"}
_ALWAYS = ("epoch", "loss", "validation_loss", "learning_rate", "seconds")
_FOLDED = 12
"""Epochs whose table needs no folding."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What a language model wrote behind a prompt, and how it was drawn."""

    prompt: str
    text: str
    how: str


class TrainingReport(msgspec.Struct, frozen=True, kw_only=True):
    """All that the page shows. `curve` is the loss in between epochs, over epochs as fractions."""

    project: str
    task: str
    history: Sequence[Mapping[str, Any]]
    metric: str
    best: float
    steps: int
    seconds: float
    curve: Sequence[Point] = ()
    samples: Mapping[str, int] = {}
    parameters: int = 0
    restarts: int = 0
    """How often ranks were lost and started again."""
    tested: Mapping[str, float] = {}
    """Metrics of the test part, whose names begin with `test_`; the main one first."""
    settings: Mapping[str, Any] = {}
    choice: Sequence[str] = ()
    """What `strategy = "auto"` chose, and why."""
    notes: Sequence[str] = ()
    texts: Sequence[Sample] = ()

    def charts(self) -> list[Chart]:
        """Return the loss and, when there is a validation part, the metric, over epochs."""
        found = [self._loss()]
        if self.metric != "loss" and len(self.history) > 1:  # a single point is no curve: its value stands above
            found.append(self._metric())
        return found

    def picture(self) -> str:
        """Return the charts as one SVG document."""
        return picture(self.charts())

    def page(self) -> str:
        """Return the page as one HTML document that loads nothing."""
        charts = "".join(f"<figure>{inline(chart)}</figure>" for chart in self.charts())
        parts = [
            f"<header><h1>{escape(self.project)}</h1><p>training report · {escape(self.task)}</p></header>",
            f'<section class="facts">{"".join(_fact(*fact) for fact in self._facts())}</section>',
            f'<section class="charts">{charts}</section>',
            self._written(),
            f"<h2>Epochs</h2>{self._table()}",
            self._settings(),
            _listed("Chosen by auto", self.choice),
            _listed("Data", self.notes),
        ]
        return _PAGE.format(title=escape(self.project), style=_STYLE + STYLE, body="\n".join(filter(None, parts)))

    @property
    def best_epoch(self) -> int:
        """The epoch with the best metric, from 1; 0 if there is none."""
        values = [(float(entry[self.metric]), n) for n, entry in enumerate(self.history, 1) if self.metric in entry]
        known = [(value, n) for value, n in values if math.isfinite(value)]
        if not known:
            return 0
        sign = 1 if self.metric in _HIGHER_IS_BETTER else -1
        return max(known, key=lambda found: (sign * found[0], -found[1]))[1]

    def _loss(self) -> Chart:
        epochs = [(float(n), float(entry["loss"])) for n, entry in enumerate(self.history, 1) if "loss" in entry]
        fine = self.curve if len(self.curve) >= 2 * max(1, len(epochs)) else epochs
        lines = [Line("training", fine)]
        held_out = self._of("validation_loss")
        if held_out:
            lines.append(Line("validation", held_out))
        return Chart(title="Loss", lines=lines, x_name="epoch")

    def _metric(self) -> Chart:
        points, best = self._of(self.metric), self.best_epoch
        marked = next((point for point in points if point[0] == best), None)
        return Chart(
            title=f"{_named(self.metric).capitalize() if self.metric not in _NAMES else _named(self.metric)} "
            "of the validation part",
            lines=[Line(_named(self.metric), points)],
            x_name="epoch",
            best=marked,
            best_says="" if marked is None else f"best: {marked[1]:.4g} in epoch {best}",
        )

    def _of(self, name: str) -> list[Point]:
        return [(float(n), float(entry[name])) for n, entry in enumerate(self.history, 1) if name in entry]

    def _facts(self) -> list[tuple[str, str]]:
        facts = [(f"validation {_named(self.metric)}" if self.metric != "loss" else "loss", _value(self.best))]
        facts += [(_named(name), _value(value)) for name, value in list(self.tested.items())[:1]]
        epochs = len(self.history)
        facts.append((f"epochs, best is {self.best_epoch}" if epochs > 1 else "epochs", str(epochs)))
        facts += [("steps", f"{self.steps:,}"), ("time", format_time(self.seconds))]
        if self.samples.get("train"):
            facts.append(("training samples", f"{self.samples['train']:,}"))
        if self.parameters:
            facts.append(("parameters", f"{self.parameters:,}"))
        if self.restarts:
            facts.append(("ranks lost and replaced", str(self.restarts)))
        return facts

    def _written(self) -> str:
        if not self.texts:
            return ""
        written = "".join(
            f'<blockquote><span class="prompt">{escape(printable(sample.prompt))}</span>'
            f"{escape(printable(sample.text))}<footer>{escape(sample.how)}</footer></blockquote>"
            for sample in self.texts
        )
        return f"<h2>What it writes</h2><p>The grey beginning was given, the rest is the model's.</p>{written}"

    def _table(self) -> str:
        names = [name for name in dict.fromkeys(n for entry in self.history for n in entry) if name != "epoch"]
        names.sort(key=lambda name: (name != self.metric, name not in _ALWAYS[:3], name in _ALWAYS[3:]))
        best = self.best_epoch
        rows = "".join(
            f"<tr{' class=best' if n == best else ''}><th>{n}</th>"
            + "".join(f"<td>{_cell(name, entry.get(name))}</td>" for name in names)
            + "</tr>"
            for n, entry in enumerate(self.history, 1)
        )
        head = "".join(f"<th>{escape(_named(name))}</th>" for name in names)
        table = f'<div class="scroll"><table><tr><th>epoch</th>{head}</tr>{rows}</table></div>'
        if len(self.history) <= _FOLDED:
            return table
        return f"<details><summary>all {len(self.history)} epochs</summary>{table}</details>"

    def _settings(self) -> str:
        if not self.settings:
            return ""
        rows = "".join(
            f"<tr><th>{escape(name)}</th><td><code>{escape(_plain(value))}</code></td></tr>"
            for name, value in self.settings.items()
        )
        return f'<h2>Settings</h2><div class="scroll"><table class="settings">{rows}</table></div>'


def printable(text: str) -> str:
    """Return a text without characters that no page can hold, each marked; what bytes make need not be letters."""
    return "".join(c if c in "\n\t" or (c.isprintable() and not "\ud800" <= c <= "\udfff") else "\ufffd" for c in text)


def _listed(title: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    return f"<h2>{title}</h2><ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _fact(name: str, value: str) -> str:
    return f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>"


def _named(name: str) -> str:
    part, _, rest = name.partition("_")
    if part in ("test", "validation"):
        return f"{part} {_NAMES.get(rest, rest.replace('_', ' ')) if rest != 'loss' else rest}"
    return _NAMES.get(name, name.replace("_", " "))


def _value(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "none"


def _cell(name: str, value: Any) -> str:
    if not isinstance(value, int | float):
        return ""
    return format_time(float(value)) if name == "seconds" else _value(float(value))


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


_STYLE = """
:root{color-scheme:light dark;--text:#1b1f24;--soft:#5b6570;--line:#d9dee3;--back:#fff;--card:#f6f8fa;--good:#1a7f37}
@media (prefers-color-scheme:dark){
:root{--text:#e6e8eb;--soft:#9aa4ae;--line:#343b43;--back:#15191e;--card:#1d2228;--good:#57c46f}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:74rem;padding:1.5rem 1rem 4rem;background:var(--back);color:var(--text);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
h1{margin:0;font-size:1.6rem}h2{margin:2.2rem 0 .6rem;font-size:1.1rem}
header p,p{margin:.1rem 0 .8rem;color:var(--soft)}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));gap:.75rem;margin:1rem 0 1.5rem}
.facts div{padding:.7rem .9rem;border:1px solid var(--line);border-radius:8px;background:var(--card)}
.facts b{display:block;font-size:1.25rem;font-variant-numeric:tabular-nums}
.facts span{color:var(--soft);font-size:.85rem}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(26rem,100%),1fr));gap:1rem}
figure{margin:0;padding:.5rem;border:1px solid var(--line);border-radius:8px}figure svg{display:block;width:100%}
blockquote{margin:0 0 1rem;padding:1rem 1.2rem;border:1px solid var(--line);border-radius:8px;background:var(--card);
white-space:pre-wrap;overflow-wrap:anywhere;font:15px/1.6 Georgia,"Times New Roman",serif}
.prompt{color:var(--soft)}blockquote footer{margin-top:.8rem;color:var(--soft);font:13px system-ui,sans-serif}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.25rem 1.2rem .25rem 0;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th{color:var(--soft);font-weight:500}tr.best td,tr.best th{color:var(--good);font-weight:600}
.settings th,.settings td{text-align:left}code{font:13px ui-monospace,monospace}
summary{cursor:pointer;color:var(--soft)}
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: training report</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
