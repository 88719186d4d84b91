"""The peers: what each needs installed, how it is started, and the settings that were tried for it.

Of the settings of a model the best one is used: by requests a second at the model's greatest number of connections.
`serving.py --tune` measures all of them and keeps what it found in results/serving_tuning.json; without that file the
first of each list is taken, which was the best in former trials.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.dialects import V2, Bento, Dialect, Plain

SERVERS = Path(__file__).with_name("servers")
Settings = dict[str, Any]

# The engine is the same everywhere, and so is its tokenizer; `serving.py` adds the version that Argosy runs.
ENGINE = ("onnxruntime", "tokenizers")


@dataclass(frozen=True)
class Peer:
    """A server that is not ours."""

    name: str
    title: str
    packages: tuple[str, ...]
    command: Callable[[Path, Settings], list[str]]
    """From the folder of the environment's programs and the settings."""
    dialect: Callable[[Settings], Dialect]
    tried: Mapping[str, tuple[Settings, ...]]
    """For each model the settings worth trying, best guess first."""
    environment: Mapping[str, str] = field(default_factory=dict)
    batches: bool = True
    """It joins requests of different callers."""
    note: str = ""


def python(script: str) -> Callable[[Path, Settings], list[str]]:
    """Return the command of a server written in Python."""
    return lambda programs, _: [str(programs / "python"), str(SERVERS / script)]


def _fastapi(name: str, title: str, tried: Mapping[str, tuple[Settings, ...]], note: str = "") -> Peer:
    return Peer(
        name=name,
        title=title,
        packages=("fastapi==0.165.0", "uvicorn[standard]==0.54.0"),
        command=python("fastapi_server.py"),
        dialect=lambda _: Plain("/{model}"),
        tried=tried,
        batches=False,
        note=note,
    )


