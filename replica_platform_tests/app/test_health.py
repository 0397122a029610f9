"""What `replica status` finds: what is configured, each entry with its own budget."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from dagster._daemon.types import DaemonHeartbeat

from replica_platform.app.configured import configured
from replica_platform.app.entries import WorkerOutboxesEntry
from replica_platform.app.health import Health, platform_health
from replica_platform.app.settings import Settings
from replica_platform.backup import backup
from replica_platform.core.sqlite import sqlite3
from replica_platform.history import Sample, record
from replica_platform.outbox import Outbox, drain
from replica_platform.replica import Master, Purpose, publish
from replica_platform.xmin import TableSpec, forget, standings, sync_group

TABLES = """
type: replica_platform.components.XminTables
attributes:
  name: {name}
  into: {into}
  cron_schedule: "{cron}"
  tables: [{tables}]
"""


class Folder:
    """A platform's settings and a folder of `defs.yaml` files."""

    def __init__(self, tmp_path: Path, source: str, target: str, dagster: str) -> None:
        self.settings = Settings(
            data_dir=tmp_path / "data",
            source_dsn=source,
            target_dsn=target,
            dagster_dsn=dagster,
            _env_file=None,
        )
        self.defs = tmp_path / "defs"
        self.defs.mkdir()
        self.settings.data_dir.mkdir()

    def write(self, name: str, text: str) -> None:
        (self.defs / name).mkdir(exist_ok=True)
        (self.defs / name / "defs.yaml").write_text(text)

    def tables(
        self, *names: str, group: str = "fds", into: str = "raw", cron: str = "*/5 * * * *"
    ) -> None:
        listed = ", ".join(f"{{table: {name}}}" for name in names)
        self.write(group, TABLES.format(name=group, into=into, cron=cron, tables=listed))

    def sync(self, *names: str, into: str = "raw") -> None:
        with psycopg.connect(self.settings.source) as source:
            for name in names:
                source.execute(f"create table if not exists {name} (id int primary key)")
        specs = [TableSpec(name, into=into) for name in names]
        report = sync_group(self.settings.source, self.settings.target, specs)
        assert not report.failures

    def age(self, target_table: str, interval: str) -> None:
        with psycopg.connect(self.settings.target) as target:
            target.execute(
                "update replica_platform.mark set synced_at = now() - %s::interval"
                " where target_table = %s",
                (interval, target_table),
            )

    def daemon_ran(self, seconds_ago: float) -> None:
        """Let Dagster's daemon have given a sign of life."""
        storage = {"postgres": {"postgres_url": self.settings.dagster}}
        (self.defs.parent / "dagster.yaml").write_text(
            json.dumps({"storage": storage, "telemetry": {"enabled": False}})
        )
        with dg.DagsterInstance.from_config(str(self.defs.parent)) as instance:
            instance.add_daemon_heartbeat(
                DaemonHeartbeat(time.time() - seconds_ago, "SENSOR", "d", [])
            )

    def health(self) -> dict[str, Health]:
        found = platform_health(self.settings, configured(self.defs))
        return {one.pillar: one for one in found}


@pytest.fixture
def folder(tmp_path: Path, source: str, target: str, database: Callable[[str], str]) -> Folder:
    return Folder(tmp_path, source, target, database("dagster"))


def test_only_what_is_configured_is_looked_at(folder: Folder) -> None:
    assert set(folder.health()) == {"dagster"}
    folder.tables("public.a")
    assert set(folder.health()) == {"warehouse", "dagster"}


@pytest.mark.parametrize(
    ("cron", "age", "ok"),
    [
        ("*/5 * * * *", "4 minutes", True),
        ("*/5 * * * *", "16 minutes", False),
        ("0 3 * * *", "47 hours", True),
        ("0 3 * * *", "73 hours", False),
        ("@hourly", "30 minutes", True),
        ("@hourly", "181 minutes", False),
    ],
)
def test_a_table_is_late_after_three_missed_ticks(
    folder: Folder, cron: str, age: str, ok: bool
) -> None:
    folder.daemon_ran(seconds_ago=1)
    folder.tables("public.a", cron=cron)
    folder.sync("public.a")
    folder.age("raw.a", age)
    found = folder.health()["warehouse"]
    assert found.ok is ok, found.sentence
    assert ok or "should have run 3 times since" in found.sentence
    assert ok or "The daemon runs, so see in the Dagster UI whether the" in found.sentence


