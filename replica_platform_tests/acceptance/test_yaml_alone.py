"""A platform of the user's own, without the sample, by YAML alone and through the daemon.

Two sources (one of 173 tables, by pattern), two masters, three nodes with outboxes, and three
SQLite files that are backed up at two times.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest
from psycopg import sql

import replica_platform
from replica_platform.app.embedded import server_at
from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import Outbox
from replica_platform.replica import Master
from replica_platform_tests.acceptance.pages import Pages, environment

PACKAGE = Path(replica_platform.__file__).parent
TABLES = 173
NODES = ("web", "batch", "mobile")
# Few runs a minute: on a loaded machine, one takes that long.
EVEN, ODD, EVERY = '"*/2 * * * *"', '"1-59/2 * * * *"', '"* * * * *"'
ENTRIES = {
    "crm": f"""
type: replica_platform.components.XminTables
attributes:
  name: crm
  into: crm
  tables: [{{table: public.customer, left_out: [password]}}]
  cron_schedule: {EVEN}
""",
    "erp": f"""
type: replica_platform.components.XminTables
attributes:
  name: erp
  source: ERP_DSN
  into: erp
  tables: [{{table: public.*, exclude: [public.secret_*]}}]
  cron_schedule: {EVERY}
  catalog_cron_schedule: {ODD}
""",
    "masters": """
type: replica_platform.components.DuckDBReplica
attributes: {name: sales, master: masters/sales.duckdb, link: sales.db, repair_interval_s: 10}
---
type: replica_platform.components.DuckDBReplica
attributes:
  name: stock
  master: masters/stock.duckdb
  required: [item]
  rules: {"no item is negative": select * from item where n < 0}
  repair_interval_s: 10
""",
    "outbox": """
type: replica_platform.components.WorkerOutboxes
attributes:
  name: conversations
  nodes: {web: nodes/web, batch: nodes/batch, mobile: nodes/mobile}
  sensor_interval_s: 10
""",
    "files": f"""
type: replica_platform.components.SqliteBackups
attributes:
  name: early
  files: [{{path: a/app.db}}, {{path: b/app.db}}]
  cron_schedule: {EVEN}
---
type: replica_platform.components.SqliteBackups
attributes: {{name: late, files: [{{path: c/app.db}}], cron_schedule: {ODD}}}
""",
}
LOAD = "from replica_platform.definitions import defs; defs().get_repository_def()"
CHECKS = """
query { assetNodes { assetKey { path } assetChecksOrError { ... on AssetChecks { checks {
    name executionForLatestMaterialization { evaluation { success description } }
} } } } }
"""
RELOAD = """
mutation ($name: String!) { reloadRepositoryLocation(repositoryLocationName: $name) { __typename } }
"""
WITHIN_S = 600.0


class Own:
    """The user's project: a copy without the sample, the folder of data, and the databases."""

    def __init__(self, folder: Path, source: str, erp: str) -> None:
        self.project, self.data, self.source, self.erp = folder / "p", folder / "data", source, erp
        package = self.project / "replica_platform"
        shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "sample"))
        for name in ("pyproject.toml", "dagster.yaml"):
            shutil.copy(PACKAGE.parent / name, self.project)
        for name, text in ENTRIES.items():
            (package / "defs" / name).mkdir(exist_ok=True)
            (package / "defs" / name / "defs.yaml").write_text(text)
        self.environment = environment(self.data) | {
            "PYTHONPATH": str(self.project),
            "REPLICA_SOURCE_DSN": source,
            "ERP_DSN": erp,
        }

    def call(self, *command: object) -> subprocess.CompletedProcess[str]:
        """Run the `replica` command, or Python."""
        return subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=self.project,
            env=self.environment,
            capture_output=True,
            text=True,
        )

    def replica(self, *command: object) -> subprocess.CompletedProcess[str]:
        return self.call("-m", "replica_platform.cli.main", *command)

    def target(self, query: str) -> Any:
        """Return the first value of a query of the target; None if it fails."""
        try:
            with psycopg.connect(server_at(self.data / "postgres").dsn("warehouse")) as target:
                row = target.execute(query).fetchone()  # type: ignore[arg-type]
        except psycopg.Error:
            return None
        return row[0] if row else None

    def published(self, link: str, query: str) -> Any:
        """Return the first value of a query through the link of a replica; None if it fails."""
        path = self.data / "replica" / link
        if not path.exists():
            return None
        with duckdb.connect(str(path), read_only=True) as reader:
            row = reader.execute(query).fetchone()
        return row[0] if row else None

    def backups(self) -> set[str]:
        """Return the folders that hold a backup."""
        folder = self.data / "backups"
        return {str(path.parent.relative_to(folder)) for path in folder.rglob("*.db")}


