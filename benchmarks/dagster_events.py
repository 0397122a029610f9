"""What a sync of many idle tables costs in Dagster's database, beside a job of the same assets.

    python -m benchmarks.dagster_events [--tables 173] [--runs 10]

The job of the schedule reports a table that changed, and any other one every two hours; a job of
the assets writes events for each table and check in each run. Bytes are those of the relations of
a Postgres that only Dagster uses; a day has 288 syncs, 5 minutes apart.
"""

import argparse
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import psycopg
import yaml
from psycopg import sql

from benchmarks.xmin_speed import a_server
from replica_platform.app.settings import Settings
from replica_platform.components.machine import Machine, loading_on
from replica_platform.components.xmin_tables import TableEntry, XminTables
from replica_platform.definitions import build_resources

RUNS_A_DAY, REPORTS_A_DAY = 288, 12
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def main() -> None:
    """Sync once, then measure idle syncs of three kinds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=int, default=173)
    parser.add_argument("--runs", type=int, default=10)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    with a_server() as server, tempfile.TemporaryDirectory(prefix="rp-bench-") as folder:
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute("create database dagster")
        make_tables(server.dsn("src"), given.tables)
        settings = Settings(
            data_dir=Path(folder), source_dsn=server.dsn("src"), target_dsn=server.dsn("dst")
        )
        storage = {"postgres": {"postgres_url": server.dsn("dagster")}}
        Path(folder, "dagster.yaml").write_text(
            yaml.safe_dump({"storage": storage, "telemetry": {"enabled": False}})
        )
        with dg.DagsterInstance.from_config(folder) as instance:
            measure(settings, instance, server.dsn("dagster"), given.tables, given.runs)


def make_tables(source: str, count: int) -> None:
    """Create tables of ten columns and ten rows."""
    more = sql.SQL(", ").join(sql.SQL(f"column_{n} text") for n in range(8))
    with psycopg.connect(source, autocommit=True) as connection:
        for number in range(count):
            name = sql.Identifier(f"table_{number}")
            connection.execute(
                sql.SQL("create table {} (id int primary key, name text, {})").format(name, more)
            )
            connection.execute(
                sql.SQL("insert into {} select n, 'row ' || n from generate_series(1, 10) n")
                .format(name)
            )  # fmt: skip


def measure(
    settings: Settings, instance: dg.DagsterInstance, dsn: str, tables: int, runs: int
) -> None:
    """Print the events and bytes of an idle sync: unreported, reported, and as a job of assets."""
    entries = [TableEntry(table=f"public.table_{number}") for number in range(tables)]
    often = job_of(settings, XminTables(name="fds", tables=entries))
    # A second is over between two runs.
    always = job_of(settings, XminTables(name="fds", tables=entries, report_unchanged_s=1))
    assets = job_of(settings, XminTables(name="fds", tables=entries), of_assets=True)
    run(always, instance)  # the first copy
    kinds = {"unreported": (often, runs), "reported": (always, 2), "job of assets": (assets, 2)}
    bytes_of = {}
    for name, (job, times) in kinds.items():
        events, bytes_of[name] = growth(dsn, lambda job=job: run(job, instance), times)
        print(f"{name:15} {events:8.0f} events, {bytes_of[name] / 1e3:8.0f} kB a sync")
    idle, reporting, peer = bytes_of.values()
    ours = (RUNS_A_DAY - REPORTS_A_DAY) * idle + REPORTS_A_DAY * reporting
    print(f"{tables} tables every 5 minutes: {ours / 1e6:.0f} MB a day (wanted: at most 50),")
    print(
        f"as a job of assets {RUNS_A_DAY * peer / 1e6:.0f}: {ours / RUNS_A_DAY / peer:.3f} of it."
    )


def job_of(settings: Settings, tables: XminTables, *, of_assets: bool = False) -> dg.JobDefinition:
    """Return the job of the schedule, or one of the same assets and their checks."""
    with loading_on(Machine(settings.data_dir, settings.source)):
        group = tables.build_defs(None)  # type: ignore[arg-type]  # it has no file
    definitions = dg.Definitions.merge(
        group,
        dg.Definitions(
            resources=build_resources(settings),
            executor=dg.in_process_executor,
            jobs=[dg.define_asset_job("assets", selection="*")],
        ),
    )
    return definitions.resolve_job_def("assets" if of_assets else "fds_sync")


def run(job: dg.JobDefinition, instance: dg.DagsterInstance) -> None:
    """Run a job, which must succeed."""
    assert job.execute_in_process(instance=instance, run_config=QUIET).success


def growth(dsn: str, task: Callable[[], None], times: int) -> tuple[float, float]:
    """Return the events and bytes that a task adds to the database each time."""
    before = size(dsn)
    for _ in range(times):
        task()
    after = size(dsn)
    return (after[0] - before[0]) / times, (after[1] - before[1]) / times


def size(dsn: str) -> tuple[int, int]:
    """Return the number of events, and the bytes of all relations with their indexes."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute(
            "select (select count(*) from event_logs), sum(pg_total_relation_size(c.oid))::bigint"
            " from pg_class c join pg_namespace n on n.oid = relnamespace"
            " where nspname = 'public' and relkind = 'r'"
        ).fetchone()
    assert row is not None
    return row[0], row[1]


if __name__ == "__main__":
    main()
