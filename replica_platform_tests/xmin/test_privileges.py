"""A source role needs SELECT only; a missing privilege is named."""

from collections.abc import Iterator

import psycopg
import pytest

from replica_platform.app.embedded import Server
from replica_platform.xmin import Proving, TableSpec, forget, status, sync, sync_group, validate
from replica_platform.xmin.errors import CannotSync, MissingGrant
from replica_platform_tests.xmin.helpers import execute, rows


@pytest.fixture
def reader(server: Server, source: str) -> Iterator[str]:
    """The DSN of a role without privileges on tables."""
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute('drop role if exists "Odd reader"')
        admin.execute('create role "Odd reader" login')
        execute(source, 'grant usage on schema public to "Odd reader"')
        yield source.replace("postgres@", "Odd%20reader@")
    execute(source, 'drop owned by "Odd reader"')
    execute(server.dsn(), 'drop role "Odd reader"')


def test_select_is_enough(source: str, target: str, reader: str) -> None:
    execute(
        source,
        "create schema s",
        "create table s.t (id int primary key, x text)",
        "insert into s.t select i, 'x' from generate_series(1, 100) i",
        'grant usage on schema s to "Odd reader"',
        'grant select on s.t to "Odd reader"',
    )
    assert sync(reader, target, "s.t").rows == 100
    with psycopg.connect(source) as slow:
        slow.execute("insert into s.t values (101, 'slow')")
        execute(source, "delete from s.t where id = 1", "update s.t set x = 'y' where id = 2")
        report = sync(reader, target, "s.t")
        assert (report.mode, report.rows_updated, report.rows_deleted) == ("scan", 1, 1)
        assert "holds W back" in str(validate(reader, target, "s.t").held_back_by)
    sync(reader, target, "s.t")
    assert validate(reader, target, "s.t").in_sync


def test_the_missing_grant_is_named(source: str, target: str, reader: str) -> None:
    execute(source, "create schema s", 'create table s."T x" (id int primary key)')
    with pytest.raises(MissingGrant, match='GRANT USAGE ON SCHEMA "s" TO "Odd reader"'):
        sync(reader, target, 's."T x"')
    execute(source, 'grant usage on schema s to "Odd reader"')
    with pytest.raises(MissingGrant, match=r'GRANT SELECT ON TABLE "s"\."T x" TO "Odd reader"'):
        sync(reader, target, 's."T x"')
    execute(source, 'grant select on s."T x" to "Odd reader"')
    assert sync(reader, target, 's."T x"').rows == 0


def test_a_group_syncs_the_tables_that_may_be_read(source: str, target: str, reader: str) -> None:
    execute(
        source,
        "create table a (id int primary key)",
        "create table b (id int primary key)",
        'grant select on a to "Odd reader"',
    )
    group = sync_group(reader, target, [TableSpec("b"), TableSpec("a")])
    assert list(group.reports) == ["public.a"]
    assert "GRANT SELECT" in group.failures["public.b"]


def test_rows_hidden_by_a_policy_are_not_deleted(source: str, target: str, reader: str) -> None:
    """Row security would filter silently; the sync fails instead."""
    execute(
        source,
        "create table t (id int primary key)",
        "insert into t values (1), (2)",
        'grant select on t to "Odd reader"',
    )
    sync(reader, target, "t")
    execute(
        source,
        "alter table t enable row level security",
        "create policy one on t using (id = 1)",
    )
    with pytest.raises((MissingGrant, CannotSync), match="row-level security"):
        sync(reader, target, "t")
    assert rows(target, "select count(*) from t") == [(2,)]


def test_a_target_role_without_create_gets_the_grant_named(
    source: str, target: str, server: Server, reader: str
) -> None:
    execute(source, "create table t (id int primary key)")
    with pytest.raises(MissingGrant, match="GRANT CREATE ON DATABASE"):
        sync(source, target.replace("postgres@", "Odd%20reader@"), "t")


@pytest.mark.parametrize("partitioned", [False, True])
def test_a_policy_of_the_table_is_refused_before_a_row_is_read(
    partitioned: bool, source: str, target: str, reader: str
) -> None:
    """The leaves are read one by one, and a policy of the parent does not filter them."""
    execute(
        source,
        f"create table t (id int primary key) {'partition by range (id)' if partitioned else ''}",
        *(["create table p partition of t default"] if partitioned else []),
        "insert into t select generate_series(1, 100)",
        'grant select on all tables in schema public to "Odd reader"',
        "alter table t enable row level security",
        "create policy half on t using (id <= 50)",
    )
    with pytest.raises(MissingGrant, match=r"row-level security.*public\.t.*BYPASSRLS"):
        sync(reader, target, "t")
    assert rows(target, "select to_regclass('t') is null") == [(True,)]
    with pytest.raises(MissingGrant, match="row-level security"):
        validate_after_sync_by_another_role(source, target, reader)
    execute(source, 'alter role "Odd reader" bypassrls')
    assert sync(reader, target, "t").rows == 100