def test_a_late_table_is_idle_where_no_daemon_has_ever_run(folder: Folder) -> None:
    folder.tables("public.a")
    folder.sync("public.a")
    assert not folder.health()["warehouse"].idle
    folder.age("raw.a", "20 minutes")
    found = folder.health()["warehouse"]
    assert found.ok and found.idle
    assert "the last sync was 20 minutes ago" in found.sentence
    assert (
        "No daemon has run here, so no schedule does; start it with `replica dev`."
        in found.sentence
    )


def test_real_staleness_is_red_without_a_daemon_too(folder: Folder) -> None:
    folder.tables("public.a", "public.b")
    folder.sync("public.a", "public.b")
    folder.age("raw.a", "25 hours")
    found = folder.health()["warehouse"]
    assert not found.ok and not found.idle
    assert "raw.a was synced" in found.sentence and "start it with `replica dev`" in found.sentence


def test_a_late_table_is_red_when_the_daemon_was_stopped(folder: Folder) -> None:
    folder.daemon_ran(seconds_ago=3600)
    folder.tables("public.a")
    folder.sync("public.a")
    folder.age("raw.a", "20 minutes")
    found = folder.health()["warehouse"]
    assert not found.ok and not found.idle
    assert (
        "The daemon does not run, so no schedule does; start it with `replica dev`"
        in found.sentence
    )


def test_waiting_records_are_idle_where_no_daemon_has_ever_run(folder: Folder) -> None:
    folder.write(
        "outbox",
        "type: replica_platform.components.WorkerOutboxes\nattributes: {nodes: {web: outbox}}\n",
    )
    file = folder.settings.data_dir / "outbox" / "w.db"
    with Outbox(file) as outbox:
        outbox.append("note", {"n": 1})

    def wait(hours: int) -> Health:
        with sqlite3.connect(file) as connection:
            connection.execute("update record set created_at = created_at - ?", [hours * 3600])
        connection.close()
        return folder.health()["outbox"]

    idle = wait(hours=1)
    assert idle.ok and idle.idle
    assert "`replica dev`. Or run `replica drain`." in idle.sentence
    red = wait(hours=24)
    assert not red.ok and not red.idle
    assert "The oldest record of web waits" in red.sentence


def test_each_group_has_its_own_budget(folder: Folder) -> None:
    folder.daemon_ran(seconds_ago=1)
    folder.tables("public.quick")
    folder.tables("public.slow", group="nightly", cron="0 3 * * *")
    folder.sync("public.quick", "public.slow")
    folder.age("raw.slow", "1 hour")
    assert folder.health()["warehouse"].ok
    folder.age("raw.quick", "1 hour")
    found = folder.health()["warehouse"]
    assert not found.ok
    assert "raw.quick" in found.sentence and "raw.slow" not in found.sentence


def test_the_last_and_the_least_recent_sync_are_told_apart(folder: Folder) -> None:
    folder.tables("public.a", "public.b", cron="0 3 * * *")
    folder.sync("public.a", "public.b")
    folder.age("raw.a", "10 minutes")
    folder.age("raw.b", "3 minutes")
    assert (
        "the last sync was 3 minutes ago, the least recent 10 minutes ago"
        in folder.health()["warehouse"].sentence
    )


def test_a_configured_table_that_was_never_synced_is_red(folder: Folder) -> None:
    folder.tables("public.a", "public.b")
    folder.sync("public.a")
    found = folder.health()["warehouse"]
    assert not found.ok
    assert "raw.b was never synced" in found.sentence


def test_a_table_that_left_the_yaml_is_named_until_it_is_forgotten(folder: Folder) -> None:
    folder.tables("public.a")
    folder.sync("public.a", "public.gone")
    folder.age("raw.gone", "9 days")
    found = folder.health()["warehouse"]
    assert found.ok
    assert "No longer configured: raw.gone; `replica forget-table raw.gone`" in found.sentence
    assert forget(folder.settings.target, "raw.gone")
    assert not forget(folder.settings.target, "raw.gone")
    assert [one.target_table for one in standings(folder.settings.target)] == ["raw.a"]
    assert "raw.gone" not in folder.health()["warehouse"].sentence
    with psycopg.connect(folder.settings.target) as target:
        assert target.execute("select count(*) from raw.gone").fetchone() == (0,)


