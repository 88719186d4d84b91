"""From measurements to tables and pictures that a stranger can read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serving.report import number, spread

from compression.models import CASES
from compression.targets import ORIGINAL, OURS, drop, faster, judged, original_of

Run = Mapping[str, Any]
Entry = Mapping[str, Any]

HEAD = """\
# Compression, side by side

Every tool got the same ONNX file (or PyTorch module), the same samples to calibrate and train on and the same
validation part. What it made was judged by one judge on a test part that no tool has seen. *Faster* is the time of the
original in float32 under onnxruntime divided by the model's own, each ratio from turns A B B A of neighbouring
processes; a figure is the median over the units of turns, with the least and the greatest in brackets. *CPU ms* is the
processor time of one sample in batches of 32 on one core. *Agreement* is the share of test samples with the original's
answer (for vectors: whose nearest neighbour among the test texts is the same). Rows in **bold** keep the bound and are
beaten by no other row in accuracy, size and speed at once.
"""


def markdown(run: Run) -> str:
    """Return the whole report."""
    parts = [
        HEAD,
        _targets(run),
        *(_model(name, model, run["titles"]) for name, model in run["models"].items()),
        *(_distillation(model) for model in run["models"].values()),
        _tools(run),
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _targets(run: Run) -> str:
    lines = ["## Targets", "", "| target | measured | |", "|---|---|---|"]
    lines += [f"| {line['target']} | {line['measured']} | {line['verdict']} |" for line in run["targets"]]
    return "\n".join([*lines, ""])


def _model(name: str, model: Run, titles: Mapping[str, str]) -> str:
    original = original_of(model)
    measure = CASES[name].measure
    facts = model["facts"]
    about = (
        f"{facts['parameters']:,} parameters, {original['size_bytes'] / 1e6:.2f} MB, {measure} on the test part "
        f"{_quality(measure, original['quality'])}. The bound: at most {model['max_drop'] * 100:g} "
        f"{'points of accuracy' if measure == 'accuracy' else 'hundredths of cosine'} lost."
    )
    columns = (
        f"| made by | model | MB | smaller | {measure} | lost | agreement | faster, 1 core: batch 1 | batch 32 "
        "| 2 cores: batch 1 | batch 32 | p50, p95 ms, batch 1 | CPU ms | made in s | evaluations |"
    )
    lines = [
        f"## {name}: {CASES[name].title}",
        "",
        about,
        "",
        _measured(model["run"]),
        "",
        f"![Every model's loss against its speed](compression_{name}.svg)",
        "",
        columns,
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    front = {id(e) for e in front_of(model)}
    order = {ORIGINAL: 0, OURS: 1}
    entries = [e for e in model["entries"] if not e["failed"]]
    rows = sorted(entries, key=lambda e: order.get(e["who"], 2))
    lines += [_row(entry, original, measure, titles, is_front=id(entry) in front) for entry in rows]
    failed = [e for e in model["entries"] if e["failed"]]
    if failed:
        lines += ["", "Not measured, with the tool's own reason:", ""]
        lines += [f"- {titles[e['who']]}, {e['name']}: {e['failed']}" for e in failed]
    notes = [e for e in model["entries"] if e["who"] == OURS and e["notes"]]
    if notes:
        lines += ["", "What Argosy's searches chose:", ""]
        lines += [
            f"- {e['name']}: {e['notes']} ({e['settings'].get('candidates')} candidates, "
            f"{e['settings'].get('measured')} of them measured)"
            for e in notes
        ]
    return "\n".join([*lines, ""])


def _measured(run: Run) -> str:
    machine = ", ".join(f"{name} {value}" for name, value in run["machine"].items())
    return (
        f"Measured by `{run['command']}`, {run['date']}, commit {run['commit']}, in {run['seconds'] / 60:.0f} minutes, "
        f"{run['rounds']} units of turns, on {machine}; load average {run['load_average'][0]} at the start and "
        f"{run['load_average'][1]} at the end."
    )


def _quality(measure: str, value: float) -> str:
    return f"{value:.2%}" if measure == "accuracy" else f"{value:.4f}"


def _row(entry: Entry, original: Entry, measure: str, titles: Mapping[str, str], *, is_front: bool) -> str:
    speeds = [faster(entry, batch, threads) for threads in (1, 2) for batch in (1, 32)]
    shown = [f"{s.shown()}x" if s is not None else "-" for s in speeds]
    alone = [u for u in entry["units"] if u["threads"] == 1]
    p50, p95 = (spread([u[f"{q}_ms"] for u in alone if u["batch"] == 1]) for q in ("p50", "p95"))
    cpu, saved = (spread([u[what] for u in alone if u["batch"] == 32]) for what in ("cpu_ms", "cpu_ratio"))
    name = f"**{entry['name']}**" if is_front else entry["name"]
    cells = [
        titles[entry["who"]],
        name,
        f"{entry['size_bytes'] / 1e6:.2f}",
        f"{original['size_bytes'] / entry['size_bytes']:.1f}x",
        _quality(measure, entry["quality"]),
        f"{drop(entry, original) * 100:.2f}",
        f"{entry['agreement']:.2%}",
        *shown,
        f"{number(p50.median)}, {number(p95.median)}" if p50 and p95 else "-",
        f"{number(cpu.median)} ({number(saved.median)}x less)" if cpu and saved else "-",
        f"{entry['seconds']:.0f}" if entry["seconds"] else "-",
        number(entry["evaluations"]) if entry["evaluations"] else "-",
    ]
    return f"| {' | '.join(cells)} |"


def front_of(model: Run) -> list[Entry]:
    """Return the models within the bound that none beats in quality, size and speed at once."""
    original = original_of(model)

    def merits(entry: Entry) -> tuple[float, float, float]:
        speed = faster(entry, 32)
        return entry["quality"], -entry["size_bytes"], speed.median if speed is not None else 0.0

    within = [
        e
        for e in (*judged(model["entries"]), *judged(model["entries"], OURS))
        if drop(e, original) <= model["max_drop"]
    ]
    return [
        e
        for e in within
        if not any(
            all(a >= b for a, b in zip(merits(other), merits(e), strict=True)) and merits(other) != merits(e)
            for other in within
        )
    ]


def _distillation(model: Run) -> str:
    found = model.get("distillation")
    if not found:
        return ""
    lines = ["## Distillation against hard labels (r52, the student that `slim` leaves for 1 MB)", ""]
    lines += ["| trained on | seed | test accuracy | seconds |", "|---|---|---|---|"]
    lines += [f"| {f['way']} | {f['seed']} | {f['accuracy']:.2%} | {f['seconds']:.0f} |" for f in found]
    return "\n".join([*lines, ""])


def _tools(run: Run) -> str:
    lines = ["## The tools", "", "| | versions | |", "|---|---|---|"]
    tools = {name: told for model in run["models"].values() for name, told in model["tools"].items()}
    for name, told in tools.items():
        versions = ", ".join(f"{package} {version}" for package, version in told["versions"].items())
        lines.append(f"| {run['titles'][name]} | {versions} | {told['note']} |")
    return "\n".join([*lines, ""])


def draw(name: str, model: Run, titles: Mapping[str, str], path: Path) -> None:
    """Write the picture of a model's front as SVG: loss against speed, the area being the size of the file."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    text, grid = "#7d8590", "#7d859055"
    colours = ("#4c8dd6", "#c77d2b", "#8a63d2", "#d1495b", "#00798c", "#b08900", "#6b8e23", "#a05a2c")
    # Equal results give equal files, and text stays text.
    with mpl.rc_context({"svg.hashsalt": "argosy", "svg.fonttype": "none"}):
        figure = Figure(figsize=(9, 5.2), layout="constrained", facecolor="none")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot(facecolor="none")
        original = original_of(model)
        front = {id(e) for e in front_of(model)}
        bound = model["max_drop"] * 100
        entries = [*judged(model["entries"]), *judged(model["entries"], OURS)]
        whos = list(dict.fromkeys(e["who"] for e in entries))
        peers = dict(zip([w for w in whos if w != OURS], colours, strict=False))
        for who in whos:
            points = [(e, s.median) for e in entries if e["who"] == who and (s := faster(e, 32)) is not None]
            # What lost more than four times the bound would push all others into a line.
            lost = [min(drop(e, original) * 100, 4 * bound) for e, _ in points]
            axes.scatter(
                [speed for _, speed in points],
                lost,
                s=[30 + 500 * e["size_bytes"] / original["size_bytes"] for e, _ in points],
                color="#2f9e6e" if who == OURS else peers[who],
                edgecolors=[text if id(e) in front else "none" for e, _ in points],
                linewidths=1.5,
                alpha=0.75,
                marker="D" if who == OURS else "o",
                label=titles[who],
            )
        axes.axhline(bound, color=text, linewidth=1, linestyle="--")
        axes.axvline(1.0, color=text, linewidth=1, linestyle=":")
        axes.set_xscale("log")
        axes.set_xlabel("times as fast as float32 onnxruntime, batch 32, one core")
        axes.set_ylabel("lost on the test part (points; cut at four times the bound)")
        axes.set_title(
            f"{name}: better is right and down; area: size of the file; ringed: beaten by none; dashed: the bound",
            size=9,
            color=text,
        )
        axes.invert_yaxis()
        axes.grid(color=grid, linewidth=0.5, which="both")
        axes.tick_params(colors=text, which="both")
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set_color(text)
        for spine in axes.spines.values():
            spine.set_color(grid)
        legend = axes.legend(fontsize=8, frameon=False, labelcolor=text, loc="center left", bbox_to_anchor=(1.0, 0.5))
        for handle in legend.legend_handles:
            handle.set_sizes([40])
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