def validate_after_sync_by_another_role(source: str, target: str, reader: str) -> None:
    sync(source, target, "t")
    validate(reader, target, "t")


@pytest.fixture
def limited(server: Server, source: str, target: str) -> Iterator[tuple[str, str]]:
    """The DSNs of two roles that have what docs/xmin.md lists, and nothing else."""
    name = {dsn: dsn.split("@/")[1].split("?")[0] for dsn in (source, target)}
    roles = ("limited_reader", "limited_writer")
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        for dsn, role in zip((source, target), roles, strict=True):
            admin.execute(f"create role {role} login")  # type: ignore[arg-type]
            admin.execute(f"revoke all on database {name[dsn]} from public")  # type: ignore[arg-type]
            admin.execute(f"grant connect on database {name[dsn]} to {role}")  # type: ignore[arg-type]
        try:
            yield (
                source.replace("postgres@", f"{roles[0]}@"),
                target.replace("postgres@", f"{roles[1]}@"),
            )
        finally:
            for dsn, role in zip((source, target), roles, strict=True):
                execute(dsn, f"drop owned by {role} cascade")
                admin.execute(f"drop role {role}")  # type: ignore[arg-type]
                admin.execute(  # type: ignore[call-overload]
                    f"grant temporary, connect on database {name[dsn]} to public"
                )


def fill(source: str) -> None:
    execute(
        source,
        "create table t (id int primary key, x text) partition by range (id)",
        "create table t1 partition of t for values from (0) to (100)",
        "create table t2 partition of t for values from (100) to (2000)",
        "create type mood as enum ('good')",
        "create table bag (a int, m mood)",
        "insert into t select i, 'x' from generate_series(0, 999) i",
        "insert into bag values (1, 'good'), (1, null)",
        "grant usage on schema public to limited_reader",
        "grant select on t, t1, t2, bag to limited_reader",
    )


WHOLE = "grant create, temporary on database xmin_target to limited_writer"
NARROW = [
    "grant temporary on database xmin_target to limited_writer",
    "create schema replica_platform authorization limited_writer",
    "create schema copy authorization limited_writer",
    "grant usage, create on schema public to limited_writer",  # for the type
]


@pytest.mark.parametrize("grants", [[WHOLE, NARROW[3]], NARROW])
def test_exactly_the_listed_privileges_are_enough(
    grants: list[str], source: str, target: str, limited: tuple[str, str]
) -> None:
    fill(source)
    execute(target, *grants)
    reader, writer = limited
    specs = [TableSpec("t", into="copy"), TableSpec("bag", into="copy")]
    prove = Proving(within_s=0)
    assert sync_group(reader, writer, specs, prove=prove).ok
    execute(
        source,
        "delete from t where id = 1",
        "update t set x = 'y' where id = 2",
        "alter table t add column more int default 3",
        "alter type mood add value 'better'",
        "delete from bag where m is null",
    )
    group = sync_group(reader, writer, specs, atomic=True, prove=prove)
    assert group.ok, group.failures
    assert group.reports["copy.t"].rows_deleted == 1
    execute(target, "update copy.t set x = 'z' where id = 3")
    assert sync(reader, writer, "t", into="copy", prove=prove).rows_updated == 1
    assert sync(reader, writer, "t", into="copy", mode="full").mode == "full"
    for table in ("t", "bag"):
        assert validate(reader, writer, table, into="copy", content=True).in_sync
    assert status(writer)
    assert forget(writer, "copy.t")


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        (NARROW[0], "permission denied to create temporary tables"),
        (NARROW[1], "GRANT CREATE ON DATABASE"),
        (NARROW[2], "GRANT CREATE ON DATABASE"),
        (NARROW[3], "permission denied for schema public"),
    ],
)
def test_each_of_them_is_needed_and_named(
    missing: str, sentence: str, source: str, target: str, limited: tuple[str, str]
) -> None:
    fill(source)
    execute(target, *(grant for grant in NARROW if grant != missing))
    reader, writer = limited
    specs = [TableSpec("t", into="copy"), TableSpec("bag", into="copy")]
    with pytest.raises(MissingGrant, match=sentence):
        failed = sync_group(reader, writer, specs).failures
        execute(source, "delete from t where id = 1")
        failed = failed or sync_group(reader, writer, specs).failures
        assert failed
        raise MissingGrant(str(failed))
    execute(target, missing)
    group = sync_group(reader, writer, specs)
    assert group.ok, group.failures


def test_a_leaf_that_may_not_be_read_is_named(
    source: str, target: str, limited: tuple[str, str]
) -> None:
    fill(source)
    execute(source, "revoke select on t2 from limited_reader")
    with pytest.raises(MissingGrant, match="t2"):
        sync(limited[0], target, "t", into="copy")
