"""A snapshot as a DuckDB file: one state of all tables, only when it is newer, published."""

from pathlib import Path

import duckdb
import pytest

from replica_platform.lake import (
    AS_OF,
    Lake,
    LakeMissing,
    LakeWriter,
    SnapshotGone,
    WrongLake,
    export,
    exported,
    pending,
    read_lake,
)
from replica_platform.replica import Master, ReplicaReader, publish
from replica_platform_tests.lake.conftest import MakeLake
from replica_platform_tests.lake.test_write import run


def exporting(lake: Lake, master: Master, **options: bool) -> list[str]:
    """The tables that an export copies."""
    with master.write() as connection:
        return list(export(lake, connection, **options).copied)


def test_what_changed_is_copied_and_published(make_lake: MakeLake, tmp_path: Path) -> None:
    lake, master = make_lake(), Master(tmp_path / "exported.duckdb")
    store = tmp_path / "store"
    with LakeWriter(lake) as writer:
        writer.write(run('create schema "a.b"; create table "a.b"."T ""x" as select 1 as i'))
        writer.write(run("create table t as select range as i, {'k': 'v'} as s from range(5)"))
        assert exporting(lake, master) == ['a.b.T "x', "main.t"]
        first = publish(master.path, store)
        with master.read() as connection:
            assert pending(lake, connection) is None
            held = exported(connection)
            assert held is not None and held.snapshot == 2
            assert connection.execute(AS_OF).fetchone() == (held.committed_at,)
        assert exporting(lake, master) == []
        assert publish(master.path, store).how == "unchanged"

        for statement in ("delete from t where i = 1", "alter table t add column j int default 7"):
            writer.write(run(statement))
            with master.read() as connection:
                assert pending(lake, connection)
            assert exporting(lake, master) == ["main.t"]
        assert publish(master.path, store).generation == first.generation + 1
        with ReplicaReader(store) as reader:
            rows = reader.query("select i, s.k, j from t order by i")
            assert rows == [(i, "v", 7) for i in (0, 2, 3, 4)]
            assert reader.query('from "a.b"."T ""x"') == [(1,)]
            assert reader.query("select snapshot from lake_export.snapshot") == [(4,)]

        writer.write(run('drop table "a.b"."T ""x"'))
        writer.write(run("alter table t rename to u"))
        assert exporting(lake, master) == ["main.u"]
        with master.read() as connection:
            tables = connection.execute(
                "select table_name from duckdb_tables() where schema_name <> 'lake_export'"
            ).fetchall()
        assert tables == [("u",)]

        # A reader that can reach the lake reads a snapshot itself.
        with read_lake(lake, at=2) as connection:
            assert connection.execute("select count(*) from t").fetchone() == (5,)
            with pytest.raises(duckdb.Error, match="read-only"):
                connection.execute("insert into t values (9, null)")
        with pytest.raises(SnapshotGone, match="no snapshot 99"), read_lake(lake, at=99):
            pass


def test_an_export_is_one_snapshot(writer: LakeWriter, table: str, tmp_path: Path) -> None:
    """What is committed in the midst of an export belongs to the next one."""
    other = f"{table}_b"
    writer.write(run(f"create table {other} as select 1 as i; insert into {table} values (1)"))

    class Interrupted:
        """A connection to the file, during whose first copy another process commits."""

        def __init__(self, inner: duckdb.DuckDBPyConnection) -> None:
            self._inner = inner
            self.interrupted = False

        def cursor(self) -> duckdb.DuckDBPyConnection:
            return self._inner.cursor()

        def execute(self, statement: str, *values: object) -> duckdb.DuckDBPyConnection:
            if "create or replace table" in statement and not self.interrupted:
                self.interrupted = True
                both = f"update {table} set i = 2; update {other} set i = 2"
                writer.write(run(both))
            return self._inner.execute(statement, *values)

    with Master(tmp_path / "m.duckdb").write() as connection:
        interrupted = Interrupted(connection)
        export(writer.lake, interrupted)  # type: ignore[arg-type]
        assert interrupted.interrupted
        seen = connection.execute(f"select t.i, o.i from {table} t, {other} o").fetchall()
    assert seen == [(1, 1)]


def test_foreign_files_and_lakes_are_refused(make_lake: MakeLake, tmp_path: Path) -> None:
    lake, master = make_lake(), Master(tmp_path / "m.duckdb")
    with pytest.raises(LakeMissing, match="its first write makes it"):
        exporting(lake, master)
    with LakeWriter(lake) as writer:
        writer.write(run("create table t (i int)"))
        own = Master(tmp_path / "own.duckdb")
        with own.write() as connection:
            connection.execute("create table precious (i int)")
        with pytest.raises(WrongLake, match="has tables of its own"):
            exporting(lake, own)
        assert exporting(lake, master) == ["main.t"]
        another = make_lake("another")
        with LakeWriter(another) as second:
            second.write(run("create table u (i int)"))
        with pytest.raises(WrongLake, match="made anew") as refused:
            exporting(another, master)
        assert "export with new_lineage" in str(refused.value)
        assert exporting(another, master, new_lineage=True) == ["main.u"]
        assert exporting(lake, master, new_lineage=True) == ["main.t"]
        with master.write() as connection:
            connection.execute("update lake_export.snapshot set snapshot = 999")
        with pytest.raises(WrongLake, match="at snapshot 1, and 999 was exported"):
            exporting(lake, master)
        assert exporting(lake, master, new_lineage=True) == []
        writer.write(run("create schema lake_export; create table lake_export.x (i int)"))
        with pytest.raises(WrongLake, match="a schema lake_export"):
            exporting(lake, master)
