"""The command `argosy`: names, flags and their help. What a command does stands in `cli/verbs/`.

Nothing heavy is imported here: `argosy --help` has to be instant.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from argosy.core.errors import ArgosyError, Internal
from argosy.core.version import __version__

app = typer.Typer(
    name="argosy",
    help="A large model from data to a running, watched, reversible service, from one file.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
models = typer.Typer(help="Versions: list, show, history.", no_args_is_help=True, rich_markup_mode=None)
audit = typer.Typer(help="The tamper-evident log: verify it, read it.", no_args_is_help=True, rich_markup_mode=None)
keys = typer.Typer(help="Signing keys of this machine and keys it trusts.", no_args_is_help=True, rich_markup_mode=None)
config = typer.Typer(help="Settings and where each came from.", no_args_is_help=True, rich_markup_mode=None)
endpoints = typer.Typer(help="Served names.", no_args_is_help=True, rich_markup_mode=None)
gateway = typer.Typer(help="Where callers reach it, TLS, and names.", no_args_is_help=True, rich_markup_mode=None)
advise = typer.Typer(help="What to do, with the numbers it follows from.", no_args_is_help=True, rich_markup_mode=None)
tools = typer.Typer(
    help="Tools of other frameworks, each in an environment of its own.", no_args_is_help=True, rich_markup_mode=None
)
monitor = typer.Typer(
    help="Prometheus and Alertmanager beside Argosy: run them, see them, their files.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
jobs = typer.Typer(
    help="Runs that wait for room on this machine; alone: list them.",
    invoke_without_command=True,
    rich_markup_mode=None,
)
access = typer.Typer(help="Keys for callers: grant, list, revoke.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(models, name="models")
app.add_typer(audit, name="audit")
app.add_typer(keys, name="keys")
app.add_typer(config, name="config")
app.add_typer(endpoints, name="endpoints")
app.add_typer(gateway, name="gateway")
app.add_typer(access, name="access")
app.add_typer(monitor, name="monitor")
app.add_typer(jobs, name="jobs")
app.add_typer(advise, name="advise")
app.add_typer(tools, name="tools")

AsJson = Annotated[bool, typer.Option("--json", help="Write one JSON document instead of text.")]
File = Annotated[Path, typer.Option("--file", "-f", help="The project file, or the folder it is in.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="section.field=value, wins over the file; repeatable.")]

With = Annotated[
    list[Path] | None,
    typer.Option("--with", help="A file or folder that the Python file needs beside it; repeatable."),
]
Requires = Annotated[
    list[str] | None,
    typer.Option("--requires", help="A package the Python file needs, as for pip: 'nltk>=3.9'; repeatable."),
]
Cpus = Annotated[int, typer.Option("--cpus", help="Cores it keeps to; 0: all, so that jobs run one by one.")]
Memory = Annotated[
    str, typer.Option("--memory", help="Memory it is counted with, such as 2GB; default: as last time, or as planned.")
]
Gpus = Annotated[int, typer.Option("--gpus", help="GPUs it needs.")]
Takes = Annotated[
    str, typer.Option("--estimate", help="How long it will take, such as 10min; default: as last time, or as planned.")
]
Priority = Annotated[int, typer.Option("--priority", help="From -10 to 10; the higher goes first.")]
JobId = Annotated[str, typer.Argument(help="As `argosy jobs` lists it, such as j12.")]

Prepare = Annotated[
    Path | None,
    typer.Option("--prepare", help="A TOML file that says how images or texts become the ONNX file's input."),
]


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"argosy {__version__}")
        raise typer.Exit


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
def evaluate(file: File = Path(), changes: Set = None, as_json: AsJson = False) -> None:
    """Run up to the evaluation on the test part and its gates."""
    from argosy.cli.verbs import run as verb

    verb.run(file, changes, until="evaluate", as_json=as_json)


@app.command()
def deploy(
    what: Annotated[
        str,
        typer.Argument(
            help="A version (digits:3), a name, an ONNX file, a Hugging Face folder, or a Python file "
            "(model.py:Class); default: the project's newest."
        ),
    ] = "",
    name: Annotated[str, typer.Option(help="Name of the endpoint; default: the model's.")] = "",
    extra: With = None,
    requires: Requires = None,
    prepare: Prepare = None,
    file: File = Path(),
    changes: Set = None,
    replicas: Annotated[int, typer.Option(help="Replicas, 0: as [endpoint] says.")] = 0,
    port: Annotated[int, typer.Option(help="Port of the gateway, 0: any free one; default 8700.")] = -1,
    grpc_port: Annotated[
        int | None,
        typer.Option("--grpc-port", help="Port of gRPC, 0: any free one, -1: off; default the one after --port."),
    ] = None,
    now: Annotated[
        bool, typer.Option("--now", help="Skip the canary: switch over as soon as the version is ready.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Don't follow the rollout to its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Serve a version; a canary if the file has a [rollout] section."""
    from argosy.cli.verbs import deploy as verb

    verb.deploy(
        what,
        name=name,
        file=file,
        changes=changes,
        replicas=replicas,
        port=port,
        grpc_port=grpc_port,
        now=now,
        detach=detach,
        extra=extra,
        requires=requires,
        prepare=prepare,
        as_json=as_json,
    )


