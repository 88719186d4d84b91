"""From data to a version: `init` to `evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from argosy.cli.commands.options import AsJson, File, Set, group

commands = group()


@commands.command()
def init(
    data: Annotated[
        Path | None, typer.Argument(help="A data file to look at: CSV, Parquet, NPZ or image folder.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the project; default: this folder's.")] = "",
    label: Annotated[str, typer.Option(help="Column to predict; default: guessed.")] = "",
    as_json: AsJson = False,
) -> None:
    """Write an argosy.toml for the data you have."""
    from argosy.cli.verbs import run as verb

    verb.init(data, name=name, label=label, as_json=as_json)


@commands.command()
def plan(
    file: File = Path(),
    changes: Set = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Train some steps to find out how long it will take; prepares the data.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a run would do, why, and how long it will take. Without --measure it changes nothing."""
    from argosy.cli.verbs import plan as verb

    verb.plan(file, changes, measure=measure, as_json=as_json)


@commands.command()
def run(
    file: File = Path(),
    changes: Set = None,
    until: Annotated[str, typer.Option(help="Stop after this stage.")] = "publish",
    deploy: Annotated[
        bool, typer.Option("--deploy", help="Release the version if it passed its gates, by [rollout].")
    ] = False,
    queue: Annotated[bool, typer.Option("--queue", help="Put it in line as a job instead of running it here.")] = False,
    as_json: AsJson = False,
) -> None:
    """Do every stage that is not done yet, up to a signed version. Run it again to resume."""
    if queue:
        from argosy.cli.verbs import jobs as queue_verb

        words = ["run", *(["--file", str(file)] if file != Path() else []), *(["--deploy"] if deploy else [])]
        words += [word for change in changes or [] for word in ("--set", change)]
        words += ["--until", until] if until != "publish" else []
        queue_verb.submit(words, queue_verb.Stated(), as_json=as_json)
        return
    from argosy.cli.verbs import run as verb

    verb.run(file, changes, until=until, deploy=deploy, as_json=as_json)


@commands.command()
def train(
    project: Annotated[Path, typer.Argument(help="The project file, or the folder it is in.")] = Path(),
    file: File = Path(),
    strategy: Annotated[str, typer.Option(help="How workers train together, such as data-parallel.")] = "",
    workers: Annotated[int, typer.Option(help="Processes of a machine that train together, 0: as [train] says.")] = 0,
    hosts: Annotated[int, typer.Option(help="Machines that train together; run this on each of them.")] = 1,
    host: Annotated[int, typer.Option(help="Which of them this is, from 0.")] = 0,
    at: Annotated[str, typer.Option(help="Address of the first machine, such as 10.0.0.1:29400.")] = "",
    changes: Set = None,
    save: Annotated[
        Path | None, typer.Option(help="Folder for weights and report; default: below ARGOSY_HOME.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run up to the trained weights and a report of the training."""
    from argosy.cli.verbs import train as verb

    folder = file if project == Path() else project
    place = verb.Place(hosts, host, at)
    verb.train(folder, changes, strategy=strategy, workers=workers, place=place, save=save, as_json=as_json)


@commands.command()
def convert(
    model: Annotated[
        str,
        typer.Argument(
            help="A model: file.py:function for a PyTorch module, a Hugging Face or SavedModel folder, .onnx, .pt, "
            ".pt2, .keras, .h5, .joblib, .pkl; default: the project's."
        ),
    ] = "",
    out: Annotated[Path | None, typer.Argument(help="The file or folder to write.")] = None,
    source_format: Annotated[str, typer.Option("--from", help="Format of the model; default: as it looks.")] = "",
    target_format: Annotated[str, typer.Option("--to", help="Format to write; default: by the name of OUT.")] = "",
    samples: Annotated[
        Path | None, typer.Option("--samples", help="Real inputs to compare on, .npz; default: generated.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option("--tolerance", help="Largest difference, of an output's scale; default: by datatype."),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help="What the model takes, if it doesn't say: x:batch,3,224,224:float32; repeatable."),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="Weights of a PyTorch module, .safetensors.")
    ] = None,
    file: File = Path(),
    changes: Set = None,
    as_json: AsJson = False,
) -> None:
    """Convert a model file and prove it; without one, run the project up to its ONNX model with the parity report."""
    from argosy.cli.verbs import convert as verb

    verb.convert(
        model,
        out,
        source_format=source_format,
        target_format=target_format,
        samples=samples,
        tolerance=tolerance,
        inputs=inputs,
        weights=weights,
        file=file,
        changes=changes,
        as_json=as_json,
    )


@commands.command()
def compress(
    model: Annotated[
        str, typer.Argument(help="A version, or an ONNX file or Hugging Face folder; default: the project's.")
    ] = "",
    data: Annotated[str, typer.Option("--data", help="File or folder to judge by; default: that of its run.")] = "",
    label: Annotated[str, typer.Option("--label", help="Column of the answers; default: the usual names.")] = "",
    size: Annotated[str, typer.Option("--size", help="Largest file, such as 1MB.")] = "",
    latency_p95: Annotated[str, typer.Option("--latency-p95", help="Largest time for one sample, such as 2ms.")] = "",
    max_drop: Annotated[str, typer.Option("--max-drop", help="Largest loss, such as 1pt of accuracy.")] = "1pt",
    passes: Annotated[
        list[str] | None,
        typer.Option("--pass", help="Apply this instead of searching, such as slim:ratio=0.5; repeatable, in order."),
    ] = None,
    only: Annotated[str, typer.Option("--passes", help="What the search may try: slim,quantize; default: all.")] = "",
    epochs: Annotated[int, typer.Option("--epochs", help="Of each fine-tuning; 0: by the time they take.")] = 0,
    time_limit: Annotated[str, typer.Option("--time-limit", help="After this the best so far is taken: 15min.")] = "",
    seed: Annotated[int, typer.Option("--seed", help="Of samples and fine-tuning.")] = 0,
    name: Annotated[str, typer.Option("--name", help="Name of the version made of a file; default: the file's.")] = "",
    save: Annotated[Path | None, typer.Option("--save", help="Folder for the model, its report and picture.")] = None,
    file: File = Path(),
    changes: Set = None,
    as_json: AsJson = False,
) -> None:
    """Find the smallest or fastest model that keeps a budget; without one, run the project up to its [compress]."""
    if not model:
        from argosy.cli.verbs import run

        run.run(file, changes, until="compress", as_json=as_json)
        return
    from argosy.cli.verbs import compress as verb
    from argosy.compress.config import PASS_NAMES, CompressConfig

    verb.compress(
        model,
        config=CompressConfig(
            size=size,
            latency_p95=latency_p95,
            max_drop=max_drop,
            passes=[word.strip() for word in only.split(",") if word.strip()] or list(PASS_NAMES),
            epochs=epochs,
            time_limit=time_limit,
            seed=seed,
        ),
        data=data,
        label=label,
        passes=passes or [],
        save=save,
        name=name,
        as_json=as_json,
    )


@commands.command()
def evaluate(file: File = Path(), changes: Set = None, as_json: AsJson = False) -> None:
    """Run up to the evaluation on the test part and its gates."""
    from argosy.cli.verbs import run as verb

    verb.run(file, changes, until="evaluate", as_json=as_json)
