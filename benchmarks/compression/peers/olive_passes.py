"""Olive: its quantization passes, alone and behind its graph optimizations, and what its command line makes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"

from given import Peer
from olive.data.registry import Registry
from olive.workflows import run

_SAMPLES: list = []


@Registry.register_dataset("calibration_samples")
def calibration_samples(**_):
    """Return batches, each with a label that nobody reads."""
    return [(batch, 0) for batch in _SAMPLES]


@Registry.register_dataloader("as_they_are")
def as_they_are(dataset, **_):
    """Return the batches."""
    return dataset


DATA = {
    "name": "calibration",
    "type": "DataContainer",
    "load_dataset_config": {"type": "calibration_samples"},
    "pre_process_data_config": {"type": "skip_pre_process"},
    "post_process_data_config": {"type": "skip_post_process"},
    "dataloader_config": {"type": "as_they_are"},
}
STATIC = {"type": "OnnxStaticQuantization", "data_config": "calibration", "quant_format": "QDQ"}
DYNAMIC = {"type": "OnnxDynamicQuantization"}
FUSE = {"type": "OrtTransformersOptimization", "model_type": "bert", "opt_level": 0}


def main() -> None:
    """Make all variants."""
    peer = Peer()
    job = peer.job
    _SAMPLES.extend(job.calibration())
    tried = {
        "static": [{**STATIC, "precision": "int8", "activation_type": "uint8"}],
        "static per channel": [{**STATIC, "precision": "int8", "activation_type": "uint8", "per_channel": True}],
        "peephole optimizer, static per channel": [
            {"type": "OnnxPeepholeOptimizer"},
            {**STATIC, "precision": "int8", "activation_type": "uint8", "per_channel": True},
        ],
        "dynamic": [{**DYNAMIC, "precision": "int8"}],
    }
    if job.is_text:
        fused = {**FUSE, "num_heads": job.module.get("heads", 12), "hidden_size": job.module.get("hidden", 384)}
        tried["fused attention"] = [fused]
        tried["fused attention, dynamic per channel"] = [fused, {**DYNAMIC, "precision": "int8", "per_channel": True}]
    for name, passes in tried.items():
        if not peer.wants(name):
            continue
        with peer.variant(name) as made:
            made.file = made.folder / "model.onnx"
            made.settings = {"passes": [step["type"] for step in passes]}
            work = made.folder / "olive"
            shutil.rmtree(work, ignore_errors=True)
            run(
                {
                    "input_model": {"type": "ONNXModel", "model_path": str(job.onnx)},
                    "systems": {
                        "here": {
                            "type": "LocalSystem",
                            "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}],
                        }
                    },
                    "host": "here",
                    "target": "here",
                    "data_configs": [DATA],
                    "passes": {f"step{at}": step for at, step in enumerate(passes)},
                    "cache_dir": str(work / "cache"),
                    "output_dir": str(work / "out"),
                }
            )
            _take(work / "out", made.file)
    if peer.wants("optimize"):
        with peer.variant("command `olive optimize --precision int8`") as made:
            made.file = made.folder / "model.onnx"
            out = made.folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            command = [str(Path(sys.executable).parent / "olive"), "optimize", "-m", str(job.onnx), "-o", str(out)]
            command += ["--provider", "CPUExecutionProvider", "--device", "cpu", "--precision", "int8"]
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=made.folder)
            if done.returncode:
                raise RuntimeError((done.stderr or done.stdout).strip().splitlines()[-1])
            _take(out, made.file)


def _take(out: Path, target: Path) -> None:
    found = sorted(out.rglob("*.onnx"))
    if len(found) != 1:
        raise RuntimeError(f"olive left {len(found)} ONNX files")
    if found[0].with_suffix(".onnx.data").exists():
        shutil.copy(found[0].with_suffix(".onnx.data"), target.parent)
    shutil.copy(found[0], target)


if __name__ == "__main__":
    main()
