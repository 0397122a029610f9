"""Commands of the platform as a whole: run it, serve it, show its health and its settings."""

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from replica_platform.cli.common import as_json_option, on_signal
from replica_platform.cli.terminal import (
    bar,
    err,
    figures,
    live,
    out,
    plain,
    print_json,
    print_table,
    verdict,
)

if TYPE_CHECKING:
    from replica_platform.app.configured import Configured
    from replica_platform.app.health import Health
    from replica_platform.app.runs import StepDone
    from replica_platform.app.settings import Settings

# Words for figures whose names are too short for a reader of `replica status`.
LABELS = {
    "kept": "kept generations",
    "file_bytes": "size",
    "count": "backups",
    "total_bytes": "size",
    "readers": "readers by process",
}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--sample/--no-sample", default=True, help="Keep the sample's assets, or not.")
@click.option("--cluster", is_flag=True, help="Send runs to the workers of several hosts.")
@as_json_option
def init(folder: Path, sample: bool, cluster: bool, as_json: bool) -> int:
    """Make a new project in FOLDER.

    It needs no clone: a package for your definitions, the settings of Dagster's instance, and a
    `.env` for yours. In it, `replica run` materialises everything and `replica dev` serves it.
    """
    from replica_platform.app.project import init_project

    made = init_project(folder, sample=sample, cluster=cluster)
    if as_json:
        print_json({"files": made})
        return 0
    for file in made:
        out.print(plain(str(file)))
    out.print(f"\nNext: [bold]cd {plain(str(folder))} && replica run[/]")
    return 0


@click.command()
@as_json_option
def run(as_json: bool) -> int:
    """Materialise every asset once.

    Databases without a DSN are in the embedded Postgres, which runs as long as the command.
    """
    from replica_platform.app.settings import Settings

    settings = Settings()
    from replica_platform.app.configured import configured
    from replica_platform.app.launch import PROJECT, platform_up, prepare_sample, project_dir

    project = project_dir()
    entries = configured(sample=settings.sample, host=settings.host)
    with platform_up(settings):
        prepare_sample(settings)
        # Imported late: the import takes most of the command's time, and a wrong DSN should be
        # reported at once.
        from replica_platform.app.observation import record_state
        from replica_platform.app.runs import materialise_all
        from replica_platform.definitions import load_defs

        definitions = load_defs(settings)
        with bar("materialising") as progress:
            # For people only: a program reads the result.
            watched = (progress, _print_step) if err.is_terminal else (None, None)
            assets = materialise_all(definitions, *watched)
        record_state(settings, entries)
    well = all(asset.ok for asset in assets)
    if as_json:
        print_json(assets)
        return int(not well)
    print_table(
        ("asset", "rows", "seconds", "checks", "what was done"),
        [(a.asset, a.rows, a.seconds, f"{a.checks_passed}/{a.checks}", a.done) for a in assets],
    )
    for asset in assets:
        for problem in asset.problems:
            out.print(f"[bold red]{asset.asset}[/]: {plain(problem)}")
    if well and not any(asset.changed for asset in assets):
        out.print("\nNothing had changed; no row was moved.")
    _print_locations(settings, entries)
    program = "make" if project == PROJECT else "replica"
    out.print(
        f"\nNext: [bold]{program} dev[/] opens the Dagster UI, "
        f"[bold]{program} status[/] shows the health."
    )
    return int(not well)


def _print_locations(settings: "Settings", entries: "Configured") -> None:
    from replica_platform.app.entries import DuckDBReplicaEntry
    from replica_platform.core.postgres import mask_dsn

    for one in entries.of(DuckDBReplicaEntry):
        out.print(f"\nmaster    {settings.path(one.master)}")
        out.print(f"replica   {settings.path(one.store_folder)}/{one.link_name}")
    out.print(f"outboxes  {settings.outbox_dir}\nbackups   {settings.backup_dir}")
    out.print(f"target    {plain(mask_dsn(settings.target))}")


