"""What `[model] init` names: where a training starts. No torch here; every command may ask for digests."""

from pathlib import Path

import msgspec

from argosy.core.digest import sha256_file
from argosy.core.errors import InvalidInput, NotFound
from argosy.data.tokenizer import TextTokenizer, read_tokenizer
from argosy.formats.hf_folder import Start, read_start
from argosy.train.config import ModelConfig

_MOST_DEFAULT = 512
"""Longer texts are cut by default: attention's cost grows with the square of the length."""


def init_path(config: ModelConfig, base: Path) -> Path | None:
    """Return the file or folder that `init` names, None when it names none. Raises NotFound, InvalidInput."""
    if not config.init:
        return None
    path = base / Path(config.init).expanduser()
    if not path.exists():
        raise NotFound(f"[model] init names '{config.init}', which is not there; looked for '{path}'", path=str(path))
    if path.is_file() and path.suffix != ".safetensors":
        raise InvalidInput(
            f"[model] init names the file '{config.init}'; only .safetensors files are read, since loading a pickle "
            "runs whatever code is in it",
            hint="save it with safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')",
            code="pickled_weights",
        )
    if path.is_dir() and (config.build or config.family):
        named = f"build = {config.build!r}" if config.build else f"family = {config.family!r}"
        raise InvalidInput(
            f"[model] init names a folder, which says itself what is built, and there is also {named}",
            hint="remove one of them, or name a .safetensors file of the built model's weights",
        )
    return path


def init_start(config: ModelConfig, base: Path) -> Start | None:
    """Return what is in the folder that `init` names; None when it is a file, or nothing."""
    path = init_path(config, base)
    return read_start(path) if path is not None and path.is_dir() else None


def init_digest(config: ModelConfig, base: Path) -> str:
    """Return the digest of all that `init` gives to a training, or an empty text."""
    path = init_path(config, base)
    if path is None:
        return ""
    return read_start(path).digest if path.is_dir() else sha256_file(path)


def init_tokenizer(config: ModelConfig, base: Path) -> TextTokenizer | None:
    """Return the tokenizer of the folder that `init` names, with its limits; None when there is no such folder."""
    start = init_start(config, base)
    if start is None:
        return None
    found = read_tokenizer(Path(start.transformer), lowercase=start.lowercase)
    return msgspec.structs.replace(
        found,
        pad_id=found.pad_id if start.pad_id is None else start.pad_id,
        end_id=start.end_id,
        max_length=min(start.max_length, _MOST_DEFAULT),
        most_tokens=start.most_tokens,
        prefix=start.prefix,
    )
