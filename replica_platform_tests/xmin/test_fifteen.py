"""The oldest supported server, where the machine has one: as source, as target, as both."""

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from replica_platform.app import embedded
from replica_platform.app.embedded import Server, server_at
from replica_platform.xmin import sync, validate
from replica_platform.xmin.errors import CannotSync
from replica_platform_tests.xmin.helpers import execute, rows
from replica_platform_tests.xmin.test_zoo import check_zoo

BINARIES = Path("/usr/lib/postgresql/15/bin")


@pytest.fixture
def fifteen() -> Iterator[Server]:
    """A Postgres 15 with the databases source and target."""
    if not BINARIES.exists():
        pytest.skip("no Postgres 15 on this machine")
    with tempfile.TemporaryDirectory(prefix="rp-") as folder:
        data = Path(folder) / "pg15"
        embedded.private_folder(data)
        run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync",
            "--locale=C.UTF-8")  # fmt: skip
        options = f"-k {data} -c listen_addresses='' -c fsync=off"
        run("pg_ctl", "start", "-w", "-s", "-D", data, "-l", data / "log", "-o", options)
        try:
            server = server_at(data)
            execute(server.dsn(), "create database source", "create database target")
            yield server
        finally:
            run("pg_ctl", "stop", "-w", "-s", "-D", data, "-m", "immediate")


def run(program: str, *arguments: object) -> None:
    """Run one of its programs as the user of the server."""
    user = embedded.system_user()
    subprocess.run(
        [str(BINARIES / program), *map(str, arguments)],
        check=True,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        user=user.pw_name if user else None,
        group=user.pw_gid if user else None,
        extra_groups=[] if user else None,
    )


def test_fifteen(fifteen: Server, source: str, target: str) -> None:
    check_zoo(fifteen.dsn("source"), target)
    check_zoo(source, fifteen.dsn("target"))
    old = fifteen.dsn("source")
    execute(old, "delete from zoo where id = 2", "insert into zoo (id) values (9)")
    report = sync(old, target, "zoo")
    assert (report.mode, report.rows_inserted, report.rows_deleted) == ("scan", 1, 1)
    assert validate(old, target, "zoo").in_sync
    execute(fifteen.dsn("target"), "drop table zoo")
    sync(old, fifteen.dsn("target"), "zoo")
    assert validate(old, fifteen.dsn("target"), "zoo").in_sync


XML = ['<a b="ü">text</a>', "just <b/> content", "<!-- a comment --><x/>", ""]


def test_xml(fifteen: Server) -> None:
    """The embedded server has no libxml."""
    old, new = fifteen.dsn("source"), fifteen.dsn("target")
    try:
        execute(old, "select '<a/>'::xml")
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("this Postgres 15 has no libxml")
    execute(old, "create table x (id int primary key, v xml, vs xml[])")
    with psycopg.connect(old, autocommit=True) as connection:
        for number, value in enumerate(XML):
            connection.execute(
                "insert into x values (%s, %s, array[%s::xml])", [number, value, value]
            )
    query = "select id, v::text, vs::text from x order by id"
    sync(old, new, "x")
    assert rows(old, query) == rows(new, query)
    execute(old, "update x set v = '<new/>' where id = 0", "delete from x where id = 1")
    report = sync(old, new, "x")
    assert (report.mode, report.rows_updated, report.rows_deleted) == ("scan", 1, 1)
    assert rows(old, query) == rows(new, query)
    execute(old, "create type pair as (a int)", "alter table x add column p pair[]")
    assert not sync(old, new, "x", mode="full").rows_updated  # as text
    assert validate(old, new, "x").in_sync


def test_a_foreign_table_goes_by_timestamp_or_in_full(fifteen: Server) -> None:
    """The embedded server comes without postgres_fdw."""
    source, target = fifteen.dsn("source"), fifteen.dsn("target")
    try:
        execute(source, "create extension postgres_fdw")
    except psycopg.Error:
        pytest.skip("this Postgres 15 has no postgres_fdw")
    execute(fifteen.dsn(), "create database remote")
    execute(fifteen.dsn("remote"), "create table t (id int primary key, at timestamptz)",
            "insert into t values (1, '2000-01-01'), (2, now())")  # fmt: skip
    execute(
        source,
        "create server remote foreign data wrapper postgres_fdw "
        f"options (host '{fifteen.socket_dir}', dbname 'remote')",
        "create user mapping for postgres server remote options (user 'postgres')",
        "create foreign table t (id int, at timestamptz) server remote",
    )
    first = sync(source, target, "t", timestamp_column="at", key=["id"])
    assert (first.mode, first.rows_inserted) == ("timestamp", 2)
    execute(fifteen.dsn("remote"), "insert into t values (3, now())", "delete from t where id = 1")
    again = sync(source, target, "t", timestamp_column="at", key=["id"])
    assert (again.rows_read, again.rows_inserted, again.rows_deleted) == (2, 1, 1)
    whole = sync(source, target, "t", into="whole")
    assert whole.mode == "full"
    assert "is a foreign table" in whole.why
    assert sync(source, target, "t", into="whole").rows_deleted == 0
    with pytest.raises(CannotSync, match="is a foreign table and has no xmin"):
        sync(source, target, "t", mode="scan")
