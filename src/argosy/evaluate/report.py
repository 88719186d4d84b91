"""The evaluation of a version: metrics with their intervals, and the gates."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from argosy.core.errors import InvalidInput
from argosy.evaluate.agreement import answers_agree
from argosy.evaluate.config import EvaluateConfig
from argosy.evaluate.gates import check_gates
from argosy.evaluate.intervals import mean_interval, paired_drop, wilson
from argosy.evaluate.metrics import METRICS, OF_TASK, Prediction
from argosy.registry.versions import Evaluation

Array = npt.NDArray[Any]

VALUE_TOLERANCE = 0.05
"""Two values of a regression are the same answer when they differ by at most this share of the larger one."""


def evaluate_predictions(
    task: str,
    outputs: Mapping[str, Array],
    y: Array,
    config: EvaluateConfig,
    reference_outputs: Mapping[str, Array] | None = None,
) -> Evaluation:
    """Judge finished answers of the test part against the truth and, if given, against the original's answers.

    `outputs` as `apply_finish` gives them; `y` as `Dataset.splits["test"].y` has it: class numbers, or values in the
    label's own unit. Metrics named `*_low` and `*_high` are the ends of 95% confidence intervals. Raises InvalidInput
    when there are no samples, the numbers of rows differ, an answer isn't finite, or a gate doesn't fit the task.
    """
    config.check_task(task)
    found = read_prediction(task, outputs, y)
    metrics = measure(found)
    metrics |= _intervals(found)
    if reference_outputs is not None:
        metrics |= _against_reference(found, np.asarray(y), outputs, reference_outputs)
    gates = check_gates(metrics, config)
    return Evaluation(
        kind="test-set",
        passed=all(gate.passed for gate in gates),
        metrics=metrics,
        gates=gates,
        samples=len(y),
    )


def read_prediction(task: str, outputs: Mapping[str, Array], y: Array) -> Prediction:
    """Put answers beside the truth, checked. Raises InvalidInput as `evaluate_predictions` does."""
    if task not in OF_TASK:
        raise InvalidInput(f"a model of task '{task}' has no metrics; known tasks are: {', '.join(OF_TASK)}")
    name = {"classification": "probabilities", "regression": "value", "language-model": "nats"}[task]
    if name not in outputs:
        raise InvalidInput(f"the answers lack the output '{name}'; they have: {', '.join(outputs) or 'none'}")
    answers = np.asarray(outputs[name], dtype=np.float64)
    truth = np.asarray(y)
    if len(truth) == 0:
        raise InvalidInput("there are no samples to evaluate on", hint="give a test part: [data] test_share or test")
    if len(answers) != len(truth):
        raise InvalidInput(f"there are {len(answers)} answers for {len(truth)} samples")
    broken = int((~np.isfinite(answers).all(axis=tuple(range(1, answers.ndim)))).sum())
    if broken:
        raise InvalidInput(
            f"{broken} of {len(answers)} answers are not finite numbers",
            hint="the model diverged or its conversion is broken; try a smaller learning rate",
        )
    if task == "language-model":
        return Prediction(task=task, nats=answers.reshape(len(answers)))
    if task == "regression":
        return Prediction(task=task, truth=truth.astype(np.float64), value=answers.reshape(len(answers)))
    if truth.min() < 0 or truth.max() >= answers.shape[1]:
        raise InvalidInput(f"the truth has class {int(truth.max())}, the model only {answers.shape[1]} classes")
    return Prediction(
        task=task, truth=truth.astype(np.int64), probabilities=answers, chosen=answers.argmax(axis=1).astype(np.int64)
    )


def measure(found: Prediction) -> dict[str, float]:
    """Return every metric of the task by name, without intervals."""
    return {name: METRICS.load(name)(found) for name in OF_TASK[found.task]}


def _intervals(found: Prediction) -> dict[str, float]:
    if found.task == "classification":
        low, high = wilson(int(np.sum(found.chosen == found.truth)), len(found.truth))
        return {"accuracy_low": low, "accuracy_high": high}
    if found.task == "language-model":
        low, high = mean_interval(found.nats)
        return {"perplexity_low": math.exp(max(0.0, low)), "perplexity_high": math.exp(min(690.0, high))}
    low, high = mean_interval(np.abs(found.value - found.truth))
    return {"mae_low": max(0.0, low), "mae_high": high}


def _against_reference(
    found: Prediction, y: Array, outputs: Mapping[str, Array], reference_outputs: Mapping[str, Array]
) -> dict[str, float]:
    reference = read_prediction(found.task, reference_outputs, y)
    agree = answers_agree(outputs, reference_outputs, tolerance=VALUE_TOLERANCE)
    low, high = wilson(int(agree.sum()), len(agree))
    metrics = {"parity": float(agree.mean()), "parity_low": low, "parity_high": high}
    if found.task == "classification":
        drop, low, high = paired_drop(reference.chosen == reference.truth, found.chosen == found.truth)
        metrics |= {"accuracy_drop": drop, "accuracy_drop_low": low, "accuracy_drop_high": high}
    return metrics
