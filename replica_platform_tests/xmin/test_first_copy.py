"""A first sync creates schema, table, key, index and watermark, and moves every row."""

from replica_platform.xmin import sync
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
        ("CREATE INDEX person_source_xmin_idx ON copy.person USING btree (source_xmin)",),
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
