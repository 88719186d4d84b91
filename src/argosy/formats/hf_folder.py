"""What a Hugging Face or sentence-transformers folder holds and whether it can be served, from its JSON files alone.

Nothing of the folder is loaded here, and nothing heavy is imported. What the files say picks among what is built in;
it never picks code.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from argosy.core.config import Config
from argosy.core.errors import ArgosyError, InvalidInput, NotFound
from argosy.core.files import resolve_inside

TOKENIZER_FILE = "tokenizer.json"
SUPPORTED = (
    "sentence embeddings (an encoder such as BertModel, or a sentence-transformers folder of Transformer, Pooling and "
    "Normalize) and text classification (…ForSequenceClassification)"
)
MOST_TOKENS = 2048
"""Longer limits are cut to this: attention over 8,192 tokens takes gigabytes for one text."""
_POOLING = {
    "mean": "mean", "pooling_mode_mean_tokens": "mean", "max": "max", "pooling_mode_max_tokens": "max",
    "cls": "cls", "pooling_mode_cls_token": "cls",
}  # fmt: skip
# These count positions from behind the padding's own number.
_SHIFTED = ("roberta", "camembert", "mpnet", "longformer", "data2vec-text", "ibert", "xmod")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_DECIDES = ("*.json", "*.txt", "*.model", "*.jinja")
_CLASSIFIER = "ForSequenceClassification"
# Heads over the same encoder, left out for embeddings.
_ENCODERS = ("Model", "ForMaskedLM", "ForPreTraining")
_GENERATIVE = ("CausalLM", "LMHeadModel", "ConditionalGeneration", "Seq2Seq")
_MOST_JSON_BYTES = 64 << 20


class Folder(msgspec.Struct, frozen=True, kw_only=True):
    """A folder that can become a version."""

    path: str
    transformer: str
    """Where `config.json` and the weights are; a folder inside for some sentence-transformers folders."""
    architecture: str
    task: Literal["embedding", "classification"]
    labels: tuple[str, ...] = ()
    pooling: Literal["", "mean", "max", "cls"] = ""
    normalizes: bool = False
    max_length: int
    """Most tokens of a text."""
    pad_id: int = 0
    prefix: str = ""
    """What sentence-transformers puts before every text by default."""
    lowercase: bool = False
    weights: tuple[str, ...] = ()
    """The safetensors files."""
    onnx: str = ""
    """An ONNX file in it."""
    digest: str
    """Of every file that decides what it answers."""
    notes: tuple[str, ...] = ()


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """A folder whose weights a training can start from."""

    transformer: str
    """Where `config.json`, tokenizer and weights are."""
    pooling: Literal["", "mean", "max", "cls"] = ""
    """What a folder of sentence-transformers says."""
    max_length: int
    """Tokens after which the folder says that texts are cut."""
    most_tokens: int
    """What its weights can read; 0: no limit."""
    pad_id: int | None = None
    end_id: int | None = None
    """The token behind a text."""
    prefix: str = ""
    lowercase: bool = False
    digest: str


class ExportConfig(Config, frozen=True):
    """What the child is told."""

    folder: Folder
    place: str
    """Folder for the model and its tokenizer, under the names they have in the version."""
    result: str
    """Path of the JSON file to write, an `Exported`."""
    memory_bytes: int = 0
    """Most memory the process may take; 0: 6 GiB and eight times the weights."""


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What came out."""

    digest: str
    tokenizer_digest: str
    inputs: tuple[str, ...]
    """What the model takes of input_ids, attention_mask and token_type_ids."""
    datatype: str
    output: str
    width: int
    """Size of the output's last dimension."""
    how: str
    """Which exporter made the file, or where it was found."""
    checks: dict[str, float]
    """parity: largest difference from the original, of its scale; padding: the same between a padded batch and its
    rows alone; absent without an original."""
    samples: int
    versions: dict[str, str] = {}
    """Of the libraries that made it."""


class _Config(msgspec.Struct):
    architectures: list[str] | None = None
    model_type: str = ""
    auto_map: Any = None
    id2label: dict[str, str] | None = None
    problem_type: str | None = None
    max_position_embeddings: int | None = None
    n_positions: int | None = None
    """What GPT-2 and its like call it."""
    pad_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    quantization_config: Any = None


class _Module(msgspec.Struct):
    type: str
    path: str = ""


class _TransformerConfig(msgspec.Struct):
    max_seq_length: int | None = None
    do_lower_case: bool = False


class _TokenizerConfig(msgspec.Struct):
    model_max_length: float | None = None
    auto_map: Any = None


class _SentenceConfig(msgspec.Struct):
    prompts: dict[str, str] = {}
    default_prompt_name: str | None = None


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def is_folder(path: Path) -> bool:
    """Return whether `path` looks like a folder of Hugging Face's or sentence-transformers'."""
    return path.is_dir() and ((path / "config.json").is_file() or (path / "modules.json").is_file())


