"""The peers: which packages each needs, its script, and on which models it makes sense."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.environments import Failed, environment, versions

from compression.judge import Entry
from compression.models import Place

PEERS_FOLDER = Path(__file__).parent / "peers"
_ONNXRUNTIME = "onnxruntime==1.31.1"
_TORCH = ("torch==2.13.0", "numpy==2.4.6", "safetensors==0.8.0", "transformers==5.23.0")
PATIENCE_S = 1800
"""A tool that takes longer on one model is ended, and what it had made until then is judged."""


@dataclass(frozen=True)
class Peer:
    """A tool that compresses models."""

    name: str
    title: str
    script: str
    packages: tuple[str, ...]
    shares: str = ""
    """Uses the environment of that peer."""
    note: str = ""


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "onnxruntime",
            "onnxruntime quantization",
            "ort.py",
            (_ONNXRUNTIME, "onnx==1.23.2", "sympy==1.14.0", "numpy==2.4.6", "torch==2.13.0"),
            note="after quant_pre_process; 256 calibration samples; its fusions for transformers import torch",
        ),
        Peer(
            "nncf",
            "OpenVINO, NNCF",
            "nncf_ptq.py",
            ("nncf==3.4.0", "openvino==2026.4.1", "onnx==1.23.2", _ONNXRUNTIME),
            note="256 calibration samples; for texts model_type=TRANSFORMER, which smooths activations",
        ),
        Peer(
            "nncf-accuracy",
            "NNCF with accuracy control",
            "nncf_accuracy.py",
            (),
            shares="nncf",
            note="judges by the validation part, absolute drop",
        ),
        Peer(
            "neural-compressor",
            "Neural Compressor (PyTorch)",
            "inc_torch.py",
            ("neural-compressor[pt]==3.10", *_TORCH),
            note="PT2E static, dynamic; compiled by torch.compile",
        ),
        Peer(
            "neural-compressor-onnx",
            "Neural Compressor (ONNX)",
            "inc_onnx.py",
            (
                "onnx-neural-compressor==1.0",
                "onnxruntime==1.19.2",
                "onnx==1.16.2",
                "numpy==1.26.4",
                "prettytable",
                "scipy",
            ),
            note="static, dynamic, SmoothQuant, autotune on the validation part; last released in 2024, so it has that "
            "year's onnxruntime; what it makes is run by the one that runs all others",
        ),
        Peer(
            "torchao",
            "torchao",
            "torchao_int8.py",
            ("torchao==0.18.0", *_TORCH),
            note="compiled by torch.compile; the file is what torch.save makes of the weights",
        ),
        Peer(
            "torch-pruning",
            "torch-pruning",
            "torch_pruned.py",
            ("torch-pruning==1.6.1", *_TORCH, "onnx==1.23.2", "onnxscript==0.7.2", _ONNXRUNTIME, "sympy==1.14.0"),
            note="half of the channels, then one epoch of distillation on the training part; also with int8",
        ),
        Peer(
            "olive",
            "Olive",
            "olive_passes.py",
            (
                "olive-ai==0.13.0",
                _ONNXRUNTIME,
                "torch==2.13.0",
                "transformers==5.23.0",
                "datasets",
                "tabulate",
                "requests",
            ),
            note="its passes by olive.run; auto-opt as its command line has it",
        ),
    )
}


class Ready:
    """A peer whose environment stands."""

    def __init__(self, peer: Peer, folder: Path) -> None:
        self.peer = peer
        self.folder = folder
        self.programs = programs_of(peer, folder)

    @property
    def versions(self) -> dict[str, str]:
        """The versions that matter."""
        kept = ("onnxruntime", "onnx", "openvino", "nncf", "torch", "torchao", "torch-pruning", "olive-ai", "numpy")
        found = versions(self.programs)
        return {
            name: number for name, number in found.items() if name in kept or "neural" in name or name == "transformers"
        }

    def compress(self, place: Place, work: Path, *, quick: bool, wanted: Sequence[str] = ()) -> list[Entry]:
        """Let the peer make its models; return them, with the reason for each that failed."""
        told = {**job(place, quick=quick), "variants": list(wanted)}
        command = [str(self.programs / "python"), str(PEERS_FOLDER / self.peer.script)]
        lines = carry_out(command, told, work / place.case.name / self.peer.name, PATIENCE_S)
        return [entry(self.peer.name, self.programs, self.folder, line) for line in lines]


def carry_out(command: Sequence[str], told: Mapping[str, Any], out: Path, patience_s: float) -> list[dict[str, Any]]:
    """Run a script that makes models; return its record, and as its last line why it ended early if it did."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "record.json").unlink(missing_ok=True)
    (out / "job.json").write_text(json.dumps({**told, "out": str(out)}))
    ended = _run([*command, str(out / "job.json")], out / "log.txt", patience_s)
    record: list[dict[str, Any]] = []
    if (out / "record.json").exists():
        record = json.loads((out / "record.json").read_text())
    if ended:
        record.append({"name": "the rest" if record else "all of it", "failed": ended})
    return record


def job(place: Place, *, quick: bool) -> dict[str, Any]:
    """Return what a tool is told of a model."""
    return {
        "model": place.case.name,
        "measure": place.case.measure,
        "is_text": place.case.is_text,
        "onnx": str(place.onnx),
        "module": place.spec,
        "train": str(place.given / "train.npz"),
        "validation": str(place.given / "validation.npz"),
        "max_drop": place.case.max_drop,
        "tight_drop": place.case.tight_drop,
        "is_quick": quick,
        "seed": 0,
    }


def programs_of(peer: Peer, folder: Path) -> Path:
    """Return the folder of programs of a peer's environment, after making it if necessary."""
    made_for = PEERS[peer.shares] if peer.shares else peer
    return environment(folder, made_for.name, made_for.packages)


def run_by(runtime: str, folder: Path, own: Path) -> Path:
    """Return the programs that run a model: the same release of onnxruntime, and of OpenVINO, whoever made it."""
    engine = {"onnxruntime": "onnxruntime", "openvino": "nncf"}.get(runtime)
    return programs_of(PEERS[engine], folder) if engine else own


def entry(who: str, own: Path, folder: Path, line: Mapping[str, Any]) -> Entry:
    """Return what a script has recorded as something to judge."""
    kept = ("loader", "seconds", "cpu_s", "evaluations", "settings", "notes", "failed")
    runtime = line.get("runtime", "")
    return Entry(
        who=who,
        name=line["name"],
        file=line.get("file", ""),
        runtime=runtime,
        programs=str(run_by(runtime, folder, own)),
        **{name: line[name] for name in kept if name in line},
    )


def _run(command: Sequence[str], log: Path, patience_s: float) -> str:
    """Run a program, its output into a file; return why it didn't end well, or nothing."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    variables |= {
        "HF_HUB_OFFLINE": "1",
        "OLIVE_DISABLE_TELEMETRY": "1",
        "NNCF_CI": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
    }
    begun = time.monotonic()
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, env=variables, start_new_session=True
        )
        try:
            process.wait(timeout=patience_s)
        except subprocess.TimeoutExpired:
            return f"ended after {time.monotonic() - begun:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if process.returncode == 0:
        return ""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"ended with {process.returncode}: {' | '.join(lines[-2:])}"[:300]


__all__ = ["PEERS", "Failed", "Peer", "Ready", "carry_out", "entry", "job"]
