"""What a model takes and gives, in the words of the protocol and of Triton's model configuration."""

from typing import Any

from argosy.core.tensors import Signature, TensorSpec
from argosy.serve.endpoint import Endpoint
from argosy.serve.rpc.messages import ModelConfigResponse, ModelMetadataResponse

PLATFORM = "argosy_onnx"
# Triton's model configuration has an enumeration where the protocol has names.
_TYPES = {
    "BOOL": "TYPE_BOOL", "UINT8": "TYPE_UINT8", "UINT16": "TYPE_UINT16", "UINT32": "TYPE_UINT32",
    "UINT64": "TYPE_UINT64", "INT8": "TYPE_INT8", "INT16": "TYPE_INT16", "INT32": "TYPE_INT32", "INT64": "TYPE_INT64",
    "FP16": "TYPE_FP16", "FP32": "TYPE_FP32", "FP64": "TYPE_FP64", "BYTES": "TYPE_STRING",
}  # fmt: skip


def model_metadata(endpoint: Endpoint, signature: Signature) -> Any:
    """Return a ModelMetadataResponse."""
    return ModelMetadataResponse(
        name=endpoint.route.name,
        versions=endpoint.numbers(),
        platform=PLATFORM,
        inputs=[_described(spec) for spec in signature.inputs],
        outputs=[_described(spec) for spec in signature.outputs],
    )


def model_config(endpoint: Endpoint, signature: Signature, max_batch: int) -> Any:
    """Return a ModelConfigResponse with what clients that generate load look for.

    `max_batch`: rows that a replica runs together, 0 where none is known. A request may have more rows than that.
    """
    is_batched = signature.is_batched and max_batch > 0

    def tensors(specs: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
        # In Triton's form the batch dimension stands in max_batch_size only.
        return [
            {
                "name": spec.name,
                "data_type": _TYPES[spec.datatype],
                "dims": spec.shape[1:] if is_batched else spec.shape,
            }
            for spec in specs
        ]

    answer = ModelConfigResponse()
    config = answer.config
    config.name = endpoint.route.name
    config.platform = config.backend = PLATFORM
    config.max_batch_size = max_batch if is_batched else 0
    for entry in tensors(signature.inputs):
        config.input.add(**entry)
    for entry in tensors(signature.outputs):
        config.output.add(**entry)
    return answer


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}
