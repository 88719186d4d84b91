"""`argosy jobs`, `update` and `updates`."""

from pathlib import Path
from typing import Annotated

import typer

from argosy.cli.commands.options import AsJson, Cpus, File, Gpus, JobId, Memory, Priority, Takes, group

commands = group()
jobs = group("Runs that wait for room on this machine; alone: list them.", runs_alone=True)


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


@commands.command()
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


@commands.command()
def updates(as_json: AsJson = False) -> None:
    """Show which endpoints are updated from a project, by what, how the last update ended, and when the next is due."""
    from argosy.cli.verbs import updates as verb

    verb.list_updates(as_json=as_json)