@app.command()
def watch(
    endpoint: Annotated[str, typer.Argument(help="Name of the endpoint; default: all.")] = "",
    once: Annotated[bool, typer.Option("--once", help="Show the state and exit.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show endpoints, replicas and rollouts live; ends when the rollout does."""
    from argosy.cli.verbs import watch as verb

    verb.watch(endpoint, once=once, as_json=as_json)


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port of the page, 0: any free one.")] = 8710,
    read_only: Annotated[bool, typer.Option("--read-only", help="Offer nothing that changes anything.")] = False,
    browser: Annotated[bool, typer.Option(help="Open it in a browser, where there is a desktop.")] = True,
) -> None:
    """Show the same in the browser, live, and act from there; on this machine only."""
    from argosy.cli.verbs import ui as verb

    verb.ui(port, read_only=read_only, browser=browser)


@app.command()
def rollback(
    endpoint: Annotated[str, typer.Argument(help="Name of the endpoint.")],
    as_json: AsJson = False,
) -> None:
    """Put the former version back, or stop the rollout that runs."""
    from argosy.cli.verbs import deploy as verb

    verb.rollback(endpoint, as_json=as_json)


@app.command()
def promote(
    endpoint: Annotated[str, typer.Argument(help="Name of the endpoint.")],
    as_json: AsJson = False,
) -> None:
    """Promote the rollout that runs now, whatever the evidence says."""
    from argosy.cli.verbs import deploy as verb

    verb.promote(endpoint, as_json=as_json)


@app.command()
def abort(
    endpoint: Annotated[str, typer.Argument(help="Name of the endpoint.")],
    as_json: AsJson = False,
) -> None:
    """End the rollout that runs; the endpoint stays with what it serves."""
    from argosy.cli.verbs import deploy as verb

    verb.abort(endpoint, as_json=as_json)


@app.command()
def pause(
    endpoint: Annotated[str, typer.Argument(help="Name of the endpoint.")],
    as_json: AsJson = False,
) -> None:
    """Hold the rollout that runs at its share; it is still judged and may be rolled back, its time limits wait."""
    from argosy.cli.verbs import deploy as verb

    verb.pause(endpoint, as_json=as_json)


@app.command()
def resume(
    endpoint: Annotated[str, typer.Argument(help="Name of the endpoint.")],
    as_json: AsJson = False,
) -> None:
    """Let a paused rollout go on."""
    from argosy.cli.verbs import deploy as verb

    verb.resume(endpoint, as_json=as_json)


@app.command()
def predict(
    endpoint: Annotated[str, typer.Argument(help="Name of the endpoint.")],
    inputs: Annotated[
        str,
        typer.Argument(help="JSON, a sentence, a file (data.json, @photo.jpg, @text.txt), or - for standard input."),
    ] = "-",
    url: Annotated[str, typer.Option(help="Address of the gateway; default: this machine's.")] = "",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer, further attempts included.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Ask an endpoint for a prediction."""
    from argosy.cli.verbs import predict as verb

    verb.predict(endpoint, inputs, url=url, timeout_s=timeout, as_json=as_json)


@app.command()
def explain(
    version: Annotated[str, typer.Argument(help="For example digits:3, or digits for the newest.")],
    inputs: Annotated[str, typer.Argument(help="One row: JSON text, a JSON file, or - for standard input.")] = "-",
    seconds: Annotated[float, typer.Option(help="Time it may take.")] = 5.0,
    save: Annotated[Path | None, typer.Option(help="Draw it to this .png or .svg file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show which parts of an input made a version answer as it does (Shapley values)."""
    from argosy.cli.verbs import explain as verb

    verb.explain(version, inputs, seconds=seconds, save=save, as_json=as_json)


@app.command()
def why(
    what: Annotated[
        str, typer.Argument(help="A prediction's id, a version (digits:3), a rollout's id (r12), or an endpoint.")
    ],
    save: Annotated[Path | None, typer.Option(help="Draw a rollout's evidence over time to this .svg file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Trace a prediction or version back to its evaluation, run, code and data; judge a rollout's evidence again."""
    from argosy.cli.verbs import why as verb

    verb.why(what, save=save, as_json=as_json)


@app.command()
def up(as_json: AsJson = False) -> None:
    """Bring back what was deployed from this ARGOSY_HOME, and start its controller if it is not running."""
    from argosy.cli.verbs import deploy as verb

    verb.up(as_json=as_json)


@app.command()
def down(as_json: AsJson = False) -> None:
    """Stop every process of this ARGOSY_HOME. What was deployed is remembered for `argosy up`."""
    from argosy.cli.verbs import deploy as verb

    verb.down(as_json=as_json)


@models.command("list")
def models_list(
    name: Annotated[str, typer.Argument(help="Name of the model; default: all.")] = "", as_json: AsJson = False
) -> None:
    """List versions with their gates, size and role."""
    from argosy.cli.verbs import models as verb

    verb.list_versions(name, as_json=as_json)


@models.command("show")
def models_show(version: Annotated[str, typer.Argument(help="For example digits:3.")], as_json: AsJson = False) -> None:
    """Show one version, its signature checked."""
    from argosy.cli.verbs import models as verb

    verb.show(version, as_json=as_json)


@models.command("import")
def models_import(
    what: Annotated[
        str, typer.Argument(help="An ONNX file, a Hugging Face folder, or a Python file (model.py:Class).")
    ],
    name: Annotated[str, typer.Option(help="Name of the model; default: the file's.")] = "",
    extra: With = None,
    requires: Requires = None,
    prepare: Prepare = None,
    as_json: AsJson = False,
) -> None:
    """Publish a file or folder as a signed version, without serving it."""
    from argosy.cli.verbs import import_model as verb

    verb.publish(what, name=name, prepare=prepare, extra=extra or (), requires=requires or (), as_json=as_json)


@models.command("report")
def models_report(
    version: Annotated[str, typer.Argument(help="For example digits:3.")],
    save: Annotated[Path | None, typer.Option(help="Folder to write the pictures and reports to.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show how a version was compressed: every candidate; with --save, also how it was trained, with pictures."""
    from argosy.cli.verbs import models as verb

    verb.report(version, save, as_json=as_json)


@models.command("history")
def models_history(
    name: Annotated[str, typer.Argument(help="Name of the model or endpoint.")], as_json: AsJson = False
) -> None:
    """What served when, and who moved it."""
    from argosy.cli.verbs import models as verb

    verb.history(name, as_json=as_json)


@audit.command("verify")
def audit_verify(as_json: AsJson = False) -> None:
    """Check every entry, its place and its signature; name the first bad one."""
    from argosy.cli.verbs import audit as verb

    verb.verify(as_json=as_json)


@audit.command("show")
def audit_show(
    last: Annotated[int, typer.Option(help="How many of the newest entries.")] = 20, as_json: AsJson = False
) -> None:
    """Show the newest entries of the log."""
    from argosy.cli.verbs import audit as verb

    verb.show(last=last, as_json=as_json)


@keys.command("show")
def keys_show(as_json: AsJson = False) -> None:
    """Show this machine's key and the keys it trusts."""
    from argosy.cli.verbs import audit as verb

    verb.keys(as_json=as_json)


@keys.command("trust")
def keys_trust(
    public_key: Annotated[str, typer.Argument(help="As `argosy keys show` prints it on the other machine.")],
    as_json: AsJson = False,
) -> None:
    """Admit another machine's key: what it signs is believed from now on."""
    from argosy.cli.verbs import audit as verb

    verb.trust(public_key, as_json=as_json)


@config.command("show")
def config_show(as_json: AsJson = False) -> None:
    """Show every setting of this machine and where it came from."""
    from argosy.cli.verbs import audit as verb

    verb.config(as_json=as_json)


@endpoints.command("list")
def endpoints_list(as_json: AsJson = False) -> None:
    """List endpoints, what they serve, and where."""
    from argosy.cli.verbs import endpoints as verb

    verb.list_endpoints(as_json=as_json)


@endpoints.command("show")
def endpoints_show(name: Annotated[str, typer.Argument(help="Name of the endpoint.")], as_json: AsJson = False) -> None:
    """Show one endpoint: route, replicas, calibration with its reasons, limits, URLs, and how to ask it."""
    from argosy.cli.verbs import endpoints as verb

    verb.show(name, as_json=as_json)


@endpoints.command("calibrate")
def endpoints_calibrate(
    name: Annotated[str, typer.Argument(help="Name of the endpoint.")], as_json: AsJson = False
) -> None:
    """Measure again how its versions run best on this machine; replicas and batches follow."""
    from argosy.cli.verbs import endpoints as verb

    verb.calibrate(name, as_json=as_json)


@endpoints.command("remove")
def endpoints_remove(
    name: Annotated[str, typer.Argument(help="Name of the endpoint.")], as_json: AsJson = False
) -> None:
    """Stop serving a name. Its versions stay."""
    from argosy.cli.verbs import deploy as verb

    verb.remove(name, as_json=as_json)


@gateway.command("show")
def gateway_show(as_json: AsJson = False) -> None:
    """Show where the gateway listens, its certificate, its names, and whether keys are needed."""
    from argosy.cli.verbs import gateway as verb

    verb.show(as_json=as_json)


@gateway.command("set")
def gateway_set(
    host: Annotated[str | None, typer.Option(help="Address to listen on; off loopback it needs TLS and keys.")] = None,
    port: Annotated[int | None, typer.Option(help="Port of HTTP, 0: any free one.")] = None,
    grpc_port: Annotated[
        int | None, typer.Option("--grpc-port", help="Port of gRPC, 0: any free one, -1: off.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option("--tls-cert", help="Certificate with its chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="Its private key, PEM.")] = None,
    tls: Annotated[str, typer.Option(help="'off', or 'self-signed' for a certificate to try things with.")] = "",
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", help="A name callers use; repeatable, replaces those before; 'none': no name."),
    ] = None,
    fronts: Annotated[
        int | None, typer.Option(help="Processes that speak HTTP on the gateway's port, 0: the gateway alone.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Change how callers reach the gateway; what is not given stays as it is."""
    from argosy.cli.verbs import gateway as verb

    verb.change(
        host=host,
        port=port,
        grpc_port=grpc_port,
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls=tls,
        allow_host=allow_host,
        fronts=fronts,
        as_json=as_json,
    )


@advise.command("training")
def advise_training(
    file: File = Path(),
    changes: Set = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure again, even if this training was measured before.")
    ] = False,
    hosts: Annotated[int, typer.Option(help="Machines like this one that train together.")] = 1,
    link: Annotated[str, typer.Option(help="What joins them: bandwidth, and time there and back.")] = "1Gbit/s, 0.5ms",
    as_json: AsJson = False,
) -> None:
    """Measure for seconds how your model trains in every way: time of a step and in all, memory, and what to take."""
    from argosy.cli.verbs import plan as verb

    verb.advise_training(file, changes, measure=measure, hosts=hosts, link=link, as_json=as_json)


@advise.command("compression")
def advise_compression(
    model: Annotated[str, typer.Argument(help="A version, or an ONNX file or Hugging Face folder.")],
    data: Annotated[str, typer.Option("--data", help="File or folder to judge by; default: that of its run.")] = "",
    label: Annotated[str, typer.Option("--label", help="Column of the answers; default: the usual names.")] = "",
    max_drop: Annotated[str, typer.Option("--max-drop", help="Largest loss, such as 1pt of accuracy.")] = "1pt",
    as_json: AsJson = False,
) -> None:
    """Measure what makes this model smaller or faster on this machine: each method, and which to take."""
    from argosy.cli.verbs import compress as verb

    verb.advise(model, data=data, label=label, max_drop=max_drop, as_json=as_json)


@tools.command("list")
def tools_list(as_json: AsJson = False) -> None:
    """List the tools that conversions use, and where each is installed."""
    from argosy.cli.verbs import convert as verb

    verb.list_tools(as_json=as_json)


@tools.command("install")
def tools_install(
    name: Annotated[str, typer.Argument(help="As `argosy tools list` calls it.")], as_json: AsJson = False
) -> None:
    """Install a tool apart from your own packages. Run it again after an interruption."""
    from argosy.cli.verbs import convert as verb

    verb.install_tool(name, as_json=as_json)


@monitor.command("up")
def monitor_up(
    port: Annotated[
        int, typer.Option(help="Port of Prometheus; Alertmanager and the receiver get the next two. 0: any free ones.")
    ] = -1,
    every: Annotated[str, typer.Option(help="Time between two looks of Prometheus, such as 5s.")] = "",
    as_json: AsJson = False,
) -> None:
    """Write all files, and start Prometheus and Alertmanager where they are installed; they stay until `down`."""
    from argosy.cli.verbs import monitor as verb

    verb.up(port=port, every=every, as_json=as_json)


@monitor.command("down")
def monitor_down(as_json: AsJson = False) -> None:
    """Stop Prometheus, Alertmanager and the receiver. Files and data stay."""
    from argosy.cli.verbs import monitor as verb

    verb.down(as_json=as_json)


@monitor.command("status")
def monitor_status(as_json: AsJson = False) -> None:
    """Show what runs, what is missing, what is scraped, and which alerts fire."""
    from argosy.cli.verbs import monitor as verb

    verb.status(as_json=as_json)


@monitor.command("config")
def monitor_config(as_json: AsJson = False) -> None:
    """Write the files for Prometheus, Alertmanager and Grafana without starting anything, and say where they are."""
    from argosy.cli.verbs import monitor as verb

    verb.config(as_json=as_json)


@jobs.callback()
def jobs_alone(context: typer.Context) -> None:
    """Runs, trainings and compressions that wait for room on this machine. Alone: list them."""
    if context.invoked_subcommand is None:
        from argosy.cli.verbs import jobs as verb

        verb.list_jobs(as_json=False)


@jobs.command("list")
def jobs_list(as_json: AsJson = False) -> None:
    """List jobs: those that run, those that wait in their order, then those that ended."""
    from argosy.cli.verbs import jobs as verb

    verb.list_jobs(as_json=as_json)


@jobs.command("submit", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def jobs_submit(
    command: Annotated[
        list[str], typer.Argument(help="After --: run, train, compress, convert or evaluate, with its flags.")
    ],
    cpus: Cpus = 0,
    memory: Memory = "",
    gpus: Gpus = 0,
    estimate: Takes = "",
    priority: Priority = 0,
    as_json: AsJson = False,
) -> None:
    """Put a command in line; it starts when all it needs is free: argosy jobs submit -- run --file FOLDER."""
    from argosy.cli.verbs import jobs as verb

    stated = verb.Stated(cpus=cpus, memory=memory, gpus=gpus, estimate=estimate, priority=priority)
    verb.submit(command, stated, as_json=as_json)


@jobs.command("show")
def jobs_show(job: JobId, as_json: AsJson = False) -> None:
    """Show one job: where it stands and why, what it took, the end of its log."""
    from argosy.cli.verbs import jobs as verb

    verb.show(job, as_json=as_json)


@jobs.command("logs")
def jobs_logs(
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job ends.")] = False,
    last: Annotated[int, typer.Option(help="How many of the last lines.")] = 200,
) -> None:
    """Show what a job wrote, all its attempts one after the other."""
    from argosy.cli.verbs import jobs as verb

    verb.logs(job, follow=follow, last=last)


@jobs.command("cancel")
def jobs_cancel(job: JobId, as_json: AsJson = False) -> None:
    """End a job; the stages it has finished are kept."""
    from argosy.cli.verbs import jobs as verb

    verb.cancel(job, as_json=as_json)


@jobs.command("priority", context_settings={"ignore_unknown_options": True})
def jobs_priority(
    job: JobId,
    priority: Annotated[int, typer.Argument(help="From -10 to 10; a step is worth half an hour of waiting.")],
    as_json: AsJson = False,
) -> None:
    """Move a job in the line."""
    from argosy.cli.verbs import jobs as verb

    verb.set_priority(job, priority, as_json=as_json)


@jobs.command("wait")
def jobs_wait(
    job: JobId,
    timeout: Annotated[float, typer.Option(help="Seconds to wait at most; 0: until it ends.")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Wait until a job has ended; fails if it failed."""
    from argosy.cli.verbs import jobs as verb

    verb.wait(job, timeout_s=timeout, as_json=as_json)


@app.command()
def update(
    endpoint: Annotated[str, typer.Argument(help="Name of the endpoint; default: the project's.")] = "",
    file: File = Path(),
    reason: Annotated[str, typer.Option(help="Why, for the log.")] = "",
    now: Annotated[
        bool, typer.Option("--now", help="Skip the canary: switch over as soon as the version is ready.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run an endpoint's project again as a job, and release what passes its gates."""
    from argosy.cli.verbs import updates as verb

    verb.update(endpoint, file=file, reason=reason, now=now, as_json=as_json)


@app.command()
def updates(as_json: AsJson = False) -> None:
    """Show which endpoints are updated from a project, by what, how the last update ended, and when the next is due."""
    from argosy.cli.verbs import updates as verb

    verb.list_updates(as_json=as_json)


@access.command("grant")
def access_grant(
    name: Annotated[str, typer.Argument(help="Who gets the key.")],
    endpoints: Annotated[
        list[str] | None, typer.Option("--endpoint", help="What it is for; repeatable; default: every endpoint.")
    ] = None,
    weight: Annotated[float, typer.Option(help="Share of a busy endpoint, against others' 1.")] = 1.0,
    expires: Annotated[str, typer.Option(help="For how long, such as 30d; default: until it is revoked.")] = "",
    as_json: AsJson = False,
) -> None:
    """Grant a key and show it, this once. From the first one on nobody uses the gateway without a key."""
    from argosy.cli.verbs import access as verb

    verb.grant(name, endpoints=endpoints, weight=weight, expires=expires, as_json=as_json)


@access.command("list")
def access_list(as_json: AsJson = False) -> None:
    """List who holds a key, and for what."""
    from argosy.cli.verbs import access as verb

    verb.list_keys(as_json=as_json)


@access.command("revoke")
def access_revoke(
    name: Annotated[str, typer.Argument(help="Whose key.")],
    as_json: AsJson = False,
) -> None:
    """Take a key back, within a second. Who holds another keeps it."""
    from argosy.cli.verbs import access as verb

    verb.revoke(name, as_json=as_json)


@access.command("off")
def access_off(as_json: AsJson = False) -> None:
    """Revoke all keys and need none any more; only where nobody else can reach the gateway."""
    from argosy.cli.verbs import access as verb

    verb.off(as_json=as_json)


def main() -> None:
    """Run the command line; every failure becomes one clear error and an exit code, never a stack."""
    try:
        app(standalone_mode=True)
    except ArgosyError as error:
        _say(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of our output has gone: `argosy models list | head`
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        meant = _meant(error)
        _say(meant)
        sys.exit(meant.exit_code)
    except Exception as error:  # noqa: BLE001 the outermost border: the stack goes to a file, the user gets one line
        fault = _unexpected(error)
        _say(fault)
        sys.exit(fault.exit_code)


def _say(error: ArgosyError) -> None:
    from argosy.cli.output import Output

    Output(as_json="--json" in sys.argv).error(error)


def _meant(error: OSError) -> ArgosyError:
    from argosy.core.files import explained

    found = explained(error, Path(str(error.filename or "a file")))
    return found if isinstance(found, ArgosyError) else _unexpected(error)


def _unexpected(error: Exception) -> Internal:
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="argosy-fault-", suffix=".txt", delete=False) as stream:
        stream.write("".join(traceback.format_exception(error)))
    return Internal(
        f"something in Argosy itself went wrong: {type(error).__name__}: {error}",
        hint=f"please report it with '{stream.name}'",
    )
