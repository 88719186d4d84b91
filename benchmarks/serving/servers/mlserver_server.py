"""Write MLServer's two settings files into a folder of its own and become `mlserver start`."""

import json
import os
import sys
from pathlib import Path

from engine import settings

if __name__ == "__main__":
    asked = settings()
    folder = Path(asked["scratch"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(
        json.dumps(
            {
                "debug": False,
                "host": "127.0.0.1",
                "http_port": asked["port"],
                "grpc_port": asked["port"] + 1,
                "metrics_port": asked["port"] + 2,
                "parallel_workers": asked.get("workers", 0),
                "gzip_enabled": False,
            }
        )
    )
    (folder / "model-settings.json").write_text(
        json.dumps(
            {
                "name": asked["model"],
                "implementation": "mlserver_runtime.Runtime",
                "max_batch_size": asked.get("max_batch", 0),
                "max_batch_time": asked.get("max_batch_time_s", 0.0),
            }
        )
    )
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    os.chdir(folder)
    os.execv(Path(sys.executable).parent / "mlserver", ["mlserver", "start", str(folder)])