@click.command()
@click.option(
    "--port", type=click.IntRange(1, 65535), help="The port of the UI; REPLICA_PORT otherwise."
)
def dev(port: int | None) -> int:
    """Serve the Dagster UI, with schedules, sensors and deck.

    It runs until Ctrl-C, which ends every process that it started.
    """
    from replica_platform.app.settings import Settings

    settings = Settings()
    settings.port = port or settings.port
    from replica_platform.app.configured import configured
    from replica_platform.app.launch import (
        deck_port,
        platform_up,
        prepare_sample,
        project_dir,
        serve,
    )

    project_dir()
    configured(sample=settings.sample)
    with platform_up(settings):
        prepare_sample(settings)
        err.print(f"The Dagster UI will be at http://127.0.0.1:{settings.port} (Ctrl-C ends it).")
        if port := deck_port(settings):
            err.print(f"The flight deck will be at http://127.0.0.1:{port}.")
        return serve(settings, with_deck=True)


def _print_step(step: "StepDone") -> None:
    """Print a step of a run as soon as it has ended."""
    err.print(f"{verdict(step.ok, padded=True)} {plain(step.step)} [dim]{step.seconds:.1f} s[/]")


@click.command()
@click.option("--watch", is_flag=True, help="Show it again and again, until Ctrl-C.")
@click.option(
    "--every",
    "every_s",
    type=click.FloatRange(0.5, 3600),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How often --watch looks.",
)
@as_json_option
def status(watch: bool, every_s: float, as_json: bool) -> int:
    """Show the health of every pillar.

    `idle` says that no schedule runs, since `replica dev` was never started. The exit code is 0
    only when all pillars are well or idle.
    """
    if watch and as_json:
        raise click.UsageError("--watch is for people; call `status --json` again and again.")
    from replica_platform.app.settings import Settings

    settings = Settings()
    from replica_platform.app.health import platform_health
    from replica_platform.app.launch import existing_databases

    with existing_databases(settings):
        pillars = platform_health(settings)
        if watch:
            pillars = _watched(pillars, lambda: platform_health(settings), every_s)
        elif as_json:
            print_json(pillars)
        else:
            for line in _health_lines(pillars):
                out.print(line)
    return int(not all(pillar.ok for pillar in pillars))


def _watched(
    pillars: "list[Health]", look: "Callable[[], list[Health]]", every_s: float
) -> "list[Health]":
    """Show the health until a signal; return what was seen last."""
    stop = on_signal()
    with live(out) as show:
        while True:
            now = f"[dim]{datetime.now():%H:%M:%S}, every {every_s:g} s; Ctrl-C ends[/]"
            show([*_health_lines(pillars), now])
            if stop.wait(every_s):
                return pillars
            pillars = look()


def _health_lines(pillars: "Iterable[Health]") -> Iterator[str]:
    """Yield the lines of each pillar: its state, and its figures."""
    for pillar in pillars:
        mark = verdict(pillar.ok, idle=pillar.idle, padded=True)
        yield f"{mark} {pillar.pillar:<10} {plain(pillar.sentence)}"
        if facts := figures(pillar.facts, LABELS):
            yield f"    [dim]{plain(facts)}[/]"


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@as_json_option
def env(command: tuple[str, ...], as_json: bool) -> int:
    """Print the DSNs in force, or run COMMAND with them.

    Passwords are masked in the output; COMMAND gets them in its environment. The embedded Postgres
    runs as long as COMMAND. Example: `replica env dg dev`.
    """
    from replica_platform.app.settings import Settings

    settings = Settings()
    if command:
        from replica_platform.app.launch import platform_up, run_command

        with platform_up(settings):
            return run_command(command)
    from replica_platform.core.postgres import mask_dsn

    shown = {name: mask_dsn(value) for name, value in settings.environment().items()}
    if as_json:
        print_json(shown)
    else:
        for name, value in shown.items():
            out.print(f"{name}={plain(value)}")
    return 0
