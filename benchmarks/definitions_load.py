"""What it costs to load the definitions of 1,000 tables by pattern, beside plain Dagster assets.

    python -m benchmarks.definitions_load [--tables 1000] [--columns 10] [--repeat 3]

A new process imports everything, asks a real source for its tables, builds the definitions, and
makes what a code server hands to the pages. The peer has an asset with two checks for each table,
written in Python as Dagster's documentation does, without anything of the columns.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg
from psycopg import sql

from benchmarks.xmin_speed import a_server

WANTED_S = 5.0
PROJECT = Path(__file__).parents[1]
DEFS_YAML = """
type: replica_platform.components.XminTables
attributes: {name: big, into: big, tables: [{table: public.*}]}
"""
CODE_SERVER = """
import warnings
warnings.simplefilter("ignore")
from dagster._core.remote_representation.external_data import RepositorySnap
from dagster_shared.serdes import serialize_value
from MODULE import defs
repository = defs().get_repository_def()
print(len(repository.asset_graph.materializable_asset_keys))
serialize_value(RepositorySnap.from_def(repository))
"""
PLAIN = """
import dagster as dg

def made(name):
    source = dg.AssetSpec(["source", name])
    @dg.asset(key=["raw_data", name], deps=[source], group_name="warehouse")
    def copied(): ...
    @dg.asset_check(asset=copied, blocking=True)
    def is_intact() -> dg.AssetCheckResult: ...
    @dg.asset_check(asset=copied)
    def is_fresh() -> dg.AssetCheckResult: ...
    return [source, copied], [is_intact, is_fresh]

@dg.definitions
def defs():
    every = [made(f"table_{number}") for number in range(TABLES)]
    assets = [one for assets, _ in every for one in assets]
    checks = [one for _, checks in every for one in checks]
    job = dg.define_asset_job("sync", selection="*")
    schedule = dg.ScheduleDefinition(job=job, cron_schedule="*/5 * * * *")
    return dg.Definitions(
        assets=assets, asset_checks=checks, schedules=[schedule],
        executor=dg.in_process_executor,
    )
"""


def main() -> None:
    """Load both a few times, turn about, and print the best of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=int, default=1000)
    parser.add_argument("--columns", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    with a_server() as server, tempfile.TemporaryDirectory(prefix="rp-bench-") as name:
        folder = Path(name)
        make_tables(server.dsn("src"), given.tables, given.columns)
        make_projects(folder, given.tables)
        environment = {
            "REPLICA_DATA_DIR": str(folder / "data"),
            "REPLICA_SOURCE_DSN": server.dsn("src"),
            "REPLICA_TARGET_DSN": server.dsn("dst"),
            "REPLICA_SAMPLE": "off",
        }
        modules = {"by pattern": "replica_platform.definitions", "plain Dagster": "plain"}
        seconds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in modules}
        for _ in range(given.repeat):
            for kind, module in modules.items():
                seconds[kind].append(load(folder, module, environment, given.tables))
    best = {kind: min(some) for kind, some in seconds.items()}
    for kind, (wall_s, cpu_s) in best.items():
        print(f"{kind:15} {wall_s:6.2f} s, of which {cpu_s:6.2f} s of processor time")
    ours, peer = best.values()
    print(f"{given.tables} tables: {ours[0]:.2f} s (wanted: under {WANTED_S:g}),")
    print(f"{ours[1] / peer[1]:.2f} of plain Dagster's processor time.")


def make_tables(source: str, count: int, columns: int, *, chain: int | None = None) -> None:
    """Create tables with comments, each with a foreign key to the one before.

    Args:
        source: The DSN of the database.
        count: How many tables.
        columns: How many columns each has.
        chain: How many tables foreign keys join; None for all.
    """
    comment = sql.SQL("comment on column {}.c1 is 'A number.'")
    with psycopg.connect(source) as connection:
        for number in range(count):
            name = sql.Identifier(f"table_{number}")
            fields = [sql.SQL("id int primary key")]
            fields += [sql.SQL(f"c{n} numeric(10, 2)") for n in range(1, columns - 1)]
            first = number // (chain or count) * (chain or count)
            before = sql.Identifier(f"table_{max(first, number - 1)}")
            fields.append(sql.SQL("parent int references {}").format(before))
            connection.execute(
                sql.SQL("create table {} ({})").format(name, sql.SQL(", ").join(fields))
            )
            connection.execute(comment.format(name))


def make_projects(folder: Path, tables: int) -> None:
    """Write a copy of the platform with one entry, and the module of plain assets."""
    ignored = shutil.ignore_patterns("__pycache__", "sample")
    package = folder / "replica_platform"
    shutil.copytree(PROJECT / "replica_platform", package, ignore=ignored)
    shutil.copy(PROJECT / "pyproject.toml", folder)
    (package / "defs" / "big").mkdir()
    (package / "defs" / "big" / "defs.yaml").write_text(DEFS_YAML)
    (folder / "plain.py").write_text(PLAIN.replace("TABLES", str(tables)))


def load(
    folder: Path, module: str, environment: dict[str, str], expected: int
) -> tuple[float, float]:
    """Return the seconds of a new process that loads a module, and those of its processor."""
    before, began = _of_children(), time.perf_counter()
    finished = subprocess.run(
        [sys.executable, "-c", CODE_SERVER.replace("MODULE", module)],
        cwd=folder,
        env={**os.environ, **environment, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert int(finished.stdout) == expected, finished.stdout
    return time.perf_counter() - began, _of_children() - before


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
