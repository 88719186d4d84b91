"""Lay out a model repository for Triton's Python back end and become `tritonserver`, both from pytriton's wheel.

The wheel's stub loads `libpython3.11.so.1.0` by name. Where the linker finds an older patch release of it than the
interpreter's own, the standard library's modules don't fit (`multiprocessing.resource_tracker` of 3.11.7 asks a lock
for `_recursion_count`, which an older library lacks), so the interpreter's own library comes first in the search path.
"""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from engine import settings

CONFIG = """\
name: "{model}"
backend: "python"
max_batch_size: {max_batch}
input [{{ name: "x", data_type: {kind}, dims: {dims} }}]
output [{{ name: "y", data_type: TYPE_FP32, dims: {outputs} }}]
instance_group [{{ kind: KIND_CPU, count: {workers} }}]
{batching}
"""
SHAPES = {
    "mlp": ("TYPE_FP32", [64], [10]),
    "minilm": ("TYPE_STRING", [1], [384]),
    "resnet18": ("TYPE_FP32", [3, 224, 224], [1000]),
}


def repository(folder: Path, asked: dict) -> None:
    """Write the model repository."""
    kind, dims, outputs = SHAPES[asked["model"]]
    model = folder / "models" / asked["model"]
    (model / "1").mkdir(parents=True)
    batch = asked.get("max_batch", 1)
    batching = f"dynamic_batching {{ max_queue_delay_microseconds: {asked.get('delay_us', 0)} }}" if batch > 1 else ""
    (model / "config.pbtxt").write_text(
        CONFIG.format(
            model=asked["model"],
            max_batch=batch,
            kind=kind,
            dims=dims,
            outputs=outputs,
            workers=asked.get("workers", 1),
            batching=batching,
        )
    )
    shutil.copy(Path(__file__).with_name("triton_model.py"), model / "1" / "model.py")


if __name__ == "__main__":
    asked = settings()
    folder = Path(asked["scratch"])
    shutil.rmtree(folder, ignore_errors=True)
    repository(folder, asked)
    site = Path(sysconfig.get_path("purelib"))
    bundle = site / "pytriton" / "tritonserver"
    backend = folder / "backends" / "python"
    shutil.copytree(bundle / "backends" / "python", backend)
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    shutil.copy(bundle / "python_backend_stubs" / version / "triton_python_backend_stub", backend)
    libraries = [sysconfig.get_config_var("LIBDIR"), site / "nvidia_pytriton.libs", os.environ.get("LD_LIBRARY_PATH")]
    os.environ["LD_LIBRARY_PATH"] = ":".join(str(path) for path in libraries if path)
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    os.environ["PYTHONPATH"] = f"{Path(__file__).parent}:{site}"
    os.execv(
        bundle / "bin" / "tritonserver",
        [
            "tritonserver",
            f"--model-repository={folder / 'models'}",
            f"--backend-directory={folder / 'backends'}",
            "--http-address=127.0.0.1",
            f"--http-port={asked['port']}",
            "--allow-grpc=false",
            "--metrics-address=127.0.0.1",
            f"--metrics-port={asked['port'] + 1}",
            f"--backend-config=python,shm-region-prefix-name=bench{asked['port']}_",
            "--log-info=false",
        ],
    )