@pytest.fixture
def own(folder: Path, database: Callable[[str], str]) -> Own:
    own = Own(folder, database("crm"), database("erp"))
    with psycopg.connect(own.source) as connection:
        connection.execute("create table customer (id int primary key, name text, password text)")
        connection.execute("insert into customer values (1, 'Ada', 'secret')")
    with psycopg.connect(own.erp) as connection:
        for number in range(TABLES):
            name = sql.Identifier(f"t_{number}")
            connection.execute(sql.SQL("create table {} (id int primary key, n int)").format(name))
            connection.execute(sql.SQL("insert into {} values (1, 10), (2, 20)").format(name))
        connection.execute("create table secret_1 (id int primary key)")
    for name, table in (("sales", "sale"), ("stock", "item")):
        with Master(own.data / "masters" / f"{name}.duckdb").write() as master:
            master.execute(f"create table {table} as select range n from range(100)")
    for node in NODES:
        append(own, node, 1)
    for name in ("a", "b", "c"):
        (own.data / name).mkdir()
        with closing(sqlite3.connect(own.data / name / "app.db", isolation_level=None)) as file:
            file.execute("create table t (x)")
    return own


def append(own: Own, node: str, n: int) -> None:
    with Outbox(own.data / "nodes" / node / "worker-1.db") as outbox:
        outbox.append("note", {"n": n})


def wait_for(wanted: dict[str, object], found: Callable[[], dict[str, object]]) -> None:
    """Wait until all that is wanted is found."""
    until = time.monotonic() + WITHIN_S
    while (seen := found()) != wanted:
        assert time.monotonic() < until, seen
        time.sleep(2)


TABLES_OF_ERP = "select count(*) from pg_tables where schemaname = 'erp'"


@pytest.mark.timeout(1800)
def test_a_platform_by_yaml_alone(own: Own, port: int) -> None:
    checked = own.replica("env", "dg", "check", "yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    checked = own.replica("env", "dg", "check", "defs")
    assert checked.returncode == 0, checked.stdout + checked.stderr

    with Pages(port, own.environment, own.project) as pages:
        repository = pages.repository()
        assert {
            schedule["name"]: schedule["scheduleState"]["status"]
            for schedule in repository["schedules"]
        } == dict.fromkeys(
            [
                *("crm_sync", "erp_sync", "erp_new_tables", "outbox_drain", "sales_scrub"),
                *("stock_scrub", "early_nightly", "late_nightly", "housekeeping"),
            ],
            "RUNNING",
        )
        sensors = {one["name"]: one["sensorState"]["status"] for one in repository["sensors"]}
        assert {"outbox_backlog", "sales_repair", "stock_repair"} <= sensors.keys()
        assert set(sensors.values()) == {"RUNNING"}

        def state() -> dict[str, object]:
            return {
                "customer": own.target("select name from crm.customer"),
                "tables": own.target(TABLES_OF_ERP),
                "sum": own.target("select sum(n) from erp.t_172"),
                "sales": own.published("sales/sales.db", "select count(*) from sale"),
                "stock": own.published("stock/stock.db", "select count(*) from item"),
                "records": own.target("select count(*) from outbox.record"),
                "backups": own.backups(),
            }

        arrived: dict[str, object] = {
            "customer": "Ada", "tables": TABLES, "sum": 30, "sales": 100, "stock": 100,
            "records": 3, "backups": {"early", "early/b_app", "late"},
        }  # fmt: skip
        wait_for(arrived, state)
        assert not own.target(
            "select 1 from pg_attribute where attname = 'password' and attnum > 0"
            " and attrelid = 'crm.customer'::regclass"
        )

        # What changes arrives too; a broken rule keeps readers where they are.
        with psycopg.connect(own.erp) as erp:
            erp.execute("update t_172 set n = 70 where id = 2")
            erp.execute("create table added (id int primary key)")
        with Master(own.data / "masters" / "sales.duckdb").write() as master:
            master.execute("insert into sale values (100)")
        append(own, "mobile", 2)
        # Another process asks the source, and keeps a list of tables that this server has not.
        loaded = own.replica("env", sys.executable, "-W", "ignore", "-c", LOAD)
        assert loaded.returncode == 0, loaded.stderr
        wait_for(arrived | {"sum": 80, "sales": 101, "records": 4}, state)

        # Runs have the tables of the code server, and the check names the new one.
        wait_for(
            {"found": "public.added: new in the source, and not synced yet. Reload the "
             "definitions (Deployment, Reload; or start `replica dev`)."},
            lambda: {"found": check_of_catalog(pages)},
        )  # fmt: skip
        assert own.target(TABLES_OF_ERP) == TABLES
        reloaded = pages.ask(RELOAD, name=repository["location"]["name"])
        assert reloaded["reloadRepositoryLocation"]["__typename"] == "WorkspaceLocationEntry"
        wait_for({"tables": TABLES + 1}, lambda: {"tables": own.target(TABLES_OF_ERP)})

        def health() -> dict[str, object]:
            found = json.loads(own.replica("status", "--json").stdout)
            return {one["pillar"]: one["sentence"] for one in found if not one["ok"]}

        wait_for({}, health)


def check_of_catalog(pages: Pages) -> str | None:
    """Return what the check of the list of tables says, once it has run."""
    for node in pages.ask(CHECKS)["assetNodes"]:
        if node["assetKey"]["path"] == ["erp_catalog"]:
            (check,) = node["assetChecksOrError"]["checks"]
            done = check["executionForLatestMaterialization"] or {}
            return (done.get("evaluation") or {}).get("description")
    return None
