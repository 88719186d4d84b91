"""From a Hugging Face folder to an ONNX file: the job that runs in a child process, without network and within limits.

Needs transformers, torch, onnx, onnxscript and tokenizers (`argosy[hf]`); a folder that has an ONNX file already needs
tokenizers only. Nothing is unpickled and no code of the folder is run.
"""

import io
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from argosy.cluster.confinement import confine, cut_network
from argosy.core.config import drop_environment, from_plain
from argosy.core.digest import canonical, sha256
from argosy.core.errors import ArgosyError, InvalidInput
from argosy.core.files import write_atomic
from argosy.core.plugins import missing
from argosy.formats.hf_folder import TOKENIZER_FILE, ExportConfig, Exported, Folder
from argosy.formats.onnx_check import read_model_file
from argosy.formats.onnx_export import OPSET, clean_bytes, silence, told
from argosy.formats.onnx_runtime import OnnxRunner
from argosy.formats.parity import TOLERANCE
from argosy.formats.runner import Runner
from argosy.registry.versions import MODEL_FILE

TOKEN_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
HIDDEN, LOGITS = "last_hidden_state", "logits"
# A library that was told so asks no hub, and sends nothing to anybody.
_OFFLINE = {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}  # fmt: skip
_LENGTHS = (1, 2, 5, 9, 17, 40, 90)
_SCRIPTS = (
    "abcdefghijklmnopqrstuvwxyz",
    "àéîõüßçñ",
    "абвгдежз",
    "αβγδεζηθ",
    "中文字句子",
    "あいうえお",
    "한국어말",
    "ابتثج",
)
_GIB = 1 << 30

Arrays = dict[str, np.ndarray]


def main(config: dict[str, Any]) -> None:
    """Export the folder named in `config` (see `ExportConfig`), check the file, and write the results."""
    asked = from_plain(config, ExportConfig, where="export")
    folder = asked.folder
    weights = sum((Path(folder.transformer) / name).stat().st_size for name in (*folder.weights, folder.onnx) if name)
    cut_network()
    confine(memory_bytes=asked.memory_bytes or 6 * _GIB + 8 * weights)
    drop_environment(**_OFFLINE)
    try:
        content, tokenizer, found = export(folder)
    except MemoryError as error:
        raise InvalidInput("the model asks for more memory than a model of its size needs") from error
    write_atomic(Path(asked.place) / MODEL_FILE, content)
    write_atomic(Path(asked.place) / TOKENIZER_FILE, tokenizer)
    write_atomic(Path(asked.result), canonical(found))


def export(folder: Folder) -> tuple[bytes, bytes, Exported]:
    """Return the ONNX file, the tokenizer and what is known of both; raises InvalidInput or PluginError."""
    return _from_weights(folder) if folder.weights else _from_onnx(folder)


class Form(NamedTuple):
    """How a model takes tokens and where its answer is."""

    inputs: tuple[str, ...]
    output: str
    pad_id: int
    datatype: str = "INT64"


def open_original(folder: Folder) -> tuple[Any, Arrays]:
    """Return a folder's model as a torch module of token arrays by position, and texts of several lengths for it."""
    module, _, encoded, form = _opened(folder)
    # Without the longest text: whatever is run costs time and memory by the square of its length.
    return module, _padded(encoded[:-1], form)


def _opened(folder: Folder) -> tuple[Any, Any, list[list[int]], Form]:
    try:
        import torch  # noqa: F401 - only to name the extra
        import transformers  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing(error, "hf") from error
    with silence():
        tokenizer = _tokenizer(folder)
        module = _module(folder)
    accepted = set(_parameters(module.model)) & set(tokenizer.model_input_names)
    inputs = tuple(name for name in TOKEN_INPUTS if name in accepted)
    if not {"input_ids", "attention_mask"} <= set(inputs):
        raise InvalidInput("it takes no attention_mask, so texts of different lengths could not share a batch")
    form = Form(inputs, HIDDEN if folder.task == "embedding" else LOGITS, folder.pad_id)
    module.names = inputs
    encoded = _encode(tokenizer.backend_tokenizer, sample_texts(folder.max_length), folder)
    return module, tokenizer, encoded, form