FASTAPI = _fastapi(
    "fastapi",
    "FastAPI",
    {name: ({"access_log": True},) for name in ("mlp", "minilm", "resnet18")},
    note="as its manual has it: everything at its default, the runtime's threads too",
)
FASTAPI_1 = _fastapi(
    "fastapi1",
    "FastAPI, 1 worker, tuned",
    {
        "mlp": ({"threads": 1}, {"threads": 1, "pool": 2}),
        "minilm": ({"threads": 1, "pool": 2}, {"threads": 2}, {"threads": 2, "pool": 2}, {"threads": 1, "pool": 3}),
        "resnet18": ({"threads": 1, "pool": 2}, {"threads": 2}, {"threads": 2, "pool": 2}, {"threads": 1, "pool": 3}),
    },
)
FASTAPI_2 = _fastapi(
    "fastapi2",
    "FastAPI, 2 workers, tuned",
    {
        "mlp": ({"threads": 1, "workers": 2},),
        "minilm": ({"threads": 1, "workers": 2}, {"threads": 1, "workers": 2, "pool": 1}),
        "resnet18": ({"threads": 1, "workers": 2}, {"threads": 1, "workers": 2, "pool": 1}),
    },
)
LITSERVE = Peer(
    name="litserve",
    title="LitServe",
    packages=("litserve==0.2.19",),
    command=python("litserve_server.py"),
    dialect=lambda _: Plain("/predict"),
    tried={
        "mlp": (
            {"threads": 1, "max_batch": 32, "batch_timeout_s": 0.0, "fast_queue": True, "api_servers": 2},
            {"threads": 1, "max_batch": 32, "batch_timeout_s": 0.0, "fast_queue": True},
            {"threads": 1, "max_batch": 32, "batch_timeout_s": 0.0, "fast_queue": False},
            {"threads": 1, "max_batch": 32, "batch_timeout_s": 0.002, "fast_queue": True},
        ),
        "minilm": (
            {"threads": 1, "workers": 2, "max_batch": 4, "batch_timeout_s": 0.0, "fast_queue": True},
            {"threads": 1, "workers": 2, "max_batch": 8, "batch_timeout_s": 0.005, "fast_queue": True},
            {"threads": 2, "workers": 1, "max_batch": 8, "batch_timeout_s": 0.0, "fast_queue": True},
        ),
        "resnet18": (
            {"threads": 1, "workers": 2, "max_batch": 2, "batch_timeout_s": 0.0, "fast_queue": True},
            {"threads": 2, "workers": 1, "max_batch": 4, "batch_timeout_s": 0.0, "fast_queue": True},
        ),
    },
)
BENTOML = Peer(
    name="bentoml",
    title="BentoML",
    packages=("bentoml==1.4.39",),
    command=lambda programs, asked: [
        str(programs / "bentoml"),
        *("serve", "bentoml_server:Served", "--working-dir", str(SERVERS)),
        *("--host", "127.0.0.1", "--port", str(asked["port"])),
    ],
    dialect=lambda asked: Bento(batched=asked.get("max_batch", 1) > 1),
    tried={
        "mlp": (
            {"threads": 1, "max_batch": 64, "workers": 2},
            {"threads": 1, "max_batch": 64},
            {"threads": 1, "max_batch": 64, "max_latency_ms": 50},
        ),
        "minilm": (
            {"threads": 1, "workers": 2, "max_batch": 4},
            {"threads": 1, "workers": 2, "max_batch": 16},
            {"threads": 1, "workers": 1, "max_batch": 8, "pool": 2},
            {"threads": 2, "workers": 1, "max_batch": 8},
        ),
        "resnet18": (
            {"threads": 1, "workers": 2, "max_batch": 2},
            {"threads": 2, "workers": 1, "max_batch": 4},
        ),
    },
    environment={"BENTOML_DO_NOT_TRACK": "True"},
    note="pixels are uploaded as a file, the binary input its schemas know",
)
MLSERVER = Peer(
    name="mlserver",
    title="MLServer",
    # Its workers ask uvloop for a current event loop, which newer releases refuse.
    packages=("mlserver==1.7.1", "uvloop==0.21.0"),
    command=python("mlserver_server.py"),
    dialect=lambda _: V2(pixels="base64"),
    tried={
        "mlp": (
            {"threads": 1, "workers": 0, "max_batch": 32, "max_batch_time_s": 0.001},
            {"threads": 1, "workers": 1, "max_batch": 32, "max_batch_time_s": 0.001},
        ),
        "minilm": (
            {"threads": 1, "workers": 2, "max_batch": 4, "max_batch_time_s": 0.001},
            {"threads": 1, "workers": 2, "max_batch": 8, "max_batch_time_s": 0.005},
            {"threads": 2, "workers": 0, "max_batch": 8, "max_batch_time_s": 0.001},
        ),
        "resnet18": (
            {"threads": 1, "workers": 2, "max_batch": 2, "max_batch_time_s": 0.001},
            {"threads": 2, "workers": 1, "max_batch": 4, "max_batch_time_s": 0.001},
        ),
    },
    note="its REST front knows no binary tensors, so pixels come as base64",
)
TRITON = Peer(
    name="triton",
    title="Triton, Python back end",
    packages=("nvidia-pytriton==0.7.0",),
    command=python("triton_server.py"),
    dialect=lambda _: V2(),
    tried={
        "mlp": (
            {"threads": 1, "workers": 1, "max_batch": 64},
            {"threads": 1, "workers": 2, "max_batch": 64},
            {"threads": 1, "workers": 1, "max_batch": 64, "delay_us": 500},
        ),
        "minilm": (
            {"threads": 1, "workers": 2, "max_batch": 4},
            {"threads": 1, "workers": 2, "max_batch": 16},
            {"threads": 2, "workers": 1, "max_batch": 8},
        ),
        "resnet18": (
            {"threads": 1, "workers": 2, "max_batch": 2},
            {"threads": 2, "workers": 1, "max_batch": 4},
        ),
    },
    note="the CPU tritonserver of nvidia-pytriton's wheel, with the model in its own Python back end",
)
PYTRITON = Peer(
    name="pytriton",
    title="Triton through pytriton",
    packages=("nvidia-pytriton==0.7.0",),
    command=python("pytriton_server.py"),
    dialect=lambda _: V2(),
    tried={
        "mlp": (
            {"threads": 1, "max_batch": 64},
            {"threads": 1, "max_batch": 64, "delay_us": 500},
            {"threads": 1, "max_batch": 64, "workers": 2},
        ),
        "minilm": (
            {"threads": 1, "workers": 2, "max_batch": 4},
            {"threads": 2, "max_batch": 8},
        ),
        "resnet18": (
            {"threads": 1, "workers": 2, "max_batch": 2},
            {"threads": 2, "max_batch": 4},
        ),
    },
    note="the way the wheel documents: the model is a function in a Python process, behind the stub and ZeroMQ",
)
RAY = Peer(
    name="ray",
    title="Ray Serve",
    packages=("ray[serve]==2.60.0",),
    command=python("ray_server.py"),
    dialect=lambda _: Plain("/"),
    tried={
        "mlp": (
            {"threads": 1, "workers": 1, "max_batch": 32, "batch_wait_s": 0.0},
            {"threads": 1, "workers": 2, "max_batch": 32, "batch_wait_s": 0.0},
        ),
        "minilm": (
            {"threads": 1, "workers": 2, "max_batch": 4, "batch_wait_s": 0.0},
            {"threads": 2, "workers": 1, "max_batch": 8, "batch_wait_s": 0.0},
        ),
        "resnet18": ({"threads": 1, "workers": 2, "max_batch": 2, "batch_wait_s": 0.0},),
    },
    environment={"RAY_USAGE_STATS_ENABLED": "0"},
)
PEERS = (FASTAPI, FASTAPI_1, FASTAPI_2, LITSERVE, BENTOML, MLSERVER, TRITON, PYTRITON, RAY)

LIMIT: tuple[Settings, ...] = ({"threads": 1, "workers": 2}, {"threads": 2, "workers": 1})
"""How the runtime alone can use both cores for many callers; the better way counts."""


def environment() -> dict[str, str]:
    """Return this process's environment without what would set a contender's threads, paths or homes."""
    drop = ("OPENBLAS_NUM", "OMP_NUM", "MKL_NUM", "ARGOSY_", "PYTHON", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(drop)}
