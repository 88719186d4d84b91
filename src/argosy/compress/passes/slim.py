"""Fewer channels: whole rows and columns of the weights go, so that any runtime is faster; then distilled fine-tuning.

Which channels can only go together (through residual sums, norms and reshapes) is torch-pruning's dependency graph
(Fang et al. 2023, "DepGraph"); which go first is the L2 norm over such a group.
"""

import contextlib
import copy
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from argosy.compress.candidate import Candidate
from argosy.compress.passes import Bench, Made, Model, Settings
from argosy.core.errors import InvalidInput
from argosy.core.plugins import missing
from argosy.core.progress import Progress
from argosy.formats.onnx_export import onnx_bytes

if TYPE_CHECKING:
    import torch
    from torch import nn

# The shares of channels to take, the middle first: its success or failure says which side is worth a training.
# Half of the channels are a quarter of the weights and operations.
_FIRST, _MORE, _LESS = 0.5, 0.75, 0.25
_BETWEEN = {_MORE: 0.625, _LESS: 0.375}
_QUICK_S = 8.0
# Fewer channels than this carry too little, and save nothing that can be measured.
_MIN_CHANNELS = 4
# Kernels work on vectors of 8 floats; layers too thin for that are rounded to 4 or not at all.
_ROUNDINGS = (8, 4, 1)
# Hinton et al. 2015, section 2: soft targets weigh most, and the true labels keep a share.
_TEMPERATURE = 2.0
_SOFT_SHARE = 0.7


class Slim:
    """The pass `slim`. Settings: `ratio`, the share of the channels of each layer that goes."""

    cost = 1

    def label(self, settings: Settings) -> str:
        """Return the share of the channels that go."""
        return f"slim {settings['ratio']:.3g}"

    def accepts(self, model: Model) -> bool:
        """Take anything that still is a PyTorch module with one input."""
        return model.module is not None and "slim" not in model.passes

    def propose(
        self, model: Model, tried: Sequence[Candidate], elsewhere: Sequence[Candidate], max_drop: float
    ) -> Settings | None:
        """Halve the channels; then take more if that went well, fewer if not; then try between the last two."""
        del model, elsewhere  # the same ratios are worth a try on any model
        if not tried:
            return {"ratio": _FIRST}
        went_well = [_went_well(candidate, max_drop) for candidate in tried]
        second = _MORE if went_well[0] else _LESS
        if len(tried) == 1:
            return {"ratio": second}
        # Between half and the second ratio lies something better only if exactly one of the two went well; what it
        # brings is worth a short training.
        is_quick = all(candidate.seconds < _QUICK_S for candidate in tried)
        if len(tried) == 2 and went_well[0] != went_well[1] and is_quick:
            return {"ratio": _BETWEEN[second]}
        return None

    def apply(self, model: Model, settings: Settings, bench: Bench) -> Made:
        """Cut, ask whether the draft has a chance, and train the rest to answer as the original does."""
        assert model.module is not None
        if len(bench.samples.train) != 1:
            raise InvalidInput(f"slim needs a model with one input; this one has {sorted(bench.samples.train)}")
        import torch

        input_name, array = next(iter(bench.samples.train.items()))
        example = torch.from_numpy(np.ascontiguousarray(array[:2]))
        teacher = model.module().float().eval()
        student, skipped = cut(teacher, example, settings["ratio"])
        before, after = _parameters(teacher), _parameters(student)
        if after >= before:
            raise InvalidInput(
                "no channel could be taken out: " + ("; ".join(skipped) or "all layers are thin already")
            )
        output = _output_name(model)
        bench.check_draft(onnx_bytes(student, example, input_name=input_name, output=output, is_draft=True))
        fine_tune(student, teacher, bench, label=self.label(settings))
        return Made(
            onnx=onnx_bytes(student, example, input_name=input_name, output=output),
            module=student,
            changed={"parameters_before": before, "parameters_after": after, "epochs": bench.epochs},
            skipped=skipped,
        )


def cut(teacher: "nn.Module", example: "torch.Tensor", ratio: float) -> tuple["nn.Module", list[str]]:
    """Return a copy of `teacher` without `ratio` of its channels, and the layers that could not be cut, with reasons.

    After each cut two samples are run: a cut that breaks the model or changes the output's shape is undone, and its
    layer left whole.
    """
    import torch

    with torch.no_grad():
        shape = teacher(example).shape
    keep = _outermost(teacher, example, shape[-1])
    skipped: list[str] = []
    # Every round finds at most one layer that can't be cut, and begins again without it.
    for _ in range(sum(1 for _ in teacher.modules())):
        student = copy.deepcopy(teacher)
        failed = _cut_all(student, example, ratio, shape, keep)
        if failed is None:
            return student.eval(), skipped
        layer, reason = failed
        if not layer or layer in keep:
            raise InvalidInput(f"the channels of this model can't be cut: {reason}")
        keep.add(layer)
        skipped.append(f"{layer}: {reason}")
    return copy.deepcopy(teacher), skipped


