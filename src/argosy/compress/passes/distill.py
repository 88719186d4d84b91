"""A smaller network, trained for long to answer as the original does: of the original's own structure, or the user's.

What `slim` cuts, learns here four times as long: for what a short fine-tuning can't bring back. With `init = "fresh"`
it begins with random weights instead of the original's. With `student = "small:build"` it is what the function `build`
of `small.py` in the current folder returns, called as that of `[model] build` is.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from argosy.compress.candidate import Candidate
from argosy.compress.lessons import MOST_EPOCHS
from argosy.compress.passes import LONGER, Bench, Made, Model, Settings, SoFar, float_module, named_settings
from argosy.compress.passes.export import exported, rows_of
from argosy.compress.passes.kinds import is_quantized, takes_tokens
from argosy.compress.passes.learning import taught
from argosy.compress.passes.normalizing import with_batch_norms
from argosy.compress.passes.slim import CUTS, parameters, shares, slimmer
from argosy.compress.passes.stairs import went_well
from argosy.compress.select import is_settled
from argosy.core.errors import InvalidInput
from argosy.train.config import ModelConfig

if TYPE_CHECKING:
    from torch import nn

# Rows that tell how large a layer's values are.
_SEEN = 64
_MOST_TRIES = 2
# A short training that lost more than so many times the bound is no promise for a long one.
_PROMISING = 4.0
# What so many times as small and fast as the best that is sure is worth a long training.
_GAINS = 1.25


class Distill:
    """The pass `distill`. Settings: those of slim that say how much goes, or a `student`; `init`, `soft_share`."""

    usual: ClassVar[Settings] = {
        **dict.fromkeys(CUTS, 0.0),
        "student": "",
        "init": "kept",
        "soft_share": 0.5,
    }
    cost, rank = 2, 0

    def label(self, settings: Settings) -> str:
        """Return how much smaller the student is."""
        words = shares(settings) + ([f"to {settings['student']}"] if settings.get("student") else [])
        return " ".join(["distill", *words, *(["fresh"] if settings.get("init") == "fresh" else [])])

    def accepts(self, model: Model) -> bool:
        """Take the original only: the student is made of its structure."""
        return not model.recipe and not is_quantized(model)

    def default(self, model: Model) -> Settings:
        """Take half of the channels, or of the blocks of a network for texts."""
        return {"blocks": 0.5} if takes_tokens(model) else {"ratio": 0.5}

    def propose(self, model: Model, so_far: SoFar) -> Settings | None:
        """Train longer what keeps the drop, but not beyond doubt, and is much better than all that does; then what lost
        too much when trained shortly, the largest within size and latency first.
        """
        done = [candidate.recipe[-1][1] for candidate in so_far.tried]
        if len(done) >= _MOST_TRIES or any(not went_well(c, so_far.budget.max_drop) for c in so_far.tried):
            return None
        failed = [
            c.recipe[0][1]
            for c in so_far.elsewhere
            if [name for name, _ in c.recipe] == ["slim"]
            and _has_more_to_learn(c, model)
            and c.status == "measured"
            and not went_well(c, so_far.budget.max_drop)
            and c.quality is not None
            and c.quality.drop <= _PROMISING * so_far.budget.max_drop + 2.0 / max(1, c.quality.items)
        ]
        for settings in [*_unsure(model, so_far), *sorted(failed, key=lambda found: sum(found.values()))]:
            if settings not in done and (not so_far.budget.is_bounded or so_far.keeps(so_far.sketch(settings))):
                return settings
        return None

    def draft(self, model: Model, settings: Settings, bench: Bench) -> bytes | None:
        """Cut without training."""
        student, _, _ = _student(float_module(model), settings, bench)
        return exported(student, bench, is_draft=True)

    def apply(self, model: Model, settings: Settings, bench: Bench) -> Made:
        """Make the student, ask whether it has a chance, and train it for long."""
        teacher = float_module(model)
        asked = named_settings(settings, self.usual | {"soft_share": bench.lesson.soft_share})
        if asked["init"] not in ("kept", "fresh"):
            raise InvalidInput(f"distill begins with weights that are kept or fresh, not {asked['init']!r}")
        if not 0 <= asked["soft_share"] <= 1:
            raise InvalidInput(f"distill takes a soft_share from 0 to 1, not {asked['soft_share']}")
        student, skipped, removed = _student(teacher, settings, bench)
        if asked["init"] == "fresh":
            _forget(student, bench.seed)
        bench.check_draft(exported(student, bench, is_draft=True))
        with_batch_norms(student, rows_of(bench, _SEEN))
        lesson = msgspec.structs.replace(
            bench.lesson,
            epochs=LONGER * bench.lesson.epochs,
            seconds=LONGER * bench.lesson.seconds,
            most_epochs=bench.lesson.most_epochs * (1 if takes_tokens(model) else LONGER),
            soft_share=float(asked["soft_share"]),
        )
        # What begins with random weights says little about its end for long.
        is_tried = asked["init"] == "kept" and not asked["student"]
        before, after = parameters(teacher), parameters(student)
        done = taught(student, bench, self.label(settings), lesson=lesson, shrunk=before / after, is_tried=is_tried)
        changed = {"parameters_before": before, "parameters_after": after}
        return Made(
            onnx=exported(student, bench), module=student, changed={**changed, **removed, **done}, skipped=skipped
        )


def _has_more_to_learn(candidate: Candidate, model: Model) -> bool:
    """Whether a longer training is another one: of texts no more than so many passes are of use."""
    return not takes_tokens(model) or candidate.changed.get("epochs", 0) < MOST_EPOCHS


def _unsure(model: Model, so_far: SoFar) -> list[Settings]:
    """Return the cuts that keep the drop, but not beyond doubt, and would gain much: those that gain most first."""
    fitting = [c for c in so_far.elsewhere if c.status == "measured" and not c.misses(so_far.budget)]
    best = min((c.cost for c in fitting if is_settled(c, so_far.budget)), default=float("inf"))
    found = sorted((c for c in fitting if c.recipe[0][0] == "slim" and _GAINS * c.cost < best), key=lambda c: c.cost)
    learned = [c.recipe for c in so_far.elsewhere if not _has_more_to_learn(c, model)]
    cuts = [c.recipe[0][1] for c in found if c.recipe[:1] not in learned]
    return [settings for number, settings in enumerate(cuts) if settings not in cuts[:number]]


def _student(teacher: "nn.Module", settings: Settings, bench: Bench) -> tuple["nn.Module", list[str], dict[str, Any]]:
    """Return the network that is to learn, the layers that had to stay whole with the reason, and what went."""
    from argosy.train.inputs import ModelInput
    from argosy.train.models import build_model

    name = settings.get("student", "")
    if not name:
        return slimmer(teacher, _cut(settings), bench)
    cuts = [share for share in CUTS if settings.get(share)]
    if cuts:
        raise InvalidInput(f"distill takes a student, or makes one by {cuts[0]}, not both")
    if bench.samples.task not in ("classification", "regression"):
        raise InvalidInput(f"distill takes a student for classes and numbers, not for the task {bench.samples.task}")
    first = rows_of(bench, _SEEN)[0]
    width = bench.samples.answers(bench.runner, {key: rows[:1] for key, rows in bench.samples.train.items()}).shape[-1]
    is_text = not first.dtype.is_floating_point
    given = ModelInput(shape=tuple(first.shape[1:]), vocabulary=int(first.max()) + 1 if is_text else 0)
    student = build_model(ModelConfig(build=name), Path.cwd(), given, max(1, width), bench.seed)
    return student.float().eval(), [], {"student": name}


def _cut(settings: Settings) -> Settings:
    found = {name: settings[name] for name in CUTS if settings.get(name)}
    if not found:
        raise InvalidInput(
            f"distill makes a student by cutting: say how much of {', '.join(CUTS)}, such as blocks=0.5",
            hint="or give one: student=small:build, a function of small.py that returns a torch module",
        )
    return found


def _forget(student: "nn.Module", seed: int) -> None:
    """Give every layer that can do so new random weights."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in student.modules():
            reset = getattr(layer, "reset_parameters", None)
            if reset is not None:
                reset()