def read_folder(path: Path) -> Folder:
    """Return what is in the folder; NotFound or InvalidInput says what is missing or not supported, and what to do."""
    path = path.absolute()
    if not is_folder(path):
        raise NotFound(
            f"'{path}' holds neither a config.json nor a modules.json",
            hint="name a Hugging Face or sentence-transformers folder, an ONNX file, or a version",
        )
    modules = _modules(path)
    root = path if modules is None or not modules[0].path else resolve_inside(path, modules[0].path)
    config = _read(root / "config.json", _Config)
    if config is None:
        raise NotFound(f"there is no config.json in '{root}'")
    notes: list[str] = []
    architecture, task = _task(config, is_sentence=modules is not None)
    _refuse_code(config, _read(root / "tokenizer_config.json", _TokenizerConfig))
    pooling: Any = ""
    normalizes = False
    if task == "embedding":
        pooling, normalizes = _pooling(path, modules, notes)
    weights, onnx = _weights(root)
    transformer = _read(root / "sentence_bert_config.json", _TransformerConfig) or _TransformerConfig()
    return Folder(
        path=str(path),
        transformer=str(root),
        architecture=architecture,
        task=task,
        labels=_labels(config) if task == "classification" else (),
        pooling=pooling,
        normalizes=normalizes,
        max_length=_max_length(root, config, transformer, notes),
        pad_id=config.pad_token_id or 0,
        prefix=_prefix(path) if modules is not None else "",
        lowercase=transformer.do_lower_case,
        weights=weights,
        onnx=onnx,
        digest=_digest(path, (*(root / name for name in weights), *([root / onnx] if onnx else []))),
        notes=tuple(notes),
    )


def read_start(path: Path) -> Start:
    """Return what a training needs to know of a folder, of whatever architecture.

    Raises NotFound or InvalidInput for pickled or missing weights, and for one that needs code of its own.
    """
    path = path.absolute()
    if not is_folder(path):
        raise NotFound(
            f"'{path}' holds neither a config.json nor a modules.json",
            hint="name a Hugging Face or sentence-transformers folder, or a .safetensors file",
        )
    modules = _modules(path)
    root = path if modules is None or not modules[0].path else resolve_inside(path, modules[0].path)
    config = _read(root / "config.json", _Config)
    if config is None:
        raise NotFound(f"there is no config.json in '{root}'")
    _refuse_code(config, _read(root / "tokenizer_config.json", _TokenizerConfig))
    weights, _ = _weights(root)
    if not weights:
        raise InvalidInput(
            f"'{root}' has its weights as ONNX only, and a training can't start from these",
            hint="save it as safetensors: AutoModel.from_pretrained(folder).save_pretrained(new_folder)",
            code="weights_missing",
        )
    transformer = _read(root / "sentence_bert_config.json", _TransformerConfig) or _TransformerConfig()
    pooling: Any = _pooling(path, modules, [])[0] if modules is not None else ""
    return Start(
        transformer=str(root),
        pooling=pooling,
        max_length=_max_length(root, config, transformer, []),
        most_tokens=_positions(config),
        pad_id=config.pad_token_id,
        end_id=config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id,
        prefix=_prefix(path) if modules is not None else "",
        lowercase=transformer.do_lower_case,
        digest=_digest(path, tuple(root / name for name in weights)),
    )


def _read(path: Path, kind: type[Any]) -> Any:
    """Return a JSON file as `kind`, None if there is none."""
    if not path.is_file():
        return None
    if path.stat().st_size > _MOST_JSON_BYTES:
        raise InvalidInput(f"'{path}' is larger than {_MOST_JSON_BYTES} bytes")
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"'{path}' is not as it should be: {error}") from error


def _modules(path: Path) -> list[_Module] | None:
    modules = _read(path / "modules.json", list[_Module])
    if modules is None:
        return None
    kinds = [module.type.rpartition(".")[2] for module in modules]
    known = all(module.type.startswith("sentence_transformers.") for module in modules)
    if not known or kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise InvalidInput(
            f"modules.json chains {', '.join(kinds)[:200] or 'nothing'}; what can be served is Transformer, Pooling "
            "and Normalize",
            hint="export the whole model to ONNX and deploy that file with a preparation",
            code="unsupported_model",
        )
    return list(modules)


def _task(config: _Config, *, is_sentence: bool) -> tuple[str, Any]:
    architecture = (config.architectures or [""])[0]
    if architecture.endswith(_CLASSIFIER) and not is_sentence:
        return architecture, "classification"
    is_generative = any(word in architecture for word in _GENERATIVE)
    if (architecture.endswith(_ENCODERS) or (is_sentence and not architecture)) and not is_generative:
        return architecture, "embedding"
    named = architecture or config.model_type or "model without a name"
    raise InvalidInput(
        f"config.json says it is a {named}, which can't be served",
        hint=f"supported are: {SUPPORTED}; others as ONNX files, those of images with --prepare",
        code="unsupported_model",
    )


def _refuse_code(config: _Config, tokenizer: _TokenizerConfig | None) -> None:
    if config.auto_map or (tokenizer is not None and tokenizer.auto_map):
        raise InvalidInput(
            "the model needs Python code of its own (auto_map in its configuration), which is never run",
            hint="export it to ONNX where you trust that code, and deploy the ONNX file with a preparation",
            code="unsupported_model",
        )
    if config.quantization_config:
        raise InvalidInput(
            "its weights are quantized in a form of a library's own",
            hint="save it unquantized",
            code="unsupported_model",
        )


