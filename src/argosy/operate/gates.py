"""No version that missed a gate is ever released."""

from argosy.core.errors import Denied
from argosy.registry.versions import Version


def refuse_failed_gates(version: Version) -> None:
    """Raise Denied, saying what was missed by how much, unless the version passed its evaluation."""
    missed = gates_missed(version)
    if missed:
        raise Denied(
            f"version '{version}' cannot be released: {missed}",
            hint="improve it, or change the gate in [evaluate] and run again",
            code="gate_missed",
            version=str(version),
        )


def gates_missed(version: Version) -> str:
    """Return what a version's evaluation failed, empty when it passed."""
    evaluation = version.manifest.evaluation
    failed = [gate for gate in evaluation.gates if not gate.passed]
    if failed:
        return "; ".join(
            f"{gate.name} is {gate.value:.4g} and must be {gate.bound}, missed by {gate.missed_by:.4g}"
            for gate in failed
        )
    return "" if evaluation.passed else f"its evaluation ({evaluation.kind}) did not pass"
