"""Triton through pytriton: its Python API, where the model stays in this process and Triton's stub talks to it."""

import os
import signal
import sys
import sysconfig
from typing import Any

from engine import Engine, settings


def main() -> None:
    """Bind the model and serve until told to stop."""
    import numpy as np
    from pytriton.decorators import batch
    from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
    from pytriton.triton import Triton, TritonConfig

    asked = settings()
    engine = Engine(asked["model"], asked["folder"], asked["threads"])

    @batch
    def infer(x: Any) -> dict[str, Any]:
        if asked["model"] == "minilm":
            return {"y": engine([text for (text,) in x])}
        return {"y": engine([row.data for row in x])}

    kind, shape, rows = {
        "mlp": (np.float32, (64,), (10,)),
        "minilm": (np.bytes_, (1,), (384,)),
        "resnet18": (np.float32, (3, 224, 224), (1000,)),
    }[asked["model"]]
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=asked["port"],
        grpc_port=asked["port"] + 1,
        grpc_address="127.0.0.1",
        metrics_port=asked["port"] + 2,
        log_verbose=0,
    )
    batcher = DynamicBatcher(max_queue_delay_microseconds=asked.get("delay_us", 0))
    with Triton(config=config) as triton:
        triton.bind(
            model_name=asked["model"],
            infer_func=[infer] * asked.get("workers", 1),
            inputs=[Tensor(name="x", dtype=kind, shape=shape)],
            outputs=[Tensor(name="y", dtype=np.float32, shape=rows)],
            config=ModelConfig(max_batch_size=asked["max_batch"], batcher=batcher),
            strict=False,
        )
        triton.run()
        signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    own = sysconfig.get_config_var("LIBDIR")
    if own and os.environ.get("LD_LIBRARY_PATH", "").split(":")[0] != own:
        # See triton_server.py: the stub must find the interpreter's own library first.
        os.environ["LD_LIBRARY_PATH"] = ":".join(filter(None, [own, os.environ.get("LD_LIBRARY_PATH")]))
        os.execv(sys.executable, [sys.executable, *sys.argv])
    main()
