# noqa: INP001 - loaded by path from mkdocs.yml, part of no package
"""Writes the reference pages from the code itself, so that they can't say anything else.

mkdocs calls `on_config` and `on_page_markdown`; a page asks for a part with a line `<!-- generated: settings -->`.
"""

import ast
import importlib
import inspect
import json
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

SOURCE = Path(__file__).parents[2] / "src" / "argosy"
DOCS = Path(__file__).parents[1]
_MARK = re.compile(r"^<!-- generated: ([a-z-]+) -->$", re.MULTILINE)


def on_config(config: Any) -> Any:
    """Put every page of `decisions/` into the navigation."""
    pages = sorted(p.name for p in (DOCS / "decisions").glob("[0-9]*.md"))
    for entry in config["nav"]:
        if isinstance(entry, dict) and "Decisions" in entry:
            entry["Decisions"] = ["decisions/README.md", *[f"decisions/{name}" for name in pages]]
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each mark by what is generated for it."""
    return _MARK.sub(lambda found: GENERATED[found[1]](), markdown)


# --- settings -------------------------------------------------------------------------------------------------------


def settings() -> str:
    """Every section of `argosy.toml` with its fields."""
    from argosy.cli.project import Project

    parts = []
    for name, kind in sections(Project).items():
        parts += [f"## `[{name}]` {{ #{name.replace('.', '-')} }}", _first_paragraphs(kind), _fields_table(kind)]
    return "\n\n".join(parts)


def sections(kind: type[msgspec.Struct], prefix: str = "") -> dict[str, type[msgspec.Struct]]:
    """Return the structs nested in `kind` by the name of their section, `rollout.tolerate` after `rollout`."""
    found: dict[str, type[msgspec.Struct]] = {}
    for name, hint in typing.get_type_hints(kind).items():
        nested = _struct_in(hint)
        if nested is not None and name in {f.name for f in msgspec.structs.fields(kind)}:
            found[prefix + name] = nested
            found |= sections(nested, f"{prefix}{name}.")
    return found


def families() -> str:
    """The options of the built-in model families."""
    from argosy.train.families import FAMILIES, load_family
    from argosy.train.pretrained import PretrainedOptions

    kinds = [*(load_family(name).options for name in FAMILIES), PretrainedOptions]
    return "\n\n".join(part for kind in kinds for part in (_first_paragraphs(kind), _fields_table(kind)))


def machine() -> str:
    """The settings of a machine, which come from the environment."""
    from argosy.core import config

    variables = dict(re.findall(r'take\("(\w+)", "(\w+)"', inspect.getsource(config.load_settings)))
    rows = [
        (f"`{name}`", f"`{variables[name]}`", _cell(text))
        for name, text in field_docs(config.Settings).items()
        if name in variables
    ]
    return _table(("setting", "variable", "meaning"), rows)


def explaining() -> str:
    """The fields of `ExplainConfig`."""
    from argosy.explain.config import ExplainConfig

    return _fields_table(ExplainConfig)


def _struct_in(hint: Any) -> type[msgspec.Struct] | None:
    is_of_several = isinstance(hint, types.UnionType) or typing.get_origin(hint) is dict
    options = typing.get_args(hint) if is_of_several else (hint,)
    return next((k for k in options if isinstance(k, type) and issubclass(k, msgspec.Struct)), None)


def _fields_table(kind: type[msgspec.Struct]) -> str:
    docs = field_docs(kind)
    hints = _annotations(kind)
    rows = [
        (f"`{f.name}`", f"`{hints[f.name]}`", _default(f), _cell(docs[f.name]))
        for f in msgspec.structs.fields(kind)
        if _struct_in(f.type) is None
    ]
    return _table(("field", "type", "default", "meaning"), rows)


def _default(field: Any) -> str:
    if field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    elif field.default is not msgspec.NODEFAULT:
        value = field.default
    else:
        return "required"
    return "none" if value is None else f"`{json.dumps(msgspec.to_builtins(value))}`"


def field_docs(kind: type[msgspec.Struct]) -> dict[str, str]:
    """Return the docstring below each field, those of parent classes too."""
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        if not owner.__module__.startswith("argosy"):
            continue
        body = _class_body(owner)
        for node, following in zip(body, [*body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found[node.target.id] = _text_of(following)
    return found


def _text_of(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return inspect.cleandoc(node.value.value)
    return ""


def _annotations(kind: type[msgspec.Struct]) -> dict[str, str]:
    return {
        node.target.id: ast.unparse(node.annotation).replace("'", '"')
        for owner in reversed(kind.__mro__)
        if owner.__module__.startswith("argosy")
        for node in _class_body(owner)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def _class_body(owner: type) -> list[ast.stmt]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    found = tree.body[0]
    return found.body if isinstance(found, ast.ClassDef) else []


# --- metrics, errors, plugin tables ---------------------------------------------------------------------------------


def metrics() -> str:
    """The table of everything that is counted, with the process that shows it."""
    from argosy.core.metrics import METRICS

    rows = [
        (f"`{name}`", m.kind, ", ".join(f"`{label}`" for label in m.labels) or "-", m.part, _cell(m.help))
        for name, m in METRICS.items()
    ]
    return _table(("metric", "kind", "labels", "shown by", "meaning"), rows)


def errors() -> str:
    """The classes of errors, then every code with its wording."""
    from argosy.serve import http

    kinds, exact = http._STATUS_OF_KIND, http._STATUS_OF_CODE  # noqa: SLF001 - its table is what is documented
    classes = [
        (
            f"`{k.__name__}`",
            f"`{k.code}`",
            str(k.exit_code),
            str(kinds.get(k.code, "")),
            "yes" if k.retryable else "no",
            _cell(_first_line(k)),
        )
        for k in error_classes()
    ]
    codes = [
        (f"`{code}`", f"`{kind}`", str(exact.get(code, "")), "<br>".join(sorted(set(texts))))
        for (code, kind), texts in special_codes().items()
    ]
    return "\n\n".join(
        (
            "## Classes",
            "The class says what the caller can do. Its code is used where nothing more exact is said.",
            _table(("class", "code", "exit code", "HTTP", "retry", "meaning"), classes),
            "## Special codes",
            "Programs can tell these apart. `…` stands for names and values. Without a status of its own: the class's.",
            _table(("code", "class", "HTTP", "message"), codes),
        )
    )


def error_classes() -> list[Any]:
    """Return every class of error the code has, a class before the ones derived from it."""
    from argosy.core import errors as tree

    known = [tree.ArgosyError, *tree.ArgosyError.__subclasses__()]
    for module in _modules_that_say(rf"^class \w+\(({'|'.join(k.__name__ for k in known)})\)"):
        importlib.import_module(module)
    found, waiting = [], [tree.ArgosyError]
    while waiting:
        below = [k for k in waiting.pop(0).__subclasses__() if k.__module__.startswith("argosy")]
        found += below
        waiting += below
    return found


def special_codes() -> dict[tuple[str, str], list[str]]:
    """Return (code, class) with the messages it is raised with, for codes given where an error is raised."""
    known = {k.__name__ for k in error_classes()}
    found: dict[tuple[str, str], list[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and (name := _error_name(node.func)) in known:
                for keyword in node.keywords:
                    if keyword.arg == "code" and isinstance(keyword.value, ast.Constant):
                        said = _cell(_template(node.args[0])) if node.args else ""
                        found.setdefault((keyword.value.value, name), []).append(said)
    return dict(sorted(found.items()))


def _error_name(node: ast.expr) -> str:
    """Return the class of error a call makes; what conversions refuse in child processes arrives as InvalidInput."""
    if isinstance(node, ast.Name):
        return node.id
    return "InvalidInput" if ast.unparse(node) == "argosy_child.Refused" else ""


def _template(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return _template(node.left) + _template(node.right)
    return "…"


def http() -> str:
    """What the gateway answers to, in the words of its module."""
    from argosy.serve import http as module

    paths, _, rest = inspect.cleandoc(module.__doc__ or "").partition("\n\n")[2].partition("\n\n")
    listed = re.sub(r" +\(serve/\w+\.py\)", "", textwrap.dedent(paths))
    return f"```text\n{listed}\n```\n\n{rest}"


def plugins() -> str:
    """The tables of extension points."""
    rows = [
        (f"`{table.group}`", ", ".join(f"`{name}`" for name in builtin_names(table)), f"`{where}`")
        for where, table in plugin_tables().items()
    ]
    return _table(("entry-point group", "built in", "table"), rows)


def plugin_tables() -> dict[str, Any]:
    """Return every module-level `Plugins` object as `module:name`."""
    from argosy.core.plugins import Plugins

    return {
        f"{module}:{name}": value
        for module in _modules_that_say(r"^[A-Z_]+(: .*)? = Plugins\b")
        for name, value in sorted(vars(importlib.import_module(module)).items())
        if isinstance(value, Plugins)
    }


def builtin_names(table: Any) -> list[str]:
    """Return the names a table has without any plugin installed."""
    return sorted(table._builtin)  # noqa: SLF001 - `names()` would also list what this machine has installed


def _modules_that_say(pattern: str) -> Iterator[str]:
    for path in sorted(SOURCE.rglob("*.py")):
        if re.search(pattern, path.read_text(), re.MULTILINE):
            parts = ("argosy", *path.relative_to(SOURCE).with_suffix("").parts)
            yield ".".join(part for part in parts if part != "__init__")


def decisions() -> str:
    """The pages of `decisions/` by their titles."""
    found = sorted((DOCS / "decisions").glob("[0-9]*.md"))
    return "\n".join(f"- [{page.read_text().partition(chr(10))[0].lstrip('# ')}]({page.name})" for page in found)


# --- commands -------------------------------------------------------------------------------------------------------


def commands() -> str:
    """Every command with its arguments and flags."""
    parts = []
    for name, command in command_tree().items():
        usage = " ".join([name, *_usage(command)])
        parts += [f"## `{name}` {{ #{name.replace(' ', '-')} }}", _help(command), f"```sh\n{usage}\n```"]
        rows = [(_parameter(p), _cell(str(p.help or "")), _given(p)) for p in command.params if p.name != "help"]
        if rows:
            parts.append(_table(("", "meaning", "default"), rows))
    return "\n\n".join(parts)


def command_tree() -> dict[str, Any]:
    """Return every command that does something, by its full name."""
    import typer.main

    from argosy.cli.app import app

    def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        inner: Mapping[str, Any] = getattr(command, "commands", {})
        if not inner:
            yield name, command
        for part, one in inner.items():
            yield from walk(f"{name} {part}", one)

    return dict(walk("argosy", typer.main.get_command(app)))


def flags(command: Any) -> list[str]:
    """Return the flags of a command as they are typed."""
    return [flag for p in command.params if p.param_type_name == "option" for flag in p.opts]


def _usage(command: Any) -> Iterator[str]:
    for p in command.params:
        if p.param_type_name == "argument":
            yield f"<{p.name}>" if p.required else f"[{p.name}]"
    if flags(command):
        yield "[flags]"


def _help(command: Any) -> str:
    return inspect.cleandoc(str(command.help or ""))


def _parameter(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.name}`"
    return ", ".join(f"`{flag}`" for flag in parameter.opts)


def _given(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    return "" if value in (None, "", False) else f"`{value}`"


# --- Markdown -------------------------------------------------------------------------------------------------------


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _first_line(kind: type) -> str:
    return inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0]


def _first_paragraphs(kind: type) -> str:
    return inspect.cleandoc(kind.__doc__ or "")


GENERATED: dict[str, Callable[[], str]] = {
    "settings": settings,
    "families": families,
    "machine": machine,
    "explaining": explaining,
    "metrics": metrics,
    "errors": errors,
    "http": http,
    "plugins": plugins,
    "commands": commands,
    "decisions": decisions,
}
