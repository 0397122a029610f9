"""A first sync creates schema, table, key, index and watermark, and moves every row."""

import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from replica_platform.xmin import TableSpec, sync, sync_group, validate
from replica_platform_tests.xmin.helpers import execute, rows


def test_everything_is_created_and_every_row_arrives(source: str, target: str) -> None:
    execute(
        source,
        "create table person (id int primary key, name text)",
        "insert into person values (1, 'Ada'), (2, null), (3, '')",
    )

    report = sync(source, target, "public.person", into="copy")

    assert report.mode == "full"
    assert report.why == "There is no watermark of an earlier sync."
    assert (report.rows_read, report.rows_inserted, report.rows) == (3, 3, 3)
    assert report.target_table == "copy.person"
    assert report.changed
    assert rows(target, "select id, name from copy.person order by id") == [
        (1, "Ada"),
        (2, None),
        (3, ""),
    ]
    assert rows(source, "select id, xmin::text::bigint, ctid::text from person order by 1") == rows(
        target, "select id, source_xmin & 4294967295, source_ctid::text from copy.person order by 1"
    )
    assert rows(
        target,
        "select indexdef from pg_indexes where schemaname = 'copy' order by 1",
    ) == [
        ("CREATE INDEX person_source_xmin_idx ON copy.person USING brin (source_xmin)",),
        ("CREATE UNIQUE INDEX person_pkey ON copy.person USING btree (id)",),
    ]
    assert rows(target, "select relpersistence::text from pg_class where relname = 'person'") == [
        ("p",)
    ]
    assert rows(target, "select target_table, w, rows from replica_platform.mark") == [
        ("copy.person", report.w, 3)
    ]


def test_an_empty_table_arrives_too(source: str, target: str) -> None:
    execute(source, "create table nothing (id int primary key)")
    assert sync(source, target, "nothing").rows == 0
    assert rows(target, "select count(*) from nothing") == [(0,)]


# Counts the source's sessions that hold a snapshot, each time a key or an index is created or rows
# of the table `merged` are written.
WATCH = """
create table seen (what text, sessions int);
create function watch_snapshots() returns int language sql as $$
    select pg_stat_clear_snapshot();  -- what one transaction has seen of it is kept
    select count(*)::int from pg_stat_activity where datname = 'xmin_source'
    and application_name = 'replica_platform xmin' and backend_xmin is not null $$;
create function watch() returns event_trigger language plpgsql as $$ begin
    insert into public.seen select tg_tag, public.watch_snapshots(); end $$;
create function watch_rows() returns trigger language plpgsql as $$ begin
    insert into public.seen select 'rows', public.watch_snapshots(); return null; end $$;
create event trigger watch on ddl_command_end when tag in ('CREATE INDEX', 'ALTER TABLE')
    execute function watch();
"""


def test_the_source_is_released_before_the_work_on_the_target(source: str, target: str) -> None:
    execute(
        source,
        "create table t (id int primary key, x text)",
        "insert into t select i, repeat('x', 100) from generate_series(1, 20000) i",
    )
    execute(target, WATCH)
    sync(source, target, "t", workers=2, batch_bytes=65536)
    assert rows(target, "select what, max(sessions) from seen group by 1 order by 1") == [
        ("ALTER TABLE", 0),
        ("CREATE INDEX", 0),
    ]
    assert validate(source, target, "t").in_sync


@pytest.mark.parametrize("atomic", [False, True])
def test_tables_that_need_the_source_to_the_end_go_first(
    atomic: bool, source: str, target: str
) -> None:
    """Deletes are found in the source when the counts differ, which is known late."""
    for table in ("merged", "merged2"):
        execute(source, f"create table {table} (id int primary key)",
                f"insert into {table} select generate_series(1, 100)")  # fmt: skip
        sync(source, target, table)
        execute(source, f"delete from {table} where id = 5",
                f"insert into {table} values (101)")  # fmt: skip
    execute(source, "create table a_new (id int primary key)", "insert into a_new values (1)")
    execute(target, WATCH)
    execute(
        target,
        *(
            f"create trigger watch after insert or delete on {table} for each row "
            "execute function watch_rows()"
            for table in ("merged", "merged2")
        ),
        "truncate seen",
    )
    specs = [TableSpec(table) for table in ("merged", "a_new", "merged2")]
    group = sync_group(source, target, specs, atomic=atomic)
    assert not group.failures
    assert list(group.reports) == ["public.merged", "public.a_new", "public.merged2"]
    seen = rows(target, "select what, min(sessions), max(sessions) from seen group by 1")
    assert dict((what, (least, most)) for what, least, most in seen) == {
        "rows": (1, 1),
        "ALTER TABLE": (0, 0),
        "CREATE INDEX": (0, 0),
    }


def test_the_table_is_written_once_as_it_stays(source: str, target: str) -> None:
    """Neither to be rewritten as a logged table, nor to get the epoch of its xids."""
    execute(
        source,
        "create table t (id int primary key, x text)",
        "insert into t select i, repeat('x', 100) from generate_series(1, 20000) i",
    )
    query = "select relpersistence::text, relfilenode from pg_class where relname like 'load_%'"
    seen: list[tuple[object, ...]] = []
    sync(
        source, target, "t", batch_bytes=65536, progress=lambda *_: seen.extend(rows(target, query))
    )
    after = rows(
        target, "select relpersistence::text, relfilenode from pg_class where relname = 't'"
    )
    assert set(seen) == set(after)
    assert after[0][0] == "p"


@pytest.mark.parametrize("made", ["create schema fresh", "create schema kinds"])
def test_a_schema_that_another_session_is_creating(made: str, source: str, target: str) -> None:
    execute(
        source,
        "create schema kinds",
        "create type kinds.mood as enum ('good')",
        "create table t (id int primary key, m kinds.mood)",
        "insert into t values (1, 'good')",
    )
    with psycopg.connect(target) as other, ThreadPoolExecutor(1) as pool:
        other.execute(made)
        syncing = pool.submit(sync, source, target, "t", into="fresh")
        waits = "select count(*) from pg_locks where not granted and locktype = 'transactionid'"
        while rows(target, waits) == [(0,)]:
            assert not syncing.done()
            time.sleep(0.01)
        other.commit()
        assert syncing.result().rows == 1
    assert rows(target, "select id, m::text from fresh.t") == [(1, "good")]


def test_a_type_that_another_session_is_creating(source: str, target: str) -> None:
    execute(
        source,
        "create type mood as enum ('good')",
        "create table t (id int primary key, m mood)",
        "insert into t values (1, 'good')",
    )
    with psycopg.connect(target) as other, ThreadPoolExecutor(1) as pool:
        other.execute("create type mood as enum ('good')")
        syncing = pool.submit(sync, source, target, "t")
        waits = "select count(*) from pg_locks where not granted and locktype = 'transactionid'"
        while rows(target, waits) == [(0,)]:
            assert not syncing.done()
            time.sleep(0.01)
        other.commit()
        assert syncing.result().rows == 1
