"""Preparation declared for a model that came without: a small TOML file, turned into steps and a signature.

[image]                          callers send images …
resize = 256                     their shorter side, before the middle is cut out
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]

[text]                           … or texts
tokenizer = "tokenizer.json"     beside this file
max_length = 256
pool = "mean"
normalize = true

[classes]                        what the model's numbers mean
labels = "labels.txt"            a line per class, beside this file; or a list
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from argosy.core.config import Config
from argosy.core.errors import InvalidInput, NotFound
from argosy.core.files import resolve_inside
from argosy.core.tensors import MAX_TEXT_BYTES, Signature, TensorSpec
from argosy.data.image_headers import MAX_IMAGE_BYTES, MAX_PIXELS
from argosy.data.images import DecodeImage, Normalize, ResizeImage, need_pillow
from argosy.data.prepare import FinishStep, Label, Softmax, Step, finish_signature
from argosy.data.text import L2Normalize, Pool, Tokenize, tokenize

TOKEN_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TOKENIZER_FILE = "tokenizer.json"
_MOST_BYTES = 64 << 20
Channels = tuple[float, float, float]


class ImageInput(Config, frozen=True):
    """`[image]`: callers send JPEG, PNG or WebP files."""

    name: str = "image"
    """What callers call it."""
    size: tuple[int, int] | None = None
    """Height and width the model takes; needed only where its file leaves them free."""
    resize: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Pixels of the shorter side after resizing, before the middle is cut out; 0 stretches the image to the size."""
    filter: Literal["bilinear", "bicubic"] = "bilinear"
    mean: Channels = (0.0, 0.0, 0.0)
    """Of red, green and blue, where 0 is black and 1 full."""
    std: Channels = (1.0, 1.0, 1.0)


class TextInput(Config, frozen=True):
    """`[text]`: callers send texts."""

    max_length: Annotated[int, msgspec.Meta(ge=1, le=8192)]
    """Tokens after which a text is cut."""
    name: str = "text"
    tokenizer: str = TOKENIZER_FILE
    """A tokenizer of Hugging Face's, beside the TOML file."""
    pad_id: Annotated[int, msgspec.Meta(ge=0)] = 0
    prefix: str = ""
    """Put before every text, such as "query: "."""
    pool: Literal["", "mean", "max", "cls"] = ""
    """How the vectors of a text's tokens become one; nothing: the model's output as it is."""
    normalize: bool = False
    """Bring each vector to length 1."""


class Classes(Config, frozen=True):
    """`[classes]`: the model's output is a number per class."""

    labels: str | tuple[str, ...]
    """A file with a line per class, beside the TOML file; or the names themselves."""
    softmax: bool = True
    """Whether the model gives scores, to be made probabilities; false: it gives probabilities."""
    output: str = ""
    """The model's output, where it has several."""


class Declaration(Config, frozen=True):
    """The whole file: one of `[image]` and `[text]`, or `[classes]` alone, or both."""

    image: ImageInput | None = None
    text: TextInput | None = None
    classes: Classes | None = None