def _labels(config: _Config) -> tuple[str, ...]:
    named = config.id2label or {}
    labels = tuple(named.get(str(index), "") for index in range(len(named)))
    if len(labels) < 2:
        raise InvalidInput(
            "it gives a single score, not classes; only classifiers of two classes or more can be served",
            hint=f"supported are: {SUPPORTED}",
            code="unsupported_model",
        )
    if "" in labels or len(set(labels)) < len(labels):
        raise InvalidInput("id2label in config.json must name each class once, from 0 on", code="unsupported_model")
    if config.problem_type not in (None, "single_label_classification"):
        raise InvalidInput(
            f"it is for {config.problem_type}; only classifiers that pick one class can be served",
            hint=f"supported are: {SUPPORTED}",
            code="unsupported_model",
        )
    return labels


def _pooling(path: Path, modules: list[_Module] | None, notes: list[str]) -> tuple[Any, bool]:
    if modules is None:
        # What sentence-transformers does with such a folder.
        notes.append("there is no modules.json, so the vectors of a text's tokens are averaged")
        return "mean", False
    config = _read(resolve_inside(path, modules[1].path) / "config.json", dict[str, Any])
    if config is None:
        raise NotFound(f"there is no config.json in '{path / modules[1].path}'")
    said = config.get("pooling_mode")
    modes = [said] if isinstance(said, str) else said if isinstance(said, list) else None
    if modes is None:
        modes = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True] or ["mean"]
    if len(modes) != 1 or modes[0] not in _POOLING:
        raise InvalidInput(
            f"it pools by {', '.join(map(str, modes))[:200]}; what can be served is one of mean, max and cls",
            code="unsupported_model",
        )
    if config.get("include_prompt") is False and _prefix(path):
        raise InvalidInput("it leaves its prompt out of the pooling, which can't be served", code="unsupported_model")
    return _POOLING[modes[0]], len(modules) > 2


def _prefix(path: Path) -> str:
    said = _read(path / "config_sentence_transformers.json", _SentenceConfig) or _SentenceConfig()
    return str(said.prompts.get(said.default_prompt_name, "")) if said.default_prompt_name else ""


def _max_length(root: Path, config: _Config, transformer: _TransformerConfig, notes: list[str]) -> int:
    tokenizer = _read(root / "tokenizer_config.json", _TokenizerConfig) or _TokenizerConfig()
    limits = [_positions(config), transformer.max_seq_length or tokenizer.model_max_length]
    found = int(min([limit for limit in limits if limit and 0 < limit < 1e9], default=512))
    if found > MOST_TOKENS:
        notes.append(f"texts are cut after {MOST_TOKENS} tokens; the model itself could read {found}")
    return min(found, MOST_TOKENS)


def _positions(config: _Config) -> int:
    """Return the most tokens the weights can read; 0: they know no limit."""
    positions = config.max_position_embeddings or config.n_positions or 0
    return (
        positions - (config.pad_token_id or 0) - 1 if positions and config.model_type.endswith(_SHIFTED) else positions
    )


def _weights(root: Path) -> tuple[tuple[str, ...], str]:
    onnx = next((name for name in ("onnx/model.onnx", "model.onnx") if (root / name).is_file()), "")
    if (root / "model.safetensors").is_file():
        return ("model.safetensors",), onnx
    index = _read(root / "model.safetensors.index.json", _Index)
    if index is not None:
        names = tuple(sorted(set(index.weight_map.values())))
        for name in names:
            if "/" in name or not (root / name).is_file():
                raise NotFound(f"model.safetensors.index.json names '{name[:100]}', which is not in '{root}'")
        return names, onnx
    if onnx:
        return (), onnx
    pickled = sorted(found.name for pattern in _PICKLED for found in root.glob(pattern))
    if pickled:
        raise InvalidInput(
            f"its weights are pickled ('{pickled[0]}'), and loading a pickle runs whatever code is in it",
            hint="where you trust the file, save it as safetensors: AutoModel.from_pretrained(folder)"
            ".save_pretrained(new_folder), with the Auto class of its architecture",
            code="pickled_weights",
        )
    raise NotFound(f"there is no model.safetensors and no onnx/model.onnx in '{root}'", code="weights_missing")


def _digest(path: Path, weights: tuple[Path, ...]) -> str:
    found = hashlib.sha256()
    for file in (*sorted(_decisive(path)), *weights):
        try:
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise _unreadable(file, error) from error
        found.update(f"{file.relative_to(path)} {content}\n".encode())
    return f"sha256:{found.hexdigest()}"


def _decisive(path: Path) -> Iterator[Path]:
    for folder in (path, *(inside for inside in path.iterdir() if inside.is_dir())):
        for pattern in _DECIDES:
            yield from (file for file in folder.glob(pattern) if file.is_file())


def _unreadable(path: Path, error: OSError) -> ArgosyError:
    return InvalidInput(f"'{path}' can't be read: {error.strerror}")
