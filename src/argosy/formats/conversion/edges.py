"""Argosy's own converters: one constant each, named in the table in `graph.py`."""

from argosy.formats.conversion.graph import Converter

PYTORCH_ONNX = Converter(
    source="pytorch", target="onnx", job="torch_job:to_onnx", does="torch.onnx, dynamo or TorchScript exporter"
)
PYTORCH_TORCHSCRIPT = Converter(
    source="pytorch", target="torchscript", job="torchscript_job:from_module", does="torch.jit.trace, or script"
)
PYTORCH_EXPORT = Converter(
    source="pytorch", target="torch-export", job="export_job:from_module", does="torch.export with a free batch"
)
TORCHSCRIPT_ONNX = Converter(
    source="torchscript", target="onnx", job="torchscript_job:to_onnx", does="torch.onnx, TorchScript exporter"
)
EXPORT_ONNX = Converter(
    source="torch-export", target="onnx", job="export_job:to_onnx", does="torch.onnx, dynamo exporter"
)
HUGGINGFACE_ONNX = Converter(
    source="huggingface", target="onnx", job="huggingface_job:to_onnx", does="transformers and torch.onnx"
)
SAVEDMODEL_ONNX = Converter(
    source="savedmodel", target="onnx", job="savedmodel_job:to_onnx", does="tf2onnx", tool="tensorflow"
)
KERAS_ONNX = Converter(source="keras", target="onnx", job="keras_job:to_onnx", does="tf2onnx", tool="tensorflow")
SAVEDMODEL_LITERT = Converter(
    source="savedmodel",
    target="litert",
    job="savedmodel_job:to_litert",
    does="TensorFlow's own converter",
    tool="tensorflow",
)
KERAS_LITERT = Converter(
    source="keras", target="litert", job="keras_job:to_litert", does="TensorFlow's own converter", tool="tensorflow"
)
SCIKIT_LEARN_ONNX = Converter(
    source="scikit-learn", target="onnx", job="sklearn_job:to_onnx", does="skl2onnx", tool="scikit-learn"
)
ONNX_PYTORCH = Converter(
    source="onnx", target="pytorch", job="torch_job:from_onnx", does="Argosy's own reader of ONNX graphs"
)
ONNX_OPENVINO = Converter(
    source="onnx", target="openvino", job="openvino_job:from_onnx", does="openvino.convert_model", tool="openvino"
)
ONNX_LITERT = Converter(source="onnx", target="litert", job="litert_job:from_onnx", does="onnx2tf", tool="litert")
ONNX_TVM = Converter(source="onnx", target="tvm", job="tvm_job:from_onnx", does="TVM Relax, LLVM", tool="tvm")
ONNX_MINDIR = Converter(
    source="onnx", target="mindir", job="mindspore_job:from_onnx", does="MindSpore graph mode", tool="mindspore"
)
