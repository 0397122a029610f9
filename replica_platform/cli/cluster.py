"""Commands of a cluster: the worker of a host, and the state of all hosts."""

import os
import re
from dataclasses import replace

import click

from replica_platform.cli.common import as_json_option
from replica_platform.cli.terminal import out, plain, print_json, verdict

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _names(_context: click.Context, _option: click.Parameter | None, given: object) -> object:
    """Refuse what no entry can name."""
    for name in given if isinstance(given, tuple) else (given,):
        if name is not None and not _NAME.fullmatch(str(name)):
            raise click.BadParameter(f"{name!r} is not a name of letters, digits and _.")
    return given


@click.command()
@click.option(
    "--host",
    metavar="NAME",
    callback=_names,
    help="The host, as entries name it, or REPLICA_HOST; `central` is that of assets without one.",
)
@click.option(
    "--queue",
    "queues",
    multiple=True,
    metavar="NAME",
    callback=_names,
    help="A further queue, which other hosts may serve too; repeat it for several.",
)
@click.option(
    "--processes",
    type=click.IntRange(1, 256),
    default=lambda: min(os.cpu_count() or 1, 4),
    help="How many runs are executed at a time; one for each core, and at most 4, when absent.",
)
def worker(host: str | None, queues: tuple[str, ...], processes: int) -> int:
    """Execute the runs of a host, until SIGTERM or Ctrl-C.

    Runs that are under way end first; a second signal ends them. Broker and databases are those of
    the environment or `.env`: REPLICA_BROKER_URL, REPLICA_DAGSTER_DSN and REPLICA_TARGET_DSN.
    """
    from replica_platform.app.settings import Settings

    settings = Settings()
    settings.host = host or settings.host
    if settings.host is None:
        raise click.UsageError("Name the host, by --host NAME or as REPLICA_HOST.")
    _names(click.get_current_context(), None, settings.host)
    from replica_platform.app.launch import broker_of

    broker = broker_of(settings)
    from replica_platform.cluster.worker import run_worker

    return run_worker(
        settings.host, queues, broker=broker, dsn=settings.dagster, processes=processes
    )


@click.group()
def cluster() -> None:
    """Show the hosts of a cluster."""


@cluster.command()
@click.option("--host", metavar="NAME", help="This host alone, as a health check of its worker.")
@as_json_option
def status(host: str | None, as_json: bool) -> int:
    """Show every host: its workers and queues, what runs there, what waits for it.

    The exit code is 0 only when every host that is shown has a worker.
    """
    from replica_platform.app.settings import Settings

    settings = Settings()
    from replica_platform.app.configured import configured
    from replica_platform.app.hosts import hosts_status
    from replica_platform.app.launch import existing_databases

    named = [host] if host else configured(sample=settings.sample).hosts
    with existing_databases(settings):
        found = hosts_status(settings.dagster, named)
    if host:
        found = replace(found, hosts=[one for one in found.hosts if one.name == host])
    if as_json:
        print_json(found)
        return int(not found.ok)
    for shown in found.hosts:
        out.print(f"{verdict(shown.ok, padded=True)} {plain(shown.sentence)}")
        for one in shown.workers:
            busy = len(one.tasks)
            queues = ", ".join(one.queues)
            out.print(f"    [dim]{plain(one.name)}: {queues}; {busy} of {one.processes} busy[/]")
    if not found.hosts or not found.ok:
        out.print(plain(found.sentence))
    return int(not found.ok)
