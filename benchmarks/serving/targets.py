"""The targets, each with what was measured and whether it holds."""

from collections.abc import Mapping, Sequence
from typing import Any

from serving.report import BATCHING, SCALING, TABLE, Results, Spread, number, spread

NOISE = 0.02
"""Medians of the same server differ by so much from run to run on a quiet machine."""
NAMED = ("fastapi", "pytriton", "mlserver", "litserve", "bentoml", "ray")
"""The contenders as their manuals have them run, with the best settings where they have any to choose."""
STRONGEST = ("fastapi1", "fastapi2", "triton")
"""The strongest ways to run two of them: threads and workers chosen by hand; Triton without its Python client."""
PIXELS_MB = 3 * 224 * 224 * 4 / 1e6
"""Of one request for resnet18; those of the other models are too small to count."""
Line = dict[str, str]


def judge(run: Mapping[str, Any], titles: Mapping[str, str], batching: Sequence[str]) -> list[Line]:
    """Return every target with its figure; `batching` names the peers that join requests."""
    results = Results(run["cells"])
    lines = [
        _cpu(results),
        _best(results, titles, "the req/s of the best peer", NAMED),
        _best(results, titles, "the req/s of the best peer in whatever way it is run", (*NAMED, *STRONGEST)),
        _ratio(
            "mlp, 1 connection: at least 2.5x FastAPI's req/s", _ratios(results, "mlp", ("fastapi",), (1,)), 2.5, titles
        ),
        _ratio(
            "minilm, 8 to 64 connections: at least 0.9 of the limit",
            _ratios(results, "minilm", ("limit",), (8, 16, 64)),
            0.9,
            titles,
        ),
        _ratio(
            "minilm, 8 to 64 connections: at least 1.15x FastAPI",
            _ratios(results, "minilm", ("fastapi",), (8, 16, 64)),
            1.15,
            titles,
        ),
        _ratio(
            "minilm, 8 to 64 connections: at least FastAPI's req/s with threads and workers chosen by hand",
            _ratios(results, "minilm", ("fastapi1", "fastapi2"), (8, 16, 64)),
            1.0,
            titles,
        ),
        _ratio(
            "minilm, 8 to 64 connections: at least 1.7x every batching peer",
            _ratios(results, "minilm", batching, (8, 16, 64)),
            1.7,
            titles,
        ),
        _unbatched(results),
        _ratio(
            "resnet18, binary: at least 0.95 of the limit",
            _ratios(results, "resnet18", ("limit",), (1, 4, 16)),
            0.95,
            titles,
        ),
        *(_scaling(results, model) for model in ("minilm", "resnet18")),
        _gateway(results),
        *(_first_answer(run, results, model) for model in ("mlp", "minilm", "resnet18")),
    ]
    return [line for line in lines if line is not None]


def _line(target: str, measured: str, *, holds: bool) -> Line:
    return {"target": target, "measured": measured, "verdict": "holds" if holds else "**misses**"}


def _cpu(results: Results) -> Line | None:
    found = results.spread(TABLE, "mlp", "argosy", 64, "cpu_ms")
    if found is None:
        return None
    return _line(
        "mlp, 64 connections: at most 0.065 CPU ms a request", f"{found.shown()} ms", holds=found.median <= 0.065
    )


def _best(results: Results, titles: Mapping[str, str], what: str, names: Sequence[str]) -> Line | None:
    ratios = _ratios(results, "mlp", names, (64,))
    if not ratios:
        return None
    (name, _), least = min(ratios.items(), key=lambda item: item[1].median)
    return _line(
        f"mlp, 64 connections: at least 12x {what}", f"{least.shown()}x {titles[name]}", holds=least.median >= 12
    )


def _ratios(
    results: Results, model: str, names: Sequence[str], connections: Sequence[int]
) -> dict[tuple[str, int], Spread]:
    found = {(n, c): results.ratio(TABLE, model, "argosy", n, c) for n in names for c in connections}
    return {where: ratio for where, ratio in found.items() if ratio is not None}


def _ratio(
    target: str, ratios: Mapping[tuple[str, int], Spread], bound: float, titles: Mapping[str, str]
) -> Line | None:
    """Judge the least of some ratios, and show for every number of connections the least."""
    if not ratios:
        return None
    shown = []
    for at in sorted({c for _, c in ratios}):
        (name, _), least = min(((w, r) for w, r in ratios.items() if w[1] == at), key=lambda item: item[1].median)
        shown.append(f"{least.shown()} at {at}" + (f" ({titles[name]})" if len({n for n, _ in ratios}) > 1 else ""))
    return _line(target, "; ".join(shown), holds=min(ratio.median for ratio in ratios.values()) >= bound)


def _unbatched(results: Results) -> Line | None:
    found = {
        at: results.ratio(BATCHING, "minilm", "argosy", "unbatched", at)
        for at in results.connections(BATCHING, "minilm")
    }
    ratios = {at: ratio for at, ratio in found.items() if ratio is not None}
    if not ratios:
        return None
    worst = min(ratios, key=lambda at: ratios[at].median)
    return _line(
        f"minilm: never worse than unbatched (within {NOISE:.0%})",
        f"{ratios[worst].shown()} at {worst} connections, the worst of {', '.join(map(str, ratios))}",
        holds=ratios[worst].median >= 1 - NOISE,
    )


def _scaling(results: Results, model: str) -> Line | None:
    for at in results.connections(SCALING, model):
        ratio = results.ratio(SCALING, model, "two-cores", "one-core", at)
        bare = results.ratio(SCALING, model, "limit-two", "limit-one", at)
        if ratio is not None:
            beside = f"; the runtime alone {bare.shown()}" if bare is not None else ""
            return _line(
                f"{model}: two replicas on two cores at least 1.8x one on one core",
                ratio.shown() + beside,
                holds=ratio.median >= 1.8,
            )
    return None


def _gateway(results: Results) -> Line | None:
    most = [row for row in results.rows if row["contender"] == "argosy" and "gateway_rss_mb" in row["extra"]]
    if not most:
        return None
    worst = max(most, key=lambda row: row["extra"]["gateway_rss_mb"] - _queued_mb(row))
    rss, queued = worst["extra"]["gateway_rss_mb"], _queued_mb(worst)
    return _line(
        "gateway: at most 80 MB plus its queues",
        f"{number(rss)} MB RSS, {number(queued)} MB of them requests that wait or run "
        f"({worst['model']}, {worst['connections']} connections)",
        holds=rss - queued <= 80,
    )


def _queued_mb(row: Mapping[str, Any]) -> float:
    """Return what the requests take that are in the gateway's hands under a closed loop: one for each connection."""
    return row["connections"] * PIXELS_MB if row["model"] == "resnet18" else 0.0


def _first_answer(run: Mapping[str, Any], results: Results, model: str) -> Line | None:
    started = [s["seconds"] for s in run["starts"] if (s["contender"], s["model"]) == ("argosy", model)]
    loads = [r["extra"]["load_s"] for r in results.rows if (r["contender"], r["model"]) == ("limit", model)]
    first, load = spread(started), spread(loads)
    if first is None or load is None:
        return None
    return _line(
        f"{model}: first answer within 1 s of start plus model load",
        f"{first.shown()} s with a model load of {number(load.median)} s",
        holds=first.median <= 1 + load.median,
    )
