"""A runtime of MLServer around onnxruntime: `implementation` of model-settings.json.

MLServer's REST front knows no binary tensors, so pixels come as base64, the least it allows.
"""

from engine import Engine, settings
from mlserver import MLModel
from mlserver.codecs import Base64Codec, NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

ASKED = settings()


class Runtime(MLModel):
    """Answers a request, or several that MLServer's adaptive batching has merged into one."""

    async def load(self) -> bool:
        """Load the model, in each parallel worker."""
        self.engine = Engine(ASKED["model"], ASKED["folder"], ASKED["threads"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Return the answer's tensor."""
        given = payload.inputs[0]
        codec = {"mlp": NumpyCodec, "minilm": StringCodec, "resnet18": Base64Codec}[ASKED["model"]]
        rows = self.engine(list(codec.decode_input(given)))
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", rows)])
