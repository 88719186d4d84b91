"""The formats that models come as and become: one constant each, named in the table in `graph.py`."""

from argosy.formats.conversion.graph import Format

PYTORCH = Format(name="pytorch", title="PyTorch module", job="torch_job", is_traced=True)
TORCHSCRIPT = Format(name="torchscript", title="TorchScript", job="torchscript_job", is_traced=True, suffix=".pt")
TORCH_EXPORT = Format(name="torch-export", title="torch.export", job="export_job", is_traced=True, suffix=".pt2")
HUGGINGFACE = Format(name="huggingface", title="Hugging Face folder", job="huggingface_job", is_traced=True)
ONNX = Format(name="onnx", title="ONNX", job="onnx_job", is_traced=True, suffix=".onnx")
SAVEDMODEL = Format(
    name="savedmodel", title="TensorFlow SavedModel", job="savedmodel_job", is_traced=True, tool="tensorflow"
)
KERAS = Format(name="keras", title="Keras", job="keras_job", is_traced=True, tool="tensorflow", suffix=".keras")
SCIKIT_LEARN = Format(
    name="scikit-learn", title="scikit-learn", job="sklearn_job", is_traced=True, tool="scikit-learn", suffix=".pkl"
)
OPENVINO = Format(
    name="openvino", title="OpenVINO IR", job="openvino_job", is_traced=True, tool="openvino", suffix=".xml"
)
LITERT = Format(
    name="litert", title="LiteRT (TensorFlow Lite)", job="litert_job", is_traced=True, tool="litert", suffix=".tflite"
)
TVM = Format(name="tvm", title="TVM library", job="tvm_job", tool="tvm", suffix=".so")
MINDIR = Format(name="mindir", title="MindIR", job="mindspore_job", tool="mindspore", suffix=".mindir")
