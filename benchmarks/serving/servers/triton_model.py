"""The model file of Triton's Python back end: `model.py` in its model repository."""

import numpy as np
import triton_python_backend_utils as triton
from engine import Engine, settings


class TritonPythonModel:
    """One instance; the dynamic batcher hands over requests, which are joined here."""

    def initialize(self, args: dict[str, str]) -> None:  # noqa: ARG002
        """Load the model."""
        asked = settings()
        self.engine = Engine(asked["model"], asked["folder"], asked["threads"])

    def execute(self, requests: list) -> list:
        """Answer a batch, request by request."""
        items = []
        for request in requests:
            array = triton.get_input_tensor_by_name(request, "x").as_numpy()
            items.append(array[0, 0] if array.dtype == np.object_ else array[0].data)
        rows = self.engine(items)
        return [
            triton.InferenceResponse([triton.Tensor("y", rows[index : index + 1])]) for index in range(len(requests))
        ]
