"""The reference pages hold everything the code has: settings, metrics, error codes, plugin tables, commands, flags."""

import importlib.util
import re
import typing
from pathlib import Path

import msgspec
import pytest

from argosy.cli.project import Project
from argosy.core.config import Settings
from argosy.core.errors import ArgosyError
from argosy.core.metrics import METRICS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SOURCE = ROOT / "src" / "argosy"


def load_hook():
    spec = importlib.util.spec_from_file_location("reference_hook", DOCS / "hooks" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOK = load_hook()


@pytest.fixture(scope="module")
def page():
    """Return a reference page as readers see it."""
    made = {}

    def read(name):
        if name not in made:
            made[name] = HOOK.on_page_markdown((DOCS / "reference" / f"{name}.md").read_text())
        return made[name]

    return read


def rows(markdown):
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in markdown.splitlines() if line[:3] == "| `"
    ]


def sources():
    return [(path, path.read_text()) for path in sorted(SOURCE.rglob("*.py"))]


def structs_below(kind, prefix):
    """Walk the sections by another way than the hook does: over what msgspec knows."""
    for field in msgspec.structs.fields(kind):
        options = [field.type, *typing.get_args(field.type)]
        nested = [k for k in options if isinstance(k, type) and issubclass(k, msgspec.Struct)]
        if nested:
            yield from structs_below(nested[0], (*prefix, field.name))
        else:
            yield prefix, field


def test_every_setting_of_the_file_stands_in_its_section_with_a_meaning(page):
    parts = re.split(r"^## `\[([a-z.]+)\]`.*$", page("settings"), flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    for section, field in structs_below(Project, ()):
        table = {row[0]: row for row in rows(found[".".join(section)].partition("\n## ")[0])}
        row = table[f"`{field.name}`"]
        assert len(row[-1].rstrip(" |")) > 5, f"[{'.'.join(section)}] {field.name} has no docstring"


def test_every_setting_of_a_machine_stands_there_with_its_variable(page):
    machine = page("settings").partition("## This machine")[2]
    for field in msgspec.structs.fields(Settings):
        if field.name != "sources":
            assert f"`{field.name}`" in machine
    for variable in set(re.findall(r'"(ARGOSY_[A-Z_]+)"', (SOURCE / "core" / "config.py").read_text())):
        # The mark by which the launcher finds processes again is nobody's setting.
        assert variable in machine or variable == "ARGOSY_PROCESS", variable


def test_every_metric_stands_there_with_its_labels(page):
    table = {row[0]: row for row in rows(page("metrics"))}
    assert set(table) == {f"`{name}`" for name in METRICS}
    for name, metric in METRICS.items():
        assert table[f"`{name}`"][1] == metric.kind
        assert all(f"`{label}`" in table[f"`{name}`"][2] for label in metric.labels)


def test_every_error_class_and_code_stands_there(page):
    errors = page("errors")
    kinds, waiting = [], [ArgosyError]
    while waiting:
        below = [k for k in waiting.pop().__subclasses__() if k.__module__.startswith("argosy")]
        kinds += below
        waiting += below
    for kind in kinds:
        assert f"| `{kind.__name__}` | `{kind.code}` | {kind.exit_code} |" in errors
    # by plain search in the source, so that a code the hook can't see is noticed
    for path, text in sources():
        for code in re.findall(r'(?:\bcode=|^ {4}code = )"([a-z_]+)"', text, re.MULTILINE):
            if code == ArgosyError.code:  # the root of the tree, never raised itself
                continue
            assert f"| `{code}` |" in errors, f"{code} of {path.name}"


def test_every_plugin_table_and_built_in_name_stands_there(page):
    table = {row[0]: row[1] for row in rows(page("plugins"))}
    groups = {g for _, text in sources() for g in re.findall(r'"(argosy\.[a-z]+)",?\s*\{', text)}
    assert groups - {"argosy.examples"} == {group.strip("`") for group in table}
    for where in HOOK.plugin_tables().values():
        assert all(f"`{name}`" in table[f"`{where.group}`"] for name in HOOK.builtin_names(where))


def test_every_command_and_flag_stands_there(page):
    commands = page("commands")
    parts = re.split(r"^## `(argosy [a-z ]+)`.*$", commands, flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    # the functions of the commands, by name and by what they say they take
    app = "".join(path.read_text() for path in sorted((SOURCE / "cli" / "commands").glob("*.py")))
    declared = re.findall(r'^@([a-z]+)\.command\((?:"([a-z-]+)"[^\n]*)?\)\ndef (\w+)\(', app, re.MULTILINE)
    names = {
        " ".join(filter(None, ("argosy", "" if on == "commands" else on, name or word))) for on, name, word in declared
    }
    assert set(found) == names
    for flag in re.findall(r'"(--[a-z-]+)"', app):
        assert flag in ("--version", "--help") or f"`{flag}`" in commands, flag


# A new flag is a decision: add it here, and to nothing else.
FLAGS = {
    "--with",
    "--requires",
    "--json",
    "--file",
    "-f",
    "--save",
    "--seconds",
    "--set",
    "--name",
    "--label",
    "--until",
    "--strategy",
    "--measure",
    "--hosts",
    "--at",
    "--link",
    "--workers",
    "--replicas",
    "--port",
    "--prepare",
    "--now",
    "--detach",
    "--once",
    "--last",
    "--url",
    "--timeout",
    "--host",
    "--fronts",
    "--grpc-port",
    "--tls",
    "--tls-cert",
    "--tls-key",
    "--allow-host",
    "--endpoint",
    "--weight",
    "--expires",
    "--every",
    "--from",
    "--to",
    "--samples",
    "--data",
    "--size",
    "--latency-p95",
    "--max-drop",
    "--pass",
    "--passes",
    "--epochs",
    "--time-limit",
    "--seed",
    "--tolerance",
    "--input",
    "--weights",
    "--read-only",
    "--browser",
    "--queue",
    "--deploy",
    "--cpus",
    "--memory",
    "--gpus",
    "--estimate",
    "--priority",
    "--follow",
    "--reason",
}


def test_the_list_of_flags_is_the_one_that_was_decided():
    found = {flag for command in HOOK.command_tree().values() for flag in HOOK.flags(command)}
    assert found - {"--help", "-h"} == FLAGS


def test_every_kind_of_log_entry_is_explained():
    page_text = (DOCS / "how-to" / "read-the-audit-log.md").read_text()
    subjects = "log|key|run|stage|version|alias|endpoint|gateway|rollout|controller|access|alert|job|update"
    kinds = {kind for _, text in sources() for kind in re.findall(rf'"((?:{subjects})\.[a-z]+(?:ed|bound))"', text)}
    assert "version.published" in kinds
    assert {kind for kind in kinds if f"`{kind}`" not in page_text} == set()