class Attached(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes part of the version's manifest, and its files beside the model."""

    signature: Signature
    prepare: list[Step]
    finish: list[FinishStep]
    task: Literal["classification", "tensor"]
    files: dict[str, bytes]


def attach(declaration: Declaration, model: Signature, folder: Path) -> Attached:
    """Return what a declaration makes of a bare model; its files are looked for in `folder`.

    Raises InvalidInput for what does not fit the model, NotFound for a missing file, PluginError for a missing library.
    """
    if declaration.image is not None and declaration.text is not None:
        raise InvalidInput("a preparation has [image] or [text], not both")
    inputs, about, files = model.inputs, "", {}
    prepare: list[Step] = []
    finish: list[FinishStep] = []
    outputs = model.outputs
    if declaration.image is not None:
        spec, prepare, about = _image(declaration.image, model)
        inputs = (spec,)
    if declaration.text is not None:
        content = _file(folder, declaration.text.tokenizer)
        files[TOKENIZER_FILE] = content
        step = tokens(
            model, declaration.text.max_length, pad_id=declaration.text.pad_id, prefix=declaration.text.prefix
        )
        tokenize(step, content)
        prepare, about = [msgspec.structs.replace(step, input=declaration.text.name)], text_about(step)
        inputs = (text_input(declaration.text.name, is_batched=model.is_batched),)
        finish, outputs = _pooled(declaration.text, model)
    if declaration.classes is not None:
        more, outputs = _classes(declaration.classes, outputs, folder)
        finish += more
    return Attached(
        signature=Signature(inputs=inputs, outputs=outputs, about=about),
        prepare=prepare,
        finish=finish,
        task="classification" if declaration.classes is not None else "tensor",
        files=files,
    )


def text_input(name: str = "text", *, is_batched: bool = True) -> TensorSpec:
    """Return the input of a version that takes texts."""
    return TensorSpec(name=name, datatype="BYTES", shape=(-1 if is_batched else 1,), content="text")


def text_about(step: Tokenize) -> str:
    """Say what becomes of long texts."""
    return (
        f"texts are UTF-8, at most {MAX_TEXT_BYTES} bytes each; what goes beyond {step.max_length} tokens "
        "(marks like [CLS] included) is cut off"
    )


def tokens(model: Signature, max_length: int, *, pad_id: int = 0, prefix: str = "") -> Tokenize:
    """Return the step that makes what an encoder takes; InvalidInput if the model is none."""
    taken = {spec.name: spec for spec in model.inputs}
    if not {"input_ids", "attention_mask"} <= set(taken) <= set(TOKEN_INPUTS):
        raise InvalidInput(
            f"the model takes {', '.join(taken)}; a model of texts takes input_ids, attention_mask and perhaps "
            "token_type_ids",
            code="unsupported_model",
        )
    datatypes = {spec.datatype for spec in taken.values()}
    if len(datatypes) > 1 or not datatypes <= {"INT64", "INT32"}:
        raise InvalidInput(f"the model takes its tokens as {', '.join(sorted(datatypes))}, not INT64 or INT32")
    return Tokenize(
        max_length=max_length,
        file=TOKENIZER_FILE,
        outputs=tuple(name for name in TOKEN_INPUTS if name in taken),
        datatype=datatypes.pop(),
        pad_id=pad_id,
        prefix=prefix,
    )


def embedding(hidden: str, width: int, pooling: str, *, normalizes: bool) -> tuple[list[FinishStep], TensorSpec]:
    """Return the steps from token vectors to one vector per text, and that output."""
    finish: list[FinishStep] = [Pool(mode=pooling, input=hidden)]  # type: ignore[arg-type] # checked by the caller
    if normalizes:
        finish.append(L2Normalize())
    return finish, TensorSpec(name="embedding", datatype="FP32", shape=(-1, width))


def _pooled(text: TextInput, model: Signature) -> tuple[list[FinishStep], tuple[TensorSpec, ...]]:
    if text.pool:
        hidden = next((spec for spec in model.outputs if len(spec.shape) == 3 and spec.datatype == "FP32"), None)
        if hidden is None:
            raise InvalidInput("pool is for models with an output of a vector per token (FP32, three dimensions)")
        finish, output = embedding(hidden.name, hidden.shape[2], text.pool, normalizes=text.normalize)
        return finish, (output,)
    if not text.normalize:
        return [], model.outputs
    first = _only(model.outputs, "")
    return [L2Normalize(input=first.name, output="embedding")], (
        msgspec.structs.replace(first, name="embedding", datatype="FP32"),
    )


def _image(image: ImageInput, model: Signature) -> tuple[TensorSpec, list[Step], str]:
    need_pillow()
    spec = model.inputs[0] if len(model.inputs) == 1 else None
    if spec is None or len(spec.shape) != 4 or spec.datatype != "FP32" or 3 not in (spec.shape[1], spec.shape[3]):
        found = "; ".join(f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in model.inputs)
        raise InvalidInput(
            f"a model of images takes one FP32 input of [rows, 3, height, width] or [rows, height, width, 3]; this "
            f"one takes {found}",
            code="unsupported_model",
        )
    is_first = spec.shape[1] == 3
    taken = spec.shape[2:] if is_first else spec.shape[1:3]
    size = image.size or taken
    if min(size) < 1 or any(want not in (-1, have) for want, have in zip(taken, size, strict=True)):
        raise InvalidInput(
            f"the model takes images of {taken[0]} x {taken[1]} pixels (-1: any)"
            + (f", not {size[0]} x {size[1]}" if image.size else ""),
            hint="say which in [image] size = [height, width]",
        )
    height, width = size
    if 0 < image.resize < max(size) or min(image.std) <= 0.0:
        raise InvalidInput(
            f"[image] std must be above 0, and resize at least {max(size)}: the model takes {height} x {width} pixels, "
            "cut out of the middle"
        )
    steps: list[Step] = [
        DecodeImage(input=image.name),
        ResizeImage(height=height, width=width, input=image.name, shortest_edge=image.resize, filter=image.filter),
        Normalize(
            mean=image.mean,
            std=image.std,
            input=image.name,
            output=spec.name,
            layout="channels-first" if is_first else "channels-last",
        ),
    ]
    about = (
        f"images are JPEG, PNG or WebP files, at most {MAX_IMAGE_BYTES} bytes and {MAX_PIXELS} pixels each; they are "
        f"resized to {height} x {width}"
    )
    return TensorSpec(name=image.name, datatype="BYTES", shape=spec.shape[:1], content="image"), steps, about


def _classes(
    classes: Classes, outputs: tuple[TensorSpec, ...], folder: Path
) -> tuple[list[FinishStep], tuple[TensorSpec, ...]]:
    labels = _labels(classes, folder)
    spec = _only(outputs, classes.output)
    if len(spec.shape) != 2 or spec.shape[1] not in (-1, len(labels)):
        raise InvalidInput(
            f"[classes] names {len(labels)} labels, but the model's output '{spec.name}' is {list(spec.shape)}"
        )
    probabilities, label = finish_signature("classification", labels)
    if classes.softmax:
        return [Softmax(input=spec.name), Label(labels=labels)], (_rows(probabilities, spec), _rows(label, spec))
    whole = msgspec.structs.replace(probabilities, name=spec.name, datatype=spec.datatype)
    return [Label(labels=labels, input=spec.name)], (_rows(whole, spec), _rows(label, spec))


def _rows(spec: TensorSpec, model: TensorSpec) -> TensorSpec:
    return msgspec.structs.replace(spec, shape=(model.shape[0], *spec.shape[1:]))


def _only(outputs: Iterable[TensorSpec], name: str) -> TensorSpec:
    found = [spec for spec in outputs if not name or spec.name == name]
    if len(found) != 1:
        raise InvalidInput(
            f"the model has the outputs {', '.join(spec.name for spec in outputs)}",
            hint="say which of them holds the numbers of the classes: [classes] output = …",
        )
    return found[0]


def _labels(classes: Classes, folder: Path) -> tuple[str, ...]:
    if isinstance(classes.labels, str):
        try:
            lines = _file(folder, classes.labels).decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise InvalidInput(f"'{classes.labels}' is not UTF-8 text: {error}") from error
        while lines and not lines[-1].strip():
            lines.pop()
        labels = tuple(line.strip() for line in lines)
    else:
        labels = classes.labels
    repeated = sorted({label for label in labels if labels.count(label) > 1}) if len(set(labels)) < len(labels) else []
    if len(labels) < 2 or "" in labels or repeated:
        what = f"; {repeated[0]!r} is there twice" if repeated else ""
        raise InvalidInput(f"[classes] needs a name of its own for each of two classes or more{what}")
    return labels


def _file(folder: Path, name: str) -> bytes:
    path = resolve_inside(folder, name)
    if not path.is_file():
        raise NotFound(f"there is no '{name}' in '{folder}'", hint="files are looked for beside the TOML file")
    if path.stat().st_size > _MOST_BYTES:
        raise InvalidInput(f"'{name}' has more than {_MOST_BYTES} bytes")
    return path.read_bytes()
