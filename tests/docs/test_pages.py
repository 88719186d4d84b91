"""What pages say about the repository is so."""

import re
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest

from argosy.cli.project import Project

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = {path.relative_to(ROOT): path.read_text() for path in [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]}


def test_the_drawn_layers_are_those_that_the_linter_holds():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    held = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    drawing = re.search(r"```layers\n(.*?)```", (DOCS / "architecture.md").read_text(), re.DOTALL)[1]
    drawn = [line.split("│")[1].strip() for line in drawing.splitlines() if line.startswith("│")]
    assert drawn == held
    packages = {p.name for p in (ROOT / "src" / "argosy").iterdir() if (p / "__init__.py").exists()}
    assert packages == {name for line in drawn for name in re.findall(r"\w+", line)}


def test_every_decision_is_a_titled_page_with_what_was_refused_and_what_would_change_it():
    for page in (DOCS / "decisions").glob("[0-9]*.md"):
        text = page.read_text()
        assert re.match(rf"# {page.name[:4]} \S", text), f"{page.name} begins with its number and its subject"
        assert "```" in text, f"{page.name} shows an example of use"
        for word in ("refused", "change our mind"):
            assert word in text.lower(), f"{page.name} says nothing about: {word}"


@pytest.mark.parametrize("path", TEXTS, ids=str)
def test_every_project_file_shown_is_one_that_argosy_takes(path):
    for block in re.findall(r"```toml\n(.*?)```", TEXTS[path], re.DOTALL):
        found = tomllib.loads(re.sub(r"^ {4}", "", block, flags=re.MULTILINE))
        if not set(found) <= {f.name for f in msgspec.structs.fields(Project)} or "pyproject.toml" in block:
            continue  # another file
        msgspec.convert({"project": {"name": "shown"}, "data": {"train": "x.csv"}} | found, Project).check()


@pytest.mark.parametrize("path", TEXTS, ids=str)
def test_every_command_shown_exists_with_its_flags(path):
    import typer.main

    from argosy.cli.app import app

    for line in re.findall(r"(?:^|`)(argosy [^`\n#]+)", TEXTS[path], re.MULTILINE):
        words = line.split()[1:]
        command = typer.main.get_command(app)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        is_whole = not getattr(command, "commands", {}) or (not words and command.invoke_without_command)
        assert is_whole or words[:1] in (["--help"], ["<command>"]), line
        words = words[: words.index("--")] if "--" in words else words  # what follows is another command's
        known = {flag for p in command.params for flag in p.opts} | {"--help"}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, line


@pytest.mark.parametrize("path", TEXTS, ids=str)
def test_modules_and_folders_that_are_named_exist(path):
    for name in re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", TEXTS[path]):
        assert (ROOT / "src" / "argosy" / name).exists() or (ROOT / name).exists(), name


def test_the_first_example_of_the_python_page_runs(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    code = re.search(r"```python\n(.*?)```", (DOCS / "reference" / "python.md").read_text(), re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(compile(code, "python.md", "exec"), scope)
    assert (tmp_path / "why.png").stat().st_size > 1000
    assert scope["found"].values.sum() == pytest.approx(scope["found"].prediction - scope["found"].base)
    assert abs(scope["found"].values[2]) < 1e-9


def test_contributing_fits_one_screen():
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 45


@pytest.mark.slow
def test_the_manual_builds_strictly_and_fetches_nothing(tmp_path):
    import subprocess

    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        fetched = re.findall(
            r'<(?:script|img|iframe)[^>]*src="(https?:)?//|<link[^>]*href="https?://(?!squidfunk)', page.read_text()
        )
        assert not fetched, page.name
