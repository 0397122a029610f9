"""What 1,000 and 5,000 tables cost, in one shard and in several.

    python -m benchmarks.scale_tables [--definitions 1000 5000] [--tables 1000] [--assets]

Definitions: seconds of the processor in a new process, for a real source that is asked for its
tables by pattern. Idle syncs: the job of each shard in a worker process that has the definitions
loaded, all at the same time, on a source where a table that is not synced was written before each
sync; seconds of the processor of the workers and of the three databases (source, target, Dagster).
`--assets` adds a job of the same assets, which reports every table in each run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import yaml
from psycopg import sql

from benchmarks.dagster_events import size
from benchmarks.definitions_load import make_projects, make_tables
from benchmarks.xmin_speed import a_server

COLUMNS, ROWS = 10, 10
JOINED = 5  # tables that foreign keys join
SHARDS = {1000: (1, 4), 5000: (1, 8)}
TICKS = os.sysconf("SC_CLK_TCK")

DEFINITIONS = """
import json, time, warnings
warnings.simplefilter("ignore")
from dagster._core.execution.api import create_execution_plan
from dagster._core.remote_representation.external_data import RepositorySnap
from dagster_shared.serdes import serialize_value
from replica_platform.definitions import defs
took, began = {}, 0.0
def lap(name):
    global began
    took[name], began = time.process_time() - began, time.process_time()
lap("imports")
made = defs()
repository = made.get_repository_def()
lap("definitions")
for job in repository.get_all_jobs():
    create_execution_plan(job)