def _from_weights(folder: Folder) -> tuple[bytes, bytes, Exported]:
    try:
        import onnxscript
        import torch
        import transformers
    except ModuleNotFoundError as error:
        raise missing(error, "hf") from error
    module, tokenizer, encoded, form = _opened(folder)
    wanted = _answers(module, encoded, form)
    content, how, checks = _exported(module, encoded, wanted, form)
    written = tokenizer.backend_tokenizer.to_str().encode()
    made_by = {"torch": torch, "transformers": transformers, "onnxscript": onnxscript}
    versions = {name: str(library.__version__) for name, library in made_by.items()}
    found = Exported(
        digest=sha256(content),
        tokenizer_digest=sha256(written),
        inputs=form.inputs,
        datatype=form.datatype,
        output=form.output,
        width=wanted[0].shape[-1],
        how=how,
        checks=checks,
        samples=len(encoded),
        versions=versions,
    )
    return content, written, found


def _tokenizer(folder: Folder) -> Any:
    """Return the tokenizer as transformers understands the folder, which may be more than its tokenizer.json says."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder.transformer, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise InvalidInput(
            f"its tokenizer can't be loaded: {told(error)}", hint="a tokenizer.json must be in the folder"
        ) from error
    if not tokenizer.is_fast:
        raise InvalidInput(
            "its tokenizer has no fast form, so there is no tokenizer.json for it", hint="save it with a fast tokenizer"
        )
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    if folder.lowercase:
        from tokenizers import normalizers

        inner = [backend.normalizer] if backend.normalizer is not None else []
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *inner])
    return tokenizer


def _module(folder: Folder) -> Any:
    """Return the model as a torch module of token arrays by position, in inference mode and float32."""
    import torch
    from transformers import AutoModel, AutoModelForSequenceClassification

    kind = AutoModel if folder.task == "embedding" else AutoModelForSequenceClassification
    try:
        # eager: plain matrix products and a softmax, of which the exporter makes the shortest and fastest graph.
        model, info = kind.from_pretrained(
            folder.transformer,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation="eager",
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:
        raise InvalidInput(
            f"transformers can't load it: {told(error)}", hint="update transformers if the model is newer than it"
        ) from error
    # The pooler stands behind the token vectors, which are all that is used.
    absent = [name for name in info["missing_keys"] if folder.task != "embedding" or "pooler" not in name]
    if absent or info["mismatched_keys"]:
        names = ", ".join(sorted(map(str, absent or info["mismatched_keys"]))[:3])
        raise InvalidInput(
            f"its weights are not those its config.json describes: {names} are missing or differ in shape"
        )

    class Positional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.names: Any = TOKEN_INPUTS
            self.adds_mask = False
            """Whether the model is given what to add to its scores [rows, 1, 1, tokens], and not the mask itself."""

        def forward(self, *arrays: Any) -> Any:
            given = dict(zip(self.names, arrays, strict=True))
            if self.adds_mask:
                absent = 1.0 - given["attention_mask"].to(torch.float32)
                given["attention_mask"] = (absent * torch.finfo(torch.float32).min)[:, None, None, :]
            found = self.model(**given, return_dict=True)
            return found.last_hidden_state if folder.task == "embedding" else found.logits

    return Positional().eval()


def _parameters(model: Any) -> list[str]:
    import inspect

    return list(inspect.signature(model.forward).parameters)


def _exported(
    module: Any, encoded: list[list[int]], wanted: list[np.ndarray], form: Form
) -> tuple[bytes, str, dict[str, float]]:
    """Return the first exporter's file that answers as the module does."""
    # Without the longest text: whatever is traced costs time and memory by the square of its length.
    rows = _padded(encoded[:-1], form)
    said = []
    # The TorchScript exporter first: its graph of an encoder runs 10 to 15% faster, and it takes a fifth of the time
    # (docs/how-to/serve-text.md). A mask to be added needs two operators; what most models of transformers make of one
    # themselves takes thirty, some of which other frameworks don't have. Whoever reads it in another way is found out
    # by the answers, the longest text's included.
    for exporter, adds_mask in ((_with_torchscript, True), (_with_torchscript, False), (_with_dynamo, False)):
        name = exporter.__name__.removeprefix("_with_")
        module.adds_mask = adds_mask
        try:
            with silence():
                content = clean_bytes(exporter(module, rows, form.output))
            checks = check_tokens(OnnxRunner.load(content), encoded, wanted, form)
        except ArgosyError as error:
            said.append(f"{name}: {error.message}")
        except Exception as error:  # noqa: BLE001 - exporters raise whatever torch and the model raise
            said.append(f"{name}: {told(error)}")
        else:
            return content, name, checks
        finally:
            module.adds_mask = False
    raise InvalidInput(
        "the model could not be exported to ONNX; " + "; ".join(dict.fromkeys(said)), code="export_failed"
    )


