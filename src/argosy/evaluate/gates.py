"""Gates: what a version must reach before it can be released, and by how much it missed."""

from collections.abc import Mapping

from argosy.evaluate.config import EvaluateConfig
from argosy.registry.versions import GateResult


def check_gates(metrics: Mapping[str, float], config: EvaluateConfig) -> list[GateResult]:
    """Hold each gate of `config` against the metrics.

    A gate on a metric that was not measured fails, except "parity", which only a converted or compressed version has.
    """
    results = []
    for name, bound in config.bounds().items():
        if name not in metrics and name == "parity":
            continue
        # A metric that is missing counts as its worst value would: the gate is there to stop what isn't known.
        worst = -1e300 if bound.sign in (">=", ">") else 1e300
        value = metrics.get(name, worst)
        results.append(
            GateResult(
                name=name, bound=str(bound), value=value, passed=bound.holds(value), missed_by=bound.missed_by(value)
            )
        )
    return results
