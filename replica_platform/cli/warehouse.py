"""Commands of the warehouse: sync tables from Postgres to Postgres, validate them, tune."""

import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

import click

from replica_platform.cli.columns import choice_options, mask_options
from replica_platform.cli.common import as_json_option
from replica_platform.cli.endpoint import check_metrics_options, metrics_options, serving_watched
from replica_platform.cli.terminal import (
    bar,
    complain,
    out,
    plain,
    print_json,
    print_json_line,
    print_table,
    verdict,
)

if TYPE_CHECKING:
    from replica_platform.app.watch_metrics import SyncMetrics
    from replica_platform.xmin import Mask

REPORT_EVERY_S = 10.0


def _databases(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the arguments that `sync` and `validate` share."""
    for decorate in (
        click.argument("tables", nargs=-1, required=True, metavar="TABLE…"),
        click.option("--source", required=True, help="DSN of the database to read."),
        click.option("--target", required=True, help="DSN of the database to write."),
        click.option("--into", help="The schema in the target; as in the source otherwise."),
        as_json_option,
    ):
        command = decorate(command)
    return command


@click.command()
@_databases
@click.option(
    "--mode",
    type=click.Choice(["auto", "scan", "blocks", "timestamp", "full"]),
    default="auto",
    show_default=True,
    help="How changed rows are found.",
)
@click.option("--timestamp-column", help="The column that mode `timestamp` reads by.")
@click.option("--timestamp-zone", help="The writers' time zone, for a column that has none.")
@click.option(
    "--deletes",
    type=click.Choice(["auto", "keys", "blocks", "never"]),
    default="auto",
    show_default=True,
    help="How deleted rows are found; auto: by blocks where those are read, else by keys.",
)
@click.option(
    "--key",
    multiple=True,
    metavar="COLUMN",
    help="A key column, for sources without a key (views); may be repeated.",
)
@choice_options
@mask_options
@click.option(
    "--max-delete-fraction",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Refuse to delete a larger part of a table.",
)
@click.option(
    "--take-over",
    is_flag=True,
    help="Let TABLE… replace the rows of other source tables that the targets hold.",
)
@click.option(
    "--prove",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="Compare the whole content once in so many seconds, a part at each sync; repair it.",
)
@click.option("--workers", type=click.IntRange(1, 64), help="Connections that copy in parallel.")
@click.option(
    "--checkpoint/--no-checkpoint",
    default=True,
    show_default=True,
    help="By blocks: ask the source for checkpoints, where the role may.",
)
@click.option(
    "--summary-wait",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="By blocks: the longest to wait for a WAL summary.",
)
@click.option("--watch", is_flag=True, help="Sync again and again, until the command is ended.")
@click.option(
    "--every",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="With --watch: from one sync to the next.",
)
@metrics_options
@click.option(
    "--max-snapshot-s",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds that a first copy holds a snapshot of the source; a larger one takes several.",
)
@click.option(
    "--max-source-connections",
    type=click.IntRange(min=1),
    help="Connections that read the source at the same time.",
)
@click.option(
    "--max-source-fraction",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="The part of the time that each of them may work; the sync pauses in between.",
)
def sync(
    tables: tuple[str, ...],
    source: str,
    target: str,
    into: str | None,
    as_json: bool,
    mode: str,
    timestamp_column: str | None,
    timestamp_zone: str | None,
    deletes: str,
    key: tuple[str, ...],
    columns: tuple[str, ...],
    left_out: tuple[str, ...],
    masks: "Mapping[str, Mask]",
    salt_env: str | None,
    max_delete_fraction: float,
    take_over: bool,
    prove: float | None,
    workers: int | None,
    checkpoint: bool,
    summary_wait: float,
    watch: bool,
    every: float,
    metrics_port: int | None,
    metrics_host: str,
    max_snapshot_s: float,
    max_source_connections: int | None,
    max_source_fraction: float,
) -> int:
    """Copy committed changes of TABLE… to the target.

    Each change arrives once, also when a sync is interrupted and repeated. The source computes
    masks; a later sync that forgets one is refused.
    """
    check_metrics_options(metrics_port, metrics_host, goes_on=watch)
    from replica_platform.app.sync_settings import sync_settings
    from replica_platform.xmin import BlockOptions, Proving, TableSpec, sync_group

    settings = sync_settings()
    options: dict[str, Any] = {
        "workers": workers or settings.workers,
        "batch_bytes": settings.batch_bytes,
        "max_delete_fraction": max_delete_fraction,
        "prove": None if prove is None else Proving(prove),
        "blocks": BlockOptions(checkpoint, summary_wait),
        "max_snapshot_s": max_snapshot_s,
        "max_source_connections": max_source_connections,
        "max_source_fraction": max_source_fraction,
    }
    specs = [
        TableSpec(
            table,
            into=into,
            mode=mode,
            timestamp_column=timestamp_column,
            timestamp_zone=timestamp_zone,
            deletes=deletes,
            key=key or None,
            columns=columns or None,
            left_out=left_out,
            masks=masks,
            # Of several tables, not each has every column that is left out or masked.
            lenient=len(tables) > 1,
        )
        for table in tables
    ]
    if watch:
        if take_over:
            raise click.UsageError("Take a target over with one sync, then watch it.")
        with serving_watched(_sync_metrics, metrics_host, metrics_port) as metrics:
            return _watch(source, target, specs, every, as_json, metrics, options)
    with bar("syncing") as progress:
        committed = count(1)
        group = sync_group(
            source,
            target,
            specs,
            take_over=take_over,
            progress=progress,
            on_report=lambda _: progress(next(committed), len(specs), "tables"),
            **options,
        )
    if any(report.changed for report in group.reports.values()):
        from replica_platform.app.recording import record_syncs

        record_syncs(target, group.reports)
    if as_json:
        print_json(group)
    else:
        print_table(
            ("table", "mode", "read", "inserted", "updated", "deleted", "seconds", "why"),
            [
                (r.target_table, r.mode, r.rows_read, r.rows_inserted, r.rows_updated,
                 r.rows_deleted, r.seconds, r.why)
                for r in group.reports.values()
            ],
        )  # fmt: skip
        for report in group.reports.values():
            if report.proof:
                equal = verdict(not report.proof.differing)
                out.print(f"{equal} {plain(report.target_table)}: {report.proof.sentence}")
    for table, why in group.failures.items():
        complain(f"{table}: {why}")
    return int(bool(group.failures))


def _sync_metrics() -> "SyncMetrics":
    from replica_platform.app.watch_metrics import SyncMetrics

    return SyncMetrics()


def _watch(
    source: str,
    target: str,
    specs: Sequence[Any],
    every_s: float,
    as_json: bool,
    metrics: "SyncMetrics | None",
    options: dict[str, Any],
) -> int:
    """Sync until SIGTERM or Ctrl-C, and print what was done every `REPORT_EVERY_S` seconds."""
    from replica_platform.xmin import WatchReport, watch

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    printed = 0.0

    def show(report: WatchReport) -> None:
        nonlocal printed
        if metrics:
            metrics.set_totals(report)
        if time.monotonic() - printed < REPORT_EVERY_S and report.ok:
            return
        printed = time.monotonic()
        if as_json:
            print_json_line(report)
        else:
            out.print(f"{verdict(report.ok)} {plain(report.sentence)}")

    report = watch(
        source,
        target,
        specs,
        every_s=every_s,
        stop=stop,
        on_sync=show,
        on_group=metrics.add_group if metrics else None,
        **options,
    )
    if as_json:
        print_json_line(report)
    else:
        out.print(f"{verdict(report.ok)} Ended. {plain(report.sentence)}")
    return int(not report.ok)


@click.command("forget-table")
@click.argument("table")
@click.option("--target", help="DSN of the target; the one in force otherwise.")
@as_json_option
def forget_table(table: str, target: str | None, as_json: bool) -> int:
    """Forget a table that is no longer synced.

    TABLE is its name in the target, `schema.table`; the table stays there with its rows.
    """
    from replica_platform.app.launch import existing_databases
    from replica_platform.app.settings import Settings
    from replica_platform.xmin import forget

    settings = Settings()
    with existing_databases(settings):
        forgotten = forget(target or settings.target, table)
    if as_json:
        print_json({"table": table, "forgotten": forgotten})
    elif forgotten:
        out.print(f"{plain(table)} is forgotten; its rows stay in the target.")
    else:
        return complain(f"Nothing is remembered of {table}; `replica status` names the tables.")
    return int(not forgotten)


@click.command()
@_databases
@click.option("--content", is_flag=True, help="Compare all columns too; reads both tables whole.")
@mask_options
def validate(
    tables: tuple[str, ...],
    source: str,
    target: str,
    into: str | None,
    content: bool,
    masks: "Mapping[str, Mask]",
    salt_env: str | None,
    as_json: bool,
) -> int:
    """Compare TABLE… in source and target.

    By key and xmin; with --content by all columns that were copied, masked ones with --mask as at
    the last sync. The score is 1 when they are proven equal
    in content; the keys that differ are listed.
    """
    from replica_platform.xmin import validate as validate_table

    with bar("validating") as progress:
        found = []
        for done, table in enumerate(tables):
            one = validate_table(source, target, table, into=into, content=content, masks=masks)
            found.append(one)
            progress(done + 1, len(tables), "tables")
    if as_json:
        print_json(found)
    else:
        print_table(
            ("table", "score", "source rows", "target rows", "missing", "stale", "extra"),
            [
                (
                    f.table,
                    f.score,
                    f.source_rows,
                    f.target_rows,
                    f.missing_count,
                    f.stale_count,
                    f.extra_count,
                )
                for f in found
            ],
        )
        for one in found:
            out.print(f"{verdict(one.in_sync)} {plain(one.sentence)}")
    return int(not all(one.in_sync for one in found))


@click.command()
@click.option("--source", help="DSN of the source; the one in force otherwise.")
@click.option("--target", help="DSN of the target; the one in force otherwise.")
@as_json_option
def tune(source: str | None, target: str | None, as_json: bool) -> int:
    """Measure which settings of a sync suit this machine."""
    from replica_platform.app.launch import platform_up
    from replica_platform.app.settings import Settings
    from replica_platform.xmin import tune as tune_sync

    settings = Settings()
    with platform_up(settings):
        tuning = tune_sync(
            source or settings.source,
            target or settings.target,
            workers=settings.xmin_workers,
            batch_bytes=settings.xmin_batch_bytes,
        )
    if as_json:
        print_json(tuning)
    else:
        out.print(f"XMIN_WORKERS={tuning.workers}\nXMIN_BATCH_BYTES={tuning.batch_bytes}")
        for name, why in tuning.why.items():
            out.print(f"# {name}: {plain(why)}")
    return 0
