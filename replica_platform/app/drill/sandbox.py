"""A temporary project with each pillar, its own Postgres and Dagster's daemon.

It takes no setting and no database of the platform that calls it: what begins with `REPLICA_` or
`DAGSTER_` in the environment is left out.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
import yaml
from dagster._core.scheduler.instigation import InstigatorState
from psycopg import sql

from replica_platform import replica
from replica_platform.app.configured import configured
from replica_platform.app.embedded import Server, binaries, running
from replica_platform.app.entries import XminTablesEntry
from replica_platform.app.launch import PROJECT, end_session
from replica_platform.app.project import find_project, init_project
from replica_platform.backup import backup
from replica_platform.core.errors import TerminalError
from replica_platform.core.postgres import connect
from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import Outbox, drain
from replica_platform.xmin import sync_group

NAME = "drill"
# Shorter than by default, so that a drill takes a minute or two.
LOOKS_EVERY_S = 5
ENTRIES = f"""
type: replica_platform.components.DuckDBReplica
attributes: {{name: deleted, master: deleted.duckdb, repair_interval_s: {LOOKS_EVERY_S}}}
---
type: replica_platform.components.DuckDBReplica
attributes: {{name: corrupted, master: corrupted.duckdb, repair_interval_s: {LOOKS_EVERY_S}}}
---
type: replica_platform.components.WorkerOutboxes
attributes: {{name: orders, nodes: {{local: orders}}, sensor_interval_s: {LOOKS_EVERY_S}}}
---
type: replica_platform.components.WorkerOutboxes
attributes:
  name: visits
  nodes: {{local: visits}}
  target: RESTORED_DSN
  sensor_interval_s: {LOOKS_EVERY_S}
---
type: replica_platform.components.XminTables
attributes:
  name: shop
  into: shop
  target: RESTORED_DSN
  tables: [{{table: public.item}}]
  cron_schedule: "* * * * *"
---
type: replica_platform.components.SqliteBackups
attributes: {{name: backups, files: [{{path: app.db}}], repair_interval_s: {LOOKS_EVERY_S}}}
"""
RECORDS = 20
UP_WITHIN_S = 240.0
# What no process of the sandbox may see of the platform that calls it.
FOREIGN = ("REPLICA_", "DAGSTER_", "XMIN_", "PG")


class DaemonNotUp(TerminalError):
    """Dagster's daemon of the sandbox did not come up."""


@dataclass(frozen=True)
class Sandbox:
    """A running sandbox.

    Attributes:
        folder: The folder of everything.
        server: Its Postgres.
        appended: How many records were appended to each outbox.
    """

    folder: Path
    server: Server
    appended: dict[str, int] = field(default_factory=dict)

    @property
    def project(self) -> Path:
        """The folder of the project, which is Dagster's home too."""
        return self.folder / NAME

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.project / "data"

    @property
    def log(self) -> Path:
        """What the daemon printed."""
        return self.folder / "daemon.log"

    def dsn(self, database: str) -> str:
        """Return the DSN of `source`, `target`, `restored`, `yesterday` or `dagster`."""
        return self.server.dsn(database)

    def environment(self) -> dict[str, str]:
        """Return the environment of the sandbox's processes."""
        kept = {name: one for name, one in os.environ.items() if not name.startswith(FOREIGN)}
        path = [str(Path(sys.executable).parent), kept.get("PATH", os.defpath), str(binaries())]
        return kept | {
            "DAGSTER_HOME": str(self.project),
            "PATH": os.pathsep.join(path),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(PROJECT), kept.get("PYTHONPATH")])),
            "REPLICA_DATA_DIR": str(self.data),
            "REPLICA_SAMPLE": "off",
            "REPLICA_SOURCE_DSN": self.dsn("source"),
            "REPLICA_TARGET_DSN": self.dsn("target"),
            "REPLICA_DAGSTER_DSN": self.dsn("dagster"),
            "RESTORED_DSN": self.dsn("restored"),
        }


@contextmanager
def sandbox(folder: Path | None = None) -> Iterator[Sandbox]:
    """Make a sandbox, with its input synced, published, drained and backed up; the daemon is off.

    Args:
        folder: An empty folder that is kept; a temporary one, removed at the end, if left out.

    Raises:
        EmbeddedPostgresFailed: Its Postgres could not be started.
    """
    with ExitStack() as stack:
        if folder is None:
            made = tempfile.TemporaryDirectory(prefix="replica-drill-", ignore_cleanup_errors=True)
            folder = Path(stack.enter_context(made))
        init_project(folder / NAME, sample=False)
        server = stack.enter_context(running(folder / "postgres"))
        for database in ("source", "target", "restored", "dagster"):
            server.make_database(database)
        box = Sandbox(folder, server)
        _write_project(box)
        _fill(box)
        yield box


