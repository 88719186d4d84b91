"""A rollout under way: its steps, its evidence growing towards a verdict, and what the judge says."""

from argosy.operate.view import RolloutView
from argosy.web.history import EvidenceHistory
from argosy.web.page import charts, look
from argosy.web.page.charts import ENOUGH
from argosy.web.page.pieces import Cell, Chart, Column, Grid, State, Text, box

_METRICS = (
    Column("Judged"),
    Column("Bad of the new", is_number=True),
    Column("Bad of both", is_number=True),
    Column("Tolerated", is_number=True),
    Column("Against it", is_number=True),
    Column("For it", is_number=True),
)

_UNJUDGED = ("first", "switch", "undo")
"""Kinds of rollouts that nothing is compared in: they end when the replicas are ready."""


class RolloutPanel:
    """Made once for each rollout; `show` is called once a second."""

    def __init__(self, rollout: RolloutView) -> None:
        self._steps: list[Text] = []
        with box("section", "rollout", aria_label=f"rollout {rollout.id}"):
            with box("div", "head"):
                with box("div", "name"):
                    Text("h3", f"Rollout {rollout.id}")
                    Text("span", f"{rollout.base or 'nothing'} → {rollout.to}", "strong")
                self._state = State("phase")
            self._is_judged = rollout.kind not in _UNJUDGED
            with box("ol", "steps", aria_label="steps") as steps:
                for text in (*(f"{step:g} %" for step in rollout.steps), "all"):
                    self._steps.append(Text("li", text))
            self._verdict = Text("p", "", "verdict")
            self._verdict.props["role"] = "status"
            self._time = Text("p", "", "quiet")
            with box("div", "charts two") as pictures:
                self._against = Chart("Evidence that it is worse")
                self._good = Chart("Evidence that it is good enough")
            with box("div") as metrics:
                self._metrics = Grid(_METRICS, f"Judged metrics of rollout {rollout.id}")
        for part in (steps, self._verdict, pictures, metrics):
            part.set_visibility(self._is_judged)

    def show(self, rollout: RolloutView, history: EvidenceHistory | None, *, is_dark: bool) -> None:
        """Show what was seen at the last look."""
        is_paused = bool(rollout.paused_by)
        self._state.show("paused" if is_paused else "starting", look.words(rollout.phase) + (", paused" * is_paused))
        self._show_steps(rollout)
        says = {"promote": "Good enough to promote", "rollback": "Worse: roll back", "wait": "The judge waits"}
        verdict = says.get(rollout.verdict, rollout.verdict or "No evidence yet")
        reason = f": {rollout.verdict_reason}" if rollout.verdict_reason else ""
        asks = ". It waits for you: promote it, or abort it" if rollout.asks else ""
        tone = {"promote": "good", "rollback": "bad"}.get(rollout.verdict, "warn" if rollout.asks else "")
        self._verdict.show(f"{verdict}{reason}{asks}", tone)
        if not self._is_judged:
            self._time.show(rollout.reason)
            return
        self._time.show(_time(rollout))
        points = list(history.points) if history is not None and history.rollout == rollout.id else []
        empty = "" if points else "no window of evidence yet"
        against = charts.growing(points, "against", threshold=rollout.threshold, is_dark=is_dark)
        newest = [(look.words(m.name), look.evidence(m.evidence)) for m in rollout.metrics]
        self._against.show(against, [*newest, ("sum", look.evidence(rollout.total))], empty)
        good = charts.growing(points, "good", threshold=rollout.threshold, is_dark=is_dark)
        self._good.show(good, [(look.words(m.name), look.evidence(m.assurance)) for m in rollout.metrics], empty)
        self._metrics.show(
            [
                (
                    Cell(look.words(m.name), "strong"),
                    Cell(look.finite(m.bad_new)),
                    Cell(look.finite(m.bad_all)),
                    Cell(look.finite(m.bad_tolerated)),
                    Cell(f"{look.evidence(m.evidence)} of {rollout.threshold:.0f}", _weight(m.evidence, rollout)),
                    Cell(f"{look.evidence(m.assurance)} of {ENOUGH:.0f}", "good" if m.assurance >= ENOUGH else ""),
                )
                for m in rollout.metrics
            ]
        )

    def _show_steps(self, rollout: RolloutView) -> None:
        at = rollout.step if rollout.phase == "canary" else len(rollout.steps) if rollout.phase == "promoting" else -1
        for place, step in enumerate(self._steps):
            step.show(step.text, "done" if place < at else "now" if place == at else "")
            step.props["aria-current"] = "step" if place == at else "false"


def _weight(evidence: float, rollout: RolloutView) -> str:
    return "bad" if evidence >= rollout.threshold else "warn" if evidence >= rollout.threshold / 10 else ""


def _time(rollout: RolloutView) -> str:
    share = f"{look.percent(rollout.share)} of the requests go to {rollout.to}"
    windows = f"{rollout.windows} windows of evidence" if rollout.windows != 1 else "1 window of evidence"
    parts = [share, windows]
    if rollout.step_left_s > 0:
        parts.append(f"next step in {look.duration(rollout.step_left_s)} at the earliest")
    if rollout.left_s >= 0:
        parts.append(f"{look.duration(rollout.left_s)} until the time limit")
    return "; ".join(parts)
