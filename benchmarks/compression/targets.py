"""The targets, each with what was measured and whether it holds."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from serving.report import Spread, number, spread

OURS, ORIGINAL, CONTROLLED = "argosy", "original", "nncf-accuracy"
THREADS = 1
"""Verdicts are on one core, as one replica of a server has it; two cores stand beside it."""
Line = dict[str, str]
_ALSO_SMALLER = re.compile(r"\dx smaller")
_INT8_ALONE = "int8 alone"
_STATED = "1 point, 1 MB, 2 ms"
Entry = Mapping[str, Any]


def faster(entry: Entry, batch: int, threads: int = THREADS) -> Spread | None:
    """Return how many times as fast as float32 onnxruntime it is, over the units of turns."""
    return spread([u["ratio"] for u in entry["units"] if (u["threads"], u["batch"]) == (threads, batch)])


def drop(entry: Entry, original: Entry) -> float:
    """Return what of accuracy or cosine is lost on the test part."""
    return float(original["quality"] - entry["quality"])


def original_of(model: Mapping[str, Any]) -> Entry:
    """Return the entry that all others are held against."""
    return next(e for e in model["entries"] if e["who"] == ORIGINAL)


def judged(entries: Iterable[Entry], who: str = "") -> list[Entry]:
    """Return the entries that were measured, of one tool or of all peers."""
    return [e for e in entries if not e["failed"] and e["units"] and (e["who"] == who if who else _is_peer(e))]


def _is_peer(entry: Entry) -> bool:
    return entry["who"] not in {OURS, ORIGINAL}


def judge(run: Mapping[str, Any]) -> list[Line]:
    """Return every target of which the run has the figures."""
    models, lines = run["models"], []
    pictures = [name for name in ("cnn", "cnn-hard") if name in models]
    lines += [
        _both(models[name], f"{name}: at least 6x faster and 10x smaller, at most 1 point lost", 6, 10)
        for name in pictures
    ]
    if "minilm" in models:
        for least, cosine in ((2.5, 0.99), (1.65, 0.998)):
            target = f"minilm: at least {least:g}x faster at a cosine of {cosine:g} or more (one of these two is asked)"
            lines.append(_cosine(models["minilm"], target, least, cosine))
    if "r52" in models:
        lines.append(_both(models["r52"], "r52: at least 2.5x faster and 4x smaller, at most 1 point lost", 2.5, 4))
    for name, model in models.items():
        lines.append(_stated(name, model))
        lines += [*_evaluations(name, model), _peers(name, model), _never_slower(name, model)]
        if model.get("distillation"):
            lines.append(_distillation(model["distillation"]))
    if "search20m" in models:
        lines += [_in_time(models["search20m"]), _progress(models["search20m"])]
    return [line for line in lines if line is not None]


def _line(target: str, measured: str, *, holds: bool) -> Line:
    return {"target": target, "measured": measured, "verdict": "holds" if holds else "**doesn't hold**"}


def _absent(model: Mapping[str, Any], target: str) -> Line | None:
    ours = [e for e in model["entries"] if e["who"] == OURS]
    reasons = "; ".join(e["failed"] for e in ours if e["failed"])
    return _line(target, f"not measured: {reasons}", holds=False) if ours else None


def _both(model: Mapping[str, Any], target: str, times_faster: float, times_smaller: float) -> Line | None:
    """One and the same model must be as fast, as small and as good as asked."""
    original, best = original_of(model), None
    for entry in judged(model["entries"], OURS):
        speed = faster(entry, 32)
        if speed is None:
            continue
        smaller, lost = original["size_bytes"] / entry["size_bytes"], drop(entry, original)
        margin = min(speed.median / times_faster, smaller / times_smaller) * (1.0 if lost <= 0.01 else 0.01)
        two = faster(entry, 32, 2)
        shown = (
            f"{speed.shown()}x faster at batch 32 ({two.shown() if two else '-'}x on two cores), {number(smaller)}x "
            f"smaller, {lost * 100:.2f} points lost"
        )
        if best is None or margin > best[0]:
            best = (margin, shown, lost)
    if best is None:
        return _absent(model, target)
    return _line(target, best[1], holds=best[0] >= 1 and best[2] <= 0.01)


def _stated(name: str, model: Mapping[str, Any]) -> Line | None:
    """What was asked in sizes and times, on texts or pictures that the search never saw."""
    found = next((e for e in judged(model["entries"], OURS) if e["name"] == _STATED), None)
    p95 = spread([u["p95_ms"] for u in found["units"] if (u["threads"], u["batch"]) == (THREADS, 1)]) if found else None
    if found is None or p95 is None:
        return None
    lost = drop(found, original_of(model))
    return _line(
        f"{name}: at most 1 MB, a p95 of 2 ms for one sample on one core, and 1 point lost",
        f"{found['size_bytes'] / 1e6:.2f} MB, {p95.shown()} ms, {lost * 100:.2f} points lost",
        holds=found["size_bytes"] <= 1e6 and p95.median <= 2 and lost <= 0.01,
    )


def _cosine(model: Mapping[str, Any], target: str, times_faster: float, cosine: float) -> Line | None:
    best = None
    entries = judged(model["entries"], OURS)
    for entry in entries:
        speeds = [faster(entry, 1), faster(entry, 32)]
        if entry["quality"] < cosine or None in speeds:
            continue
        least = min(s.median for s in speeds if s is not None)
        if best is None or least > best[0]:
            best = (least, speeds, entry["quality"])
    if best is None:
        reached = ", ".join(f"{e['quality']:.4f}" for e in entries)
        return _line(target, f"cosines reached: {reached}", holds=False) if entries else _absent(model, target)
    one, many = (s.shown() for s in best[1])
    return _line(target, f"{one}x at batch 1, {many}x at batch 32, cosine {best[2]:.4f}", holds=best[0] >= times_faster)


def _evaluations(name: str, model: Mapping[str, Any]) -> list[Line]:
    """By bound: how often each went through the validation part until it had what it gave."""
    lines = []
    for their in (e for e in model["entries"] if e["who"] == CONTROLLED and not e["failed"]):
        bound = float(their["settings"].get("bound", model["max_drop"]))
        ours = judged(model["entries"], OURS)
        within = [e for e in ours if _bound_of(e) == bound and not _ALSO_SMALLER.search(e["name"])]
        # By the same means where that was asked.
        asked = [e for e in within if _INT8_ALONE in e["name"]] or within
        if not asked:
            continue
        mine, its = asked[0], their["evaluations"]
        lines.append(
            _line(
                f"{name}: the same bound ({bound * 100:g} points) as NNCF's accuracy control in at most a third of its "
                "passes over the validation part",
                f"{number(mine['evaluations'])} against {number(its)} ({mine['name']}; samples validated over samples "
                f"there are); in "
                f"{mine['seconds']:.0f} s against {their['seconds']:.0f} s",
                holds=3 * mine["evaluations"] <= its,
            )
        )
    return lines


def _bound_of(entry: Entry) -> float:
    return round(float(entry["settings"]["max_drop"].removesuffix("pt")) / 100, 6)


def _peers(name: str, model: Mapping[str, Any]) -> Line | None:
    """Beside the fastest peer that keeps the bound: is ours faster, smaller, or behind?"""
    original, bound = original_of(model), model["max_drop"]

    def within(entries: Sequence[Entry]) -> list[Entry]:
        return [e for e in entries if drop(e, original) <= bound and faster(e, 32) is not None]

    peers, ours = within(judged(model["entries"])), within(judged(model["entries"], OURS))
    if not peers or not ours:
        return None

    def speed(entry: Entry) -> float:
        found = faster(entry, 32)
        return found.median if found else 0.0

    best, mine = max(peers, key=speed), max(ours, key=speed)
    sizes = [f"{original['size_bytes'] / each['size_bytes']:.1f}x smaller" for each in (mine, best)]
    return _line(
        f"{name}: faster at batch 32 than every peer's model within the same bound",
        f"{number(speed(mine))}x, {sizes[0]}; best peer {number(speed(best))}x, {sizes[1]} "
        f"({best['who']}: {best['name']})",
        holds=speed(mine) >= speed(best),
    )


def _never_slower(name: str, model: Mapping[str, Any]) -> Line | None:
    found = [
        (value.median, e["name"], batch)
        for e in judged(model["entries"], OURS)
        for batch in (1, 32)
        if (value := faster(e, batch)) is not None
    ]
    if not found:
        return None
    least, ask, batch = min(found)
    return _line(
        f"{name}: never slower than the original", f"{number(least)}x at batch {batch} ({ask})", holds=least >= 1.0
    )


def _distillation(found: Sequence[Mapping[str, Any]]) -> Line:
    from compression.distilled import gains

    ahead = spread([100 * gain for gain in gains(found)])
    assert ahead is not None
    mean = sum(100 * gain for gain in gains(found)) / ahead.rounds
    return _line(
        "r52: distillation at least 0.5 point ahead of the same student on hard labels",
        f"{mean:.2f} points in the mean of {ahead.rounds} seeds ({ahead.least:.2f} to {ahead.most:.2f})",
        holds=mean >= 0.5,
    )


def _in_time(model: Mapping[str, Any]) -> Line | None:
    ours = [e for e in model["entries"] if e["who"] == OURS]
    if not ours:
        return None
    seconds, settings = ours[0]["seconds"], ours[0]["settings"]
    return _line(
        "search20m: the search of a model of 20 million parameters ends within 15 minutes",
        ours[0]["failed"]
        or f"{seconds / 60:.1f} minutes, {settings.get('candidates')} candidates, {settings.get('measured')} measured",
        holds=not ours[0]["failed"] and seconds <= 900,
    )


def _progress(model: Mapping[str, Any]) -> Line | None:
    ours = [e for e in model["entries"] if e["who"] == OURS and "longest silence s" in e["settings"]]
    if not ours:
        return None
    settings = ours[0]["settings"]
    silence, told = settings["longest silence s"], settings["best so far told"]
    return _line(
        "search20m: progress is shown all the time, and the best so far (never more than 30 s of silence)",
        f"longest silence {silence:g} s; the best so far was told {told} times",
        holds=silence <= 30 and told > 0,
    )