def _with_torchscript(module: Any, rows: Arrays, output: str) -> Any:
    import onnx
    import torch

    buffer = io.BytesIO()
    torch.onnx.export(
        module,
        tuple(torch.from_numpy(array) for array in rows.values()),
        cast("Any", buffer),
        dynamo=False,
        opset_version=OPSET,
        input_names=list(rows),
        output_names=[output],
        dynamic_axes={name: _axes(name) for name in (*rows, output)},
    )
    return onnx.load_from_string(buffer.getvalue())


def _axes(name: str) -> dict[int, str]:
    return {0: "batch"} if name == LOGITS else {0: "batch", 1: "tokens"}


def _with_dynamo(module: Any, rows: Arrays, output: str) -> Any:
    import torch

    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    program = torch.onnx.export(
        module,
        tuple(torch.from_numpy(array) for array in rows.values()),
        dynamo=True,
        opset_version=OPSET,
        input_names=list(rows),
        output_names=[output],
        dynamic_shapes=(tuple(shape for _ in rows),),
        external_data=False,
        verbose=False,
    )
    assert program is not None
    return program.model_proto


def _answers(module: Any, encoded: list[list[int]], form: Form) -> list[np.ndarray]:
    """Return what the original gives for each text alone."""
    import torch

    found = []
    with torch.no_grad():
        for tokens in encoded:
            rows = _padded([tokens], form)
            found.append(module(*(torch.from_numpy(array) for array in rows.values())).numpy()[0])
    return found