def test_every_node_is_looked_at(folder: Folder) -> None:
    folder.write(
        "outbox",
        "type: replica_platform.components.WorkerOutboxes\n"
        "attributes: {nodes: {web: outbox, batch: outbox_batch}}\n",
    )
    folder.daemon_ran(seconds_ago=1)
    data = folder.settings.data_dir
    with Outbox(data / "outbox" / "w.db") as outbox:
        outbox.append("note", {"n": 1})
    drain([data / "outbox"], folder.settings.target)
    found = folder.health()["outbox"]
    assert not found.ok
    assert "outbox_batch, the folder of batch" in found.sentence
    with Outbox(data / "outbox_batch" / "w.db") as outbox:
        outbox.append("note", {"n": 2})
    assert folder.health()["outbox"].ok
    with sqlite3.connect(data / "outbox_batch" / "w.db") as connection:
        connection.execute("update record set created_at = created_at - 3600")
    connection.close()
    late = folder.health()["outbox"]
    assert not late.ok
    assert "The oldest record of batch waits" in late.sentence


def test_outboxes_of_another_host_are_judged_by_what_its_runs_recorded(folder: Folder) -> None:
    folder.write(
        "outbox",
        "type: replica_platform.components.WorkerOutboxes\n"
        "attributes: {name: visits, host: eu, nodes: {web: outbox}, backlog_within_s: 900}\n",
    )

    def seen(**values: float) -> Health:
        samples = [Sample(series, "visits/web", value) for series, value in values.items()]
        record(folder.settings.target, samples)
        return folder.health()["outbox on eu"]

    # The folder is not on this machine, and nobody has looked at it yet.
    silent = folder.health()
    assert "outbox" not in silent
    assert silent["outbox on eu"].sentence == (
        "visits/web was not looked at within two hours; see `replica cluster status`."
    )
    well = seen(pending=12, dead=0, oldest_s=40)
    assert well.ok
    assert well.sentence == "Up to 12 records waited within two hours."
    late = seen(pending=90_000, dead=0, oldest_s=7200)
    assert not late.ok and "A record of visits/web waited for 2 h" in late.sentence
    refused = seen(pending=90_000, dead=3, oldest_s=7200)
    assert not refused.ok and "Up to 3 records of visits/web were refused" in refused.sentence


@pytest.mark.parametrize(
    ("host", "looked_at"),
    [
        (None, "outbox of none"),
        ("central", "outbox of none"),
        ("eu", "outbox of eu"),
        ("us", None),
    ],
)
def test_each_host_looks_at_its_own_folders(
    folder: Folder, host: str | None, looked_at: str | None
) -> None:
    entry = "type: replica_platform.components.WorkerOutboxes\nattributes: "
    folder.write("here", entry + "{name: here, nodes: {web: outbox of none}}\n")
    folder.write("there", entry + "{name: there, host: eu, nodes: {web: outbox of eu}}\n")
    found = configured(folder.defs, host=host)
    folders = [node for one in found.here(WorkerOutboxesEntry) for node in one.nodes.values()]
    assert folders == ([looked_at] if looked_at else [])


def test_every_file_needs_its_own_backup(folder: Folder) -> None:
    folder.write(
        "backups",
        "type: replica_platform.components.SqliteBackups\n"
        "attributes: {files: [{path: a.db}, {path: b.db}]}\n",
    )
    data = folder.settings.data_dir
    for name in ("a", "b"):
        with sqlite3.connect(data / f"{name}.db") as connection:
            connection.execute("create table t (a)")
        connection.close()
    backup(data / "a.db", folder.settings.backup_dir)
    found = folder.health()["backups"]
    assert not found.ok
    assert "b.db was never backed up" in found.sentence and "a.db" not in found.sentence
    backup(data / "b.db", folder.settings.backup_dir)
    assert folder.health()["backups"].ok
    (manifest,) = folder.settings.backup_dir.glob("b_backup_*.json")
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "taken_at": "2020-01-01T00:00:00+00:00"}))
    old = folder.health()["backups"]
    assert not old.ok
    assert "b.db was backed up" in old.sentence and "a.db" not in old.sentence


def test_a_purpose_without_its_replica_is_red(folder: Folder) -> None:
    part = {"tables": {"t": {"columns": ["a"]}}}
    folder.write(
        "purposes",
        "type: replica_platform.components.PurposeReplicas\n"
        f"attributes: {json.dumps({'master': 'm.duckdb', 'purposes': {'quotes': part}})}\n",
    )
    master = folder.settings.path("m.duckdb")
    with Master(master).write() as connection:
        connection.execute("create table t as select 1 a")
    store = folder.settings.store / "purposes" / "quotes"
    publish(master, store, purpose=Purpose.from_dict("quotes", part))
    assert folder.health()["purposes"].ok
    (generation,) = (store / "generations").glob("*.duckdb")
    generation.unlink()
    found = folder.health()["purposes"]
    assert not found.ok
    assert "quotes: " in found.sentence