lap("plans of all jobs")
text = serialize_value(RepositorySnap.from_def(repository))
lap("what the pages get")
print(json.dumps([took, len(text)]))
"""

WORKER = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
import dagster as dg
from replica_platform.definitions import defs
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
began = time.process_time()
made = defs()
made.get_repository_def()
print(json.dumps({"loaded": time.process_time() - began}), flush=True)
with dg.DagsterInstance.get() as instance:
    instance.optimize_for_webserver(5000, 3600, 5)
    for line in sys.stdin:
        job = made.resolve_job_def(line.strip())
        cpu, wall = time.process_time(), time.perf_counter()
        result = job.execute_in_process(instance=instance, run_config=QUIET)
        made_by = [e for e in result.all_events if e.is_step_materialization]
        print(json.dumps({"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall,
                          "success": result.success, "reported": len(made_by)}), flush=True)
"""


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--definitions", type=int, nargs="*", default=[1000, 5000])
    parser.add_argument("--tables", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--assets", action="store_true")
    given = parser.parse_args()
    for count in given.definitions:
        definitions(count)
    if given.tables:
        idle(given.tables, given.runs, assets=given.assets)


def definitions(count: int) -> None:
    """Print what the definitions of many tables cost."""
    with a_server() as server, tempfile.TemporaryDirectory(prefix="rp-bench-") as folder:
        make_tables(server.dsn("src"), count, COLUMNS, chain=JOINED)
        for shards in SHARDS.get(count, (1, 4)):
            project = Path(folder) / str(shards)
            environment = make_project(project, shards, server.dsn("src"), server.dsn("dst"))
            printed = subprocess.run(
                [sys.executable, "-c", DEFINITIONS],
                cwd=project, env=environment, check=True, capture_output=True, text=True,
            ).stdout  # fmt: skip
            took, length = json.loads(printed)
            laps = ", ".join(f"{name} {seconds:.2f}" for name, seconds in took.items())
            print(f"{count} tables, {shards} shards, s of CPU: {laps} ({length / 1e6:.1f} MB)")


def make_project(folder: Path, shards: int, source: str, target: str) -> dict[str, str]:
    """Make a copy of the platform with one entry, and return the environment to load it."""
    folder.mkdir()
    make_projects(folder, 0)
    entry = folder / "replica_platform" / "defs" / "big" / "defs.yaml"
    tables = [{"table": "public.*", "exclude": ["public.other"]}]
    attributes = {"name": "big", "into": "big", "tables": tables, "shards": shards}
    kind = "replica_platform.components.XminTables"
    entry.write_text(yaml.safe_dump({"type": kind, "attributes": attributes}))
    return os.environ | {
        "REPLICA_DATA_DIR": str(folder / "data"),
        "REPLICA_SOURCE_DSN": source,
        "REPLICA_TARGET_DSN": target,
        "REPLICA_SAMPLE": "off",
        "PYTHONPATH": str(folder),
        "DAGSTER_HOME": str(folder),
    }


@dataclass
class Platform:
    """A source and a server of the target and of Dagster's database."""

    folder: Path
    source: str
    target: str
    dagster: str
    server_folders: Sequence[Path]

    def sync(self, workers: Sequence["Worker"], jobs: Sequence[str]) -> list[dict[str, float]]:
        """Run a job in each worker at the same time."""
        with psycopg.connect(self.source, autocommit=True) as connection:
            connection.execute("insert into other values (1)")
        for worker, job in zip(workers, jobs, strict=True):
            worker.ask(job)
        done = [worker.answer() for worker in workers]
        assert all(one["success"] for one in done), done
        return done


class Worker:
    """A process that has the definitions loaded and runs jobs."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.answer()

    def ask(self, job: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{job}\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, float]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, "the worker has ended"
        return dict(json.loads(line))

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def idle(tables: int, runs: int, *, assets: bool) -> None:
    """Print what syncs of tables that did not change cost."""
    with databases() as platform:
        make_tables(platform.source, tables, COLUMNS, chain=JOINED)
        with psycopg.connect(platform.source, autocommit=True) as connection:
            connection.execute("create table other (id int)")
            for number in range(tables):
                table = sql.Identifier(f"table_{number}")
                connection.execute(
                    sql.SQL("insert into {} select generate_series(1, {})").format(table, ROWS)
                )
        kinds = [(1, ["big_sync"]), (2, ["big_sync_1", "big_sync_2"])]
        if assets:
            kinds.append((1, ["__ASSET_JOB"]))
        for number, (shards, jobs) in enumerate(kinds):
            measure(platform, tables, shards, jobs, runs, first=not number)


def measure(
    platform: Platform, tables: int, shards: int, jobs: Sequence[str], runs: int, *, first: bool
) -> None:
    """Print the figures of one kind; the first kind has the first copy to do."""
    folder = platform.folder / "_".join(jobs)
    environment = make_project(folder, shards, platform.source, platform.target)
    storage = {"postgres": {"postgres_url": platform.dagster}}
    (folder / "dagster.yaml").write_text(
        yaml.safe_dump({"storage": storage, "telemetry": {"enabled": False}})
    )
    workers = [Worker(folder, environment) for _ in jobs]
    try:
        if first:
            (copied,) = platform.sync(workers, jobs)
            print(
                f"first copy of {tables} tables: {copied['wall']:.0f} s, {copied['cpu']:.0f} s of "
                f"the worker's CPU, {copied['reported']} reported"
            )
        platform.sync(workers, jobs)  # connections and imports
        before, servers = size(platform.dagster), cpu_of(platform.server_folders)
        done = [one for _ in range(runs) for one in platform.sync(workers, jobs)]
        after, servers = size(platform.dagster), cpu_of(platform.server_folders) - servers
    finally:
        for worker in workers:
            worker.end()
    worked = sum(one["cpu"] for one in done)
    wall = sum(one["wall"] for one in done) / runs / len(jobs)
    print(
        f"{tables} idle tables, {' and '.join(jobs)}: {(worked + servers) / runs:.2f} s of CPU "
        f"(workers {worked / runs:.2f}, databases {servers / runs:.2f}), {wall:.1f} s, "
        f"{(after[0] - before[0]) / runs:.0f} events, {(after[1] - before[1]) / runs / 1e3:.0f} kB"
    )


@contextmanager
def databases() -> Iterator[Platform]:
    """Start two servers, since on one of them each commit of the target is one of the source."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rp-bench-")))
        source, target = (stack.enter_context(a_server()) for _ in range(2))
        with psycopg.connect(target.dsn(), autocommit=True) as admin:
            admin.execute("create database dagster")
        yield Platform(
            folder,
            source.dsn("src"),
            target.dsn("dst"),
            target.dsn("dagster"),
            [source.folder, target.folder],
        )


def cpu_of(folders: Sequence[Path]) -> float:
    """Return the seconds of the processor that servers used, with all their processes so far."""
    time.sleep(0.5)  # sessions end after their client
    return sum(
        _cpu_of(int((folder / "postmaster.pid").read_text().split()[0])) for folder in folders
    )


def _cpu_of(postmaster: int) -> float:
    ended = _times(postmaster)
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    return (sum(ended) + sum(sum(_times(int(child))[:2]) for child in children)) / TICKS


def _times(process: int) -> tuple[int, int, int, int]:
    """Return user and system time of a process, then those of its children that ended."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    user, system, children_user, children_system = map(int, fields[11:15])
    return user, system, children_user, children_system


if __name__ == "__main__":
    main()