def _cut_all(
    student: "nn.Module", example: "torch.Tensor", ratio: float, shape: Any, keep: set[str]
) -> tuple[str, str] | None:
    """Cut in place; return the layer whose cut has failed and why, or None."""
    try:
        import torch_pruning
    except ModuleNotFoundError as error:
        raise missing(error, "train") from error

    layers = dict(student.named_modules())
    names = {id(layer): name for name, layer in layers.items()}
    width = min((size for name, layer in layers.items() if name not in keep and (size := _channels(layer))), default=0)
    rounding = next(size for size in _ROUNDINGS if width * (1 - ratio) >= size or size == 1)
    at: str = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruner = torch_pruning.pruner.BasePruner(
                student,
                example,
                importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=ratio,
                pruning_ratio_dict={layers[name]: 0.0 for name in layers if _is_thin(layers[name], ratio)},
                ignored_layers=[layers[name] for name in sorted(keep) if name in layers],
                round_to=rounding,
            )
            for group in pruner.step(interactive=True):
                at = names.get(id(group[0].dep.target.module), "")
                group.prune()
                problem = _broken(student, example, shape)
                if problem:
                    return at, problem
    except Exception as error:  # noqa: BLE001 - torch-pruning traces the user's code and raises whatever that does
        return at, f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]
    return None


def _broken(student: "nn.Module", example: "torch.Tensor", shape: Any) -> str:
    import torch

    try:
        with torch.no_grad():
            found = student(example).shape
    except Exception as error:  # noqa: BLE001 - whatever the user's forward method raises
        return f"the model no longer runs without these channels ({type(error).__name__})"
    return "" if found == shape else f"the output would have the shape {list(found)} instead of {list(shape)}"


def _outermost(teacher: "nn.Module", example: "torch.Tensor", outputs: int) -> set[str]:
    """Names of the layers that make the output: the last to run, and what has as many channels as there are outputs."""
    import torch

    ran: list[str] = []
    hooks = [
        layer.register_forward_hook(_noting(ran, name)) for name, layer in teacher.named_modules() if _channels(layer)
    ]
    try:
        with torch.no_grad():
            teacher(example)
    finally:
        for hook in hooks:
            hook.remove()
    layers = dict(teacher.named_modules())
    return set(ran[-1:]) | {name for name in ran if _channels(layers[name]) == outputs}


def _noting(ran: list[str], name: str) -> Callable[..., None]:
    def note(*_: object) -> None:
        ran.append(name)

    return note


def _channels(layer: "nn.Module") -> int:
    from torch import nn

    if isinstance(layer, nn.Linear):
        return layer.out_features
    return layer.out_channels if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) else 0


def _is_thin(layer: "nn.Module", ratio: float) -> bool:
    return 0 < _channels(layer) * (1 - ratio) < _MIN_CHANNELS


def fine_tune(student: "nn.Module", teacher: "nn.Module", bench: Bench, *, label: str) -> None:
    """Train `student` in place on the training part, with the original's answers as soft targets."""
    from argosy.train.fit import fit

    own = bench.train.optimizer in ("adam", "adamw")
    config = msgspec.structs.replace(
        bench.train,
        strategy="single",
        workers=1,
        epochs=bench.epochs,
        # Plain gradient descent needs far more steps than a fine-tuning has.
        optimizer=bench.train.optimizer if own else "adamw",
        learning_rate=bench.train.learning_rate if own else 1e-3,
        schedule="cosine",
        warmup=0.1,
        patience=0,
        seed=bench.seed,
        dtype="float32",
    )

    def relay(news: Progress) -> None:
        bench.report(msgspec.structs.replace(news, stage="compress", message=f"{label}: fine-tuning {news.message}"))

    with _fastest_threads(student, next(iter(bench.samples.train.values()))[: config.batch_size]):
        fit(student, bench.dataset, config, teacher=teacher, alpha=_SOFT_SHARE, temperature=_TEMPERATURE, report=relay)
    student.eval()


@contextlib.contextmanager
def _fastest_threads(student: "nn.Module", batch: np.ndarray) -> Iterator[None]:
    """Train with one core where several don't pay: on a busy machine threads of small layers wait for one another.

    Measured on two cores with a load of 6: a network of 44,000 weights took 20 times as long with two threads.
    """
    import torch

    before = torch.get_num_threads()
    x = torch.from_numpy(np.ascontiguousarray(batch))
    times = {}
    try:
        for threads in (1, before):
            torch.set_num_threads(threads)
            times[threads] = min(_step_time(student, x) for _ in range(3))
        torch.set_num_threads(before if times[before] < 0.7 * times[1] else 1)
        yield
    finally:
        torch.set_num_threads(before)


def _step_time(student: "nn.Module", x: "torch.Tensor") -> float:
    import torch

    begun = time.monotonic()
    parameters = [p for p in student.parameters() if p.requires_grad]
    torch.autograd.grad(student(x).float().sum(), parameters, allow_unused=True)
    return time.monotonic() - begun


def _went_well(candidate: Candidate, max_drop: float) -> bool:
    return candidate.status == "measured" and candidate.quality is not None and candidate.quality.drop <= max_drop


def _parameters(module: "nn.Module") -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _output_name(model: Model) -> str:
    from argosy.formats.onnx_runtime import OnnxRunner

    return OnnxRunner.load(model.path).signature.outputs[0].name