def _write_project(box: Sandbox) -> None:
    entries = box.project / NAME / "defs" / "all" / "defs.yaml"
    entries.parent.mkdir()
    entries.write_text(ENTRIES)
    instance = box.project / "dagster.yaml"
    configuration = yaml.safe_load(instance.read_text())
    # Not by a variable: the process that looks at this instance has variables of another platform.
    configuration["storage"]["postgres"]["postgres_url"] = box.dsn("dagster")
    instance.write_text(yaml.safe_dump(configuration))


def _fill(box: Sandbox) -> None:
    """Make the input of each pillar and bring it in step, and keep a copy of the target."""
    box.data.mkdir()
    for name in ("deleted", "corrupted"):
        master = box.data / f"{name}.duckdb"
        with replica.Master(master).write() as connection:
            connection.execute("create table item as select range n from range(10000)")
        replica.publish(master, box.data / "replica" / name, link=f"{name}.db")
    with closing(sqlite3.connect(box.data / "app.db")) as file:
        file.execute("create table visit as select 'ada' member, 1 n")
        file.commit()
    backup(box.data / "app.db", box.data / "backups")
    with connect(box.dsn("source")) as source:
        source.execute("create table item (id int primary key, n int)")
        source.execute("insert into item select i, i from generate_series(1, 1000) i")
    append(box, "orders", RECORDS)
    append(box, "visits", RECORDS)
    _bring_in_step(box)
    with connect(box.dsn("postgres"), autocommit=True) as admin:
        admin.execute(
            sql.SQL("create database {} template {}").format(
                sql.Identifier("yesterday"), sql.Identifier("restored")
            )
        )
    with connect(box.dsn("source")) as source:
        source.execute("update item set n = -n where id <= 100")
        source.execute("delete from item where id > 950")
        source.execute("insert into item select i, i from generate_series(1001, 1100) i")
    append(box, "visits", RECORDS)
    _bring_in_step(box)


def append(box: Sandbox, outbox: str, count: int) -> None:
    """Append records, as a worker does."""
    with Outbox(box.data / outbox / "worker-1.db") as one:
        one.append_many("note", [{"n": n} for n in range(count)])
    box.appended[outbox] = box.appended.get(outbox, 0) + count


def _bring_in_step(box: Sandbox) -> None:
    project = find_project(box.project)
    (group,) = configured(project.defs if project else None).of(XminTablesEntry)
    specs = [group.spec(table) for table in group.tables]
    synced = sync_group(box.dsn("source"), box.dsn("restored"), specs)
    problems = list(synced.failures.values())
    for outbox, target in (("orders", "target"), ("visits", "restored")):
        report = drain([box.data / outbox], box.dsn(target))
        problems += [report.sentence] if report.trouble else []
    if problems:
        raise TerminalError(f"The sandbox could not be filled: {' '.join(problems)}")


@contextmanager
def daemon(box: Sandbox, off: Sequence[str] = ()) -> Iterator[dg.DagsterInstance]:
    """Run Dagster's daemon of a sandbox; yield its instance when the sensors have looked once.

    Args:
        box: The sandbox.
        off: Schedules and sensors to switch off before it starts.

    Raises:
        DaemonNotUp: It ended, or its sensors did not look within `UP_WITHIN_S` seconds.
    """
    for name in off:
        _switch_off(box, name)
    with (
        box.log.open("w") as log,
        dg.DagsterInstance.from_config(str(box.project)) as instance,
    ):
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "dagster-daemon"), "run", "-w", "workspace.yaml"],
            cwd=box.project,
            env=box.environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait_for_ticks(box, process, instance)
            yield instance
        finally:
            end_session(process)


def _switch_off(box: Sandbox, name: str) -> None:
    for kind in ("sensor", "schedule"):
        done = subprocess.run(
            [
                str(Path(sys.executable).parent / "dagster"),
                kind,
                "stop",
                name,
                "-w",
                "workspace.yaml",
            ],
            cwd=box.project,
            env=box.environment(),
            capture_output=True,
            text=True,
        )
        if done.returncode == 0:
            return
    raise TerminalError(
        f"There is no schedule or sensor {name!r} in the sandbox; take one that the column "
        "`noticed by` of a drill names, such as orders_repair."
    )


def _wait_for_ticks(
    box: Sandbox, process: subprocess.Popen[bytes], instance: dg.DagsterInstance
) -> None:
    until = time.monotonic() + UP_WITHIN_S
    while time.monotonic() < until and process.poll() is None:
        states = instance.all_instigator_state()
        if any(instance.get_ticks(*_ids(one), limit=1) for one in states):
            return
        time.sleep(0.5)
    last = " ".join(box.log.read_text(errors="replace").split())[-500:]
    raise DaemonNotUp(f"The daemon of the sandbox did not come up: {last}")


def _ids(state: InstigatorState) -> tuple[str, str]:
    return state.instigator_origin_id, state.selector_id
