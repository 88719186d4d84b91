"""Settings of this machine, and how files become frozen structs. The only module that reads the environment."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from argosy.core.errors import InvalidInput, NotFound

T = TypeVar("T")


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The base of every section of a file: frozen, keywords only, unknown fields refused."""


class Secret(str):
    """A text that stays out of what is printed: `repr` hides it, so that no error or log shows it by mistake."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'" if self else "''"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Where this machine keeps things. Environment before default; `argosy config show` prints each with its source."""

    home: Path
    """State of this machine: keys, index, caches, process records (`ARGOSY_HOME`)."""
    store: str
    """URL of the object store that holds blobs and log (`ARGOSY_STORE`); default a folder in `home`."""
    runtime: Path
    """Folder for sockets and process records; short, because a Unix socket's path has at most 107 bytes."""
    actor: str
    """Who writes to the log (`ARGOSY_ACTOR`); default the user's name."""
    log_level: str
    """Lowest level written to the logs of processes (`ARGOSY_LOG_LEVEL`); default info."""
    api_key: Secret = Secret()
    """Key that clients send to a gateway: `ARGOSY_API_KEY`, or the content of the file `ARGOSY_API_KEY_FILE` names."""
    sources: dict[str, str] = {}
    """For each field, where its value came from."""


def load_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from `environment` (the process's own when not given)."""
    env = os.environ if environment is None else environment
    sources: dict[str, str] = {}

    def take(field: str, variable: str, default: str) -> str:
        sources[field] = variable if env.get(variable) else "default"
        return env.get(variable) or default

    data_home = env.get("XDG_DATA_HOME") or str(Path(env.get("HOME") or "~").expanduser() / ".local" / "share")
    home = Path(take("home", "ARGOSY_HOME", str(Path(data_home) / "argosy"))).expanduser().absolute()
    store = take("store", "ARGOSY_STORE", str(home / "store"))
    if "://" not in store:
        store = Path(store).expanduser().absolute().as_uri()
    short = hashlib.sha256(str(home).encode()).hexdigest()[:12]
    # `private_folder` refuses this one if somebody else made it first; the tempfile module costs 10 ms of imports.
    default_runtime = Path(env.get("TMPDIR") or "/tmp") / f"argosy-{os.getuid()}" / short  # noqa: S108
    runtime = Path(take("runtime", "ARGOSY_RUNTIME", str(default_runtime))).absolute()
    return Settings(
        home=home,
        store=store,
        runtime=runtime,
        actor=take("actor", "ARGOSY_ACTOR", env.get("USER") or env.get("LOGNAME") or f"uid-{os.getuid()}"),
        log_level=take("log_level", "ARGOSY_LOG_LEVEL", "info"),
        api_key=_checked_key(take("api_key", "ARGOSY_API_KEY", "").strip() or _key_in_file(env, sources), sources),
        sources=sources,
    )


def _key_in_file(env: Mapping[str, str], sources: dict[str, str]) -> str:
    path = env.get("ARGOSY_API_KEY_FILE")
    if not path:
        return ""
    sources["api_key"] = "ARGOSY_API_KEY_FILE"
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it holds more than letters and digits"
        raise InvalidInput(f"ARGOSY_API_KEY_FILE names '{path}', which can't be read: {why}") from error


def _checked_key(key: str, sources: Mapping[str, str]) -> Secret:
    # Whatever can't stand in a header would be repeated by the errors of whoever tries.
    if not key.isascii() or any(c <= " " or c == "\x7f" for c in key):
        raise InvalidInput(
            f"{sources['api_key']} holds spaces or letters that no key has", hint="set it to the key alone, on one line"
        )
    return Secret(key)


def allows_plain_http(environment: Mapping[str, str] | None = None) -> bool:
    """Return whether the user allows object stores without TLS, in the variables that obstore reads for it."""
    env = os.environ if environment is None else environment
    names = ("AWS_ALLOW_HTTP", "AZURE_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP")
    return any(env.get(name, "").lower() in ("1", "true", "yes") for name in names)


def traces_endpoint(environment: Mapping[str, str] | None = None) -> str:
    """Return where traces go, empty when they are off: OpenTelemetry's own variables decide."""
    env = os.environ if environment is None else environment
    if env.get("OTEL_SDK_DISABLED", "").lower() == "true" or env.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return ""
    return env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or env.get("OTEL_EXPORTER_OTLP_ENDPOINT") or ""


def traces_sampler(environment: Mapping[str, str] | None = None) -> str:
    """Return which traces the user wants kept (`OTEL_TRACES_SAMPLER`), empty when nothing is said."""
    env = os.environ if environment is None else environment
    return env.get("OTEL_TRACES_SAMPLER", "")


def private_folder(path: Path) -> Path:
    """Make `path` a folder only this user can enter, and return it; refuse one that belongs to somebody else."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.is_symlink() or path.stat().st_uid != os.getuid():
        raise InvalidInput(
            f"'{path}' belongs to somebody else, so sockets and keys can't be kept there",
            hint="set ARGOSY_RUNTIME to a folder of your own",
        )
    path.chmod(0o700)
    return path


def child_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with `changes`, for a process that is about to be started.

    Without the key of whoever starts it: processes of Argosy outlive the command, and ask nobody in that name.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith("ARGOSY_API_KEY")} | dict(changes)


_HARMLESS = frozenset((
    "HOME", "USER", "LOGNAME", "PATH", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV",
    "CUDA_VISIBLE_DEVICES", "HF_HOME", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "TORCH_HOME", "XDG_CACHE_HOME",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "ARGOSY_PROCESS",
))  # fmt: skip
_HARMLESS_STARTS = ("LC_", "PYTHON", "OMP_", "OPENBLAS_", "MKL_", "NUMEXPR_", "KMP_", "MALLOC_")


def drop_environment(**changes: str) -> None:
    """Take from this process's environment everything that is not known to be harmless, and set `changes`.

    Keys and tokens of the shell that started it are of no use to code of users, and libraries pick them up unasked.
    The mark of the launcher stays, so that what such code starts is found and ended with it.
    """
    for name in list(os.environ):
        if name not in _HARMLESS and not name.startswith(_HARMLESS_STARTS):
            _dropped[name] = os.environ.pop(name)
    os.environ.update(changes)


_dropped: dict[str, str] = {}


def own_environment() -> dict[str, str]:
    """Return the environment with what `drop_environment` took, for Argosy's own processes that open the store anew."""
    return {**_dropped, **os.environ}


def prefer_environment(**values: str) -> None:
    """Set variables of this process's environment for libraries that read them, as far as the user has not."""
    for name, value in values.items():
        os.environ.setdefault(name, value)


def read_toml(path: Path, kind: type[T]) -> T:
    """Read a TOML file into `kind`; a wrong file says where: ``Expected `float`, got `str` - at `$.train.lr` ``."""
    import tomllib

    try:
        text = path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"there is no '{path.name}' in '{path.parent}'", hint="make one with: argosy init") from error
    try:
        found = tomllib.loads(text.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"'{path}' is not TOML: {error}", path=str(path)) from error
    return from_plain(found, kind, where=str(path))


def from_plain(found: Any, kind: type[T], *, where: str) -> T:
    """Turn plain values into `kind`; InvalidInput says which field of `where` is wrong and why."""
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"'{where}' is wrong: {_wording(error, kind)}", where=where) from error


def _wording(error: msgspec.ValidationError, kind: Any) -> str:
    text = str(error)
    if "contains unknown field" not in text:
        return text
    section = text.partition("at `$")[2].rstrip("`").lstrip(".")
    known = _fields(kind, section)
    return f"{text}; known fields are: {', '.join(known)}" if known else text


def _fields(kind: Any, section: str) -> list[str]:
    for name in filter(None, section.split(".")):
        hints = {field.name: field.type for field in msgspec.structs.fields(kind)} if _is_struct(kind) else {}
        kind = next((k for k in (hints.get(name), *getattr(hints.get(name), "__args__", ())) if _is_struct(k)), None)
    return sorted(field.encode_name for field in msgspec.structs.fields(kind)) if _is_struct(kind) else []


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)
