"""`convert` with a model file, and `tools`."""

from pathlib import Path

from argosy.cli.output import Output
from argosy.core.errors import InvalidInput
from argosy.core.progress import Progress
from argosy.core.units import format_size
from argosy.formats.conversion import tools
from argosy.formats.conversion.convert import Request, plan
from argosy.formats.conversion.convert import convert as carry_out
from argosy.formats.conversion.placing import REPORT_SUFFIX
from argosy.formats.conversion.report import ConversionReport


def convert(
    model: str,
    out: Path | None,
    *,
    source_format: str,
    target_format: str,
    samples: Path | None,
    tolerance: float | None,
    inputs: list[str] | None,
    weights: Path | None,
    file: Path,
    changes: list[str] | None,
    as_json: bool,
) -> None:
    """Convert a file if there are a model and an output, or else run the project up to its stage of that name."""
    if not model:
        given = {"--from": source_format, "--to": target_format, "--samples": samples, "--tolerance": tolerance}
        named = [flag for flag, value in {**given, "--input": inputs, "--weights": weights}.items() if value]
        if named:
            raise InvalidInput(
                f"{' and '.join(named)} belong to a model file, and none was given",
                hint="argosy convert model.onnx model.xml",
            )
        from argosy.cli.verbs import run

        run.run(file, changes, until="convert", as_json=as_json)
        return
    if out is None:
        raise InvalidInput(
            f"'{model}' is to be converted, and it isn't said into what",
            hint=f"name the file to write: argosy convert {model} model.onnx",
        )
    request = Request(
        source=model,
        out=out,
        source_format=source_format,
        target_format=target_format,
        samples=samples,
        weights=weights,
        inputs=tuple(inputs or ()),
        tolerance=tolerance,
    )
    _convert(request, Output(as_json=as_json))


def _convert(request: Request, output: Output) -> None:
    asked = plan(request)
    for line in asked.lines():
        output.line(f"[bold]{line}[/]")

    def tell(news: Progress) -> None:
        place = f"{news.done + 1:.0f}/{news.total:.0f}" if news.unit else "   "
        output.line(f"[dim]{place}[/] {news.message}")

    found = carry_out(asked, tell)
    _show(found, request.out, output)
    output.result(found)


def _show(found: ConversionReport, out: Path, output: Output) -> None:
    for step in found.steps:
        parity = step.parity
        batches = ", ".join(map(str, parity.batch_sizes))
        output.line(
            f"[green]✓[/] {step.source} to {step.target}: off by at most {parity.max_rel:.2g} of the scale "
            f"({parity.tolerance:g} allowed), {parity.agreement:.0%} of {parity.samples} samples agree, "
            f"batches of {batches}"
        )
    for note in found.notes:
        output.line(f"[dim]note: {note}[/]")
    size = sum(file.stat().st_size for file in ([out] if out.is_file() else out.iterdir()))
    output.line(f"written: {out} ({format_size(size)}), {out.name.rstrip('/')}{REPORT_SUFFIX}")


def list_tools(*, as_json: bool) -> None:
    """Show every tool and where it is."""
    output = Output(as_json=as_json)
    found = [tools.locate(name) for name in tools.TOOLS]
    places = {"environment": "in this environment", "own": "in its own", "": "not installed"}
    output.table(("tool", "installed", "what it does"), [(one.name, places[one.where], one.about) for one in found])
    output.result({"tools": found})


def install_tool(name: str, *, as_json: bool) -> None:
    """Install a tool into its own environment."""
    output = Output(as_json=as_json)
    found = tools.install(name, say=output.line)
    output.line(f"[green]✓[/] {name} {Path(found.python).parent.parent}")
    output.result(found)