def _from_onnx(folder: Folder) -> tuple[bytes, bytes, Exported]:
    """Take the folder's own ONNX file, after checking what can be checked without the original."""
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        raise missing(error, "text") from error
    root = Path(folder.transformer)
    if not (root / "tokenizer.json").is_file():
        raise InvalidInput(f"there is no tokenizer.json in '{root}'", hint="save it with a fast tokenizer")
    tokenizer = Tokenizer.from_file(str(root / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    content = read_model_file(root / folder.onnx)
    runner = OnnxRunner.load(content)
    taken = {spec.name: spec for spec in runner.signature.inputs}
    if not {"input_ids", "attention_mask"} <= set(taken) <= set(TOKEN_INPUTS):
        raise InvalidInput(
            f"'{folder.onnx}' takes {', '.join(taken)}; an encoder takes {', '.join(TOKEN_INPUTS)}",
            code="unsupported_model",
        )
    datatypes = {spec.datatype for spec in taken.values()}
    if len(datatypes) > 1 or not datatypes <= {"INT64", "INT32"}:
        raise InvalidInput(f"'{folder.onnx}' takes its tokens as {', '.join(sorted(datatypes))}, not INT64 or INT32")
    inputs = tuple(name for name in TOKEN_INPUTS if name in taken)
    rank = 3 if folder.task == "embedding" else 2
    output = next((s.name for s in runner.signature.outputs if len(s.shape) == rank and s.datatype == "FP32"), "")
    if not output:
        raise InvalidInput(
            f"'{folder.onnx}' has no FP32 output of {rank} dimensions, as {folder.task} needs", code="unsupported_model"
        )
    form = Form(inputs, output, folder.pad_id, datatypes.pop())
    encoded = _encode(tokenizer, sample_texts(folder.max_length), folder)
    wanted = [run_alone(runner, tokens, form) for tokens in encoded]
    checks = check_tokens(runner, encoded, wanted, form)
    del checks["parity"]
    written = tokenizer.to_str().encode()
    found = Exported(
        digest=sha256(content),
        tokenizer_digest=sha256(written),
        inputs=inputs,
        datatype=form.datatype,
        output=output,
        width=wanted[0].shape[-1],
        how=folder.onnx,
        checks=checks,
        samples=len(encoded),
    )
    return content, written, found


def sample_texts(max_length: int, *, seed: int = 0) -> list[str]:
    """Return made-up texts in several scripts: one word to a paragraph, and one beyond `max_length` tokens."""
    rng = random.Random(seed)  # noqa: S311 - samples, no secrets

    def word() -> str:
        letters = rng.choice(_SCRIPTS) if rng.random() < 0.3 else _SCRIPTS[0]
        return "".join(rng.choice(letters) for _ in range(rng.randint(1, 9)))

    return [" ".join(word() for _ in range(count)) + "." for count in (*_LENGTHS, max_length + 8)]


def _encode(tokenizer: Any, texts: Sequence[str], folder: Folder) -> list[list[int]]:
    tokenizer.enable_truncation(folder.max_length)
    try:
        found = [tokenizer.encode(folder.prefix + text) for text in texts]
    finally:
        tokenizer.no_truncation()
    if any(set(encoding.type_ids) - {0} for encoding in found):
        raise InvalidInput("its tokenizer gives single texts types other than 0", code="unsupported_model")
    return [encoding.ids for encoding in found]


def _padded(encoded: list[list[int]], form: Form) -> Arrays:
    longest = max(map(len, encoded))
    ids = np.full((len(encoded), longest), form.pad_id, dtype=form.datatype.lower())
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(encoded):
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    made = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {name: made[name] for name in form.inputs}


def run_alone(runner: Runner, tokens: list[int], form: Form) -> np.ndarray:
    """Return what a model gives for one text alone."""
    return np.asarray(runner.run(_padded([tokens], form))[form.output][0])


def check_tokens(runner: Runner, encoded: list[list[int]], wanted: list[np.ndarray], form: Form) -> dict[str, float]:
    """Compare a model's answers with `wanted`, text by text and in padded batches; return the largest differences.

    Differences are in units of the answers' scale. Raises InvalidInput for one beyond the tolerance.
    """
    checks = {"parity": 0.0, "padding": 0.0}
    scale = max(1.0, *(float(np.abs(answer).max()) for answer in wanted))
    alone = [run_alone(runner, tokens, form) for tokens in encoded]
    last = len(encoded) - 1
    # The longest with the shortest only: a whole batch of its length could take gigabytes.
    for rows in (range(last), range(last - 1, -1, -2), (0, last)):
        batch = runner.run(_padded([encoded[i] for i in rows], form))[form.output]
        for place, i in enumerate(rows):
            answer = batch[place][: len(encoded[i])] if batch.ndim == 3 else batch[place]
            for check, have, want in (("parity", alone[i], wanted[i]), ("padding", answer, alone[i])):
                if have.shape != want.shape or not np.isfinite(have).all():
                    raise InvalidInput(
                        f"for a text of {len(encoded[i])} tokens it answers {list(have.shape)} numbers, not "
                        f"{list(want.shape)}, or some that are not finite"
                    )
                checks[check] = max(checks[check], float(np.abs(have - want).max()) / scale)
    if checks["parity"] > TOLERANCE:
        raise InvalidInput(
            f"it answers otherwise than the original, by {checks['parity']:.2g} of the scale", code="parity"
        )
    if checks["padding"] > TOLERANCE:
        raise InvalidInput(
            f"what it answers for a text depends on the padding behind it, by {checks['padding']:.2g} of the scale, so "
            "requests could not share a batch",
            code="rows_depend",
        )
    return checks
