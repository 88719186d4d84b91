"""The process in which one stage runs: the recipe in, blobs and `result.json` out, news into `events.jsonl`."""

import os
from pathlib import Path
from typing import Any, cast

import msgspec

from argosy.core.clock import SystemClock
from argosy.core.config import Settings, from_plain
from argosy.core.digest import canonical
from argosy.core.files import write_atomic
from argosy.core.plugins import load_object
from argosy.core.progress import Progress, Reporter
from argosy.pipeline.config import Recipe
from argosy.pipeline.context import StageContext, StageRecord
from argosy.pipeline.graph import Sources
from argosy.pipeline.sources import refuse_changed
from argosy.registry.registry import open_registry
from argosy.train.hosts import Hosts


def main(config: dict[str, Any]) -> int:
    """Run the stage that `config` describes, as `pipeline.engine` wrote it. Returns the exit code."""
    work = Path(config["work"])
    settings = msgspec.convert(config["settings"], Settings, dec_hook=lambda kind, value: kind(value))
    clock = SystemClock()
    context = StageContext(
        recipe=from_plain(config["recipe"], Recipe, where="recipe"),
        base=Path(config["base"]),
        keys=config["keys"],
        sources=msgspec.convert(config["sources"], Sources),
        run=config["run"],
        work=work,
        inputs=msgspec.convert(config["inputs"], dict[str, StageRecord]),
        registry=open_registry(settings, clock),
        clock=clock,
        report=_news_to(work / "events.jsonl"),
        home=settings.home,
        hosts=msgspec.convert(config["hosts"], Hosts),
    )
    run = cast("Any", load_object(config["entry"], extra="train"))

    def check() -> None:
        refuse_changed(config["stage"], context.recipe, context.base, context.sources)

    check()
    record: StageRecord = run(context)
    check()  # an edit in the middle of a stage must not be taken for what its key names
    write_atomic(work / "result.json", canonical(record))
    return 0


def _news_to(path: Path) -> Reporter:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def report(news: Progress) -> None:
        # One write per line: the reader never sees a part of a line that another writer continues.
        os.write(descriptor, msgspec.json.encode(news) + b"\n")

    return report
