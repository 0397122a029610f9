"""Columns that are left out or masked: no byte of them reaches the target."""

import hashlib

import pytest

from replica_platform.xmin import Mask, Proving, TableSpec, forget, sync_group, validate
from replica_platform.xmin.errors import CannotSync
from replica_platform_tests.xmin.helpers import execute, rows

SALT = "pepper"
HASH, NULL = Mask("hash", salt=SALT), Mask("null")


def hashed(value: str) -> str:
    return hashlib.sha256((SALT + value).encode()).hexdigest()


@pytest.fixture
def people(source: str) -> str:
    execute(
        source,
        "create type mood as enum ('a', 'b')",
        "create table people (id int primary key, name text, email text, born date, nick mood)",
        "insert into people values (1, 'Ada', 'ada@x', '1815-12-10', 'a')",
        "insert into people values (2, 'Bo')",
    )
    return source


def synced(source: str, target: str, **options: object):  # type: ignore[no-untyped-def]
    """Sync the table and return its report."""
    group = sync_group(source, target, [TableSpec("people", **options)])  # type: ignore[arg-type]
    if group.failures:
        raise CannotSync(group.failures["public.people"])
    return group.reports["public.people"]


def table(target: str) -> list[tuple[object, ...]]:
    return rows(
        target, "select to_jsonb(p) - 'source_xmin' - 'source_ctid' from people p order by id"
    )


def test_masks_and_left_out_columns(people: str, target: str) -> None:
    masks = {"name": HASH, "email": NULL, "born": Mask("fixed", "2000-01-01")}
    # The type of a column that is left out is not needed in the target.
    report = synced(people, target, left_out=("nick",), masks=masks)
    ada = {"id": 1, "name": hashed("Ada"), "email": None, "born": "2000-01-01"}
    bo = {"id": 2, "name": hashed("Bo"), "email": None, "born": "2000-01-01"}
    assert table(target) == [(ada,), (bo,)]
    assert "nick" not in dict(report.columns)
    assert rows(target, "select to_regtype('mood')") == [(None,)]
    execute(people, "insert into people values (3, null, 'c@x', null, 'b')")
    execute(people, "update people set email = 'ada@y', name = 'Ada L' where id = 1")
    execute(people, "delete from people where id = 2")
    report = synced(people, target, left_out=("nick",), masks=masks)
    assert (report.mode, report.rows_read) == ("scan", 2)
    assert table(target) == [
        ({**ada, "name": hashed("Ada L")},),
        ({"id": 3, "name": None, "email": None, "born": "2000-01-01"},),
    ]
    found = validate(people, target, "people", content=True, masks=masks)
    assert (found.in_sync, found.content_age_s, found.content_rows) == (True, 0, 2)
    execute(target, "update people set born = '1999-01-01' where id = 3")
    assert validate(people, target, "people", content=True, masks=masks).stale == ("(3)",)


def test_the_rolling_proof_compares_the_masked_values(people: str, target: str) -> None:
    masks = {"name": HASH, "email": NULL, "born": Mask("fixed", "2000-01-01")}
    spec = TableSpec("people", masks=masks)

    def proven() -> tuple[int, int, int]:
        group = sync_group(people, target, [spec], prove=Proving(within_s=0))
        proof = group.reports["public.people"].proof
        assert proof is not None
        return proof.rows, proof.differing, proof.repaired

    sync_group(people, target, [spec])
    assert proven() == (2, 0, 0)
    execute(target, "update people set name = 'other' where id = 1")
    assert proven() == (2, 1, 1)
    assert table(target)[0][0]["name"] == hashed("Ada")


def test_content_is_not_compared_without_the_masks(people: str, target: str) -> None:
    synced(people, target, columns=("id", "name"), masks={"name": HASH})
    assert validate(people, target, "people").in_sync
    for masks in ({}, {"name": Mask("hash", salt="other")}):
        with pytest.raises(CannotSync, match=r"Column name .* is masked"):
            validate(people, target, "people", content=True, masks=masks)
    found = validate(people, target, "people", content=True, masks={"name": HASH})
    assert (found.in_sync, found.content_age_s, found.content_rows) == (True, 0, 2)


def test_a_column_is_masked_or_left_out_later(people: str, target: str) -> None:
    synced(people, target, columns=("id", "name", "email"))
    report = synced(people, target, columns=("id", "name"), masks={"name": HASH})
    assert "masks of the table have changed" in report.why
    assert "column email is left out now and was dropped" in report.notes
    assert table(target) == [
        ({"id": 1, "name": hashed("Ada")},),
        ({"id": 2, "name": hashed("Bo")},),
    ]
    report = synced(people, target, columns=("id", "name"), masks={"name": NULL})
    assert (report.mode, report.rows_updated) == ("full", 2)
    report = synced(people, target, columns=("id", "name"), masks={"name": NULL})
    assert (report.mode, report.rows_read) == ("scan", 0)


def test_a_column_of_a_users_own_with_the_name_of_a_left_out_one_stays(
    people: str, target: str
) -> None:
    synced(people, target, columns=("id", "name"))
    execute(target, "alter table people add column email text default 'mine'")
    report = synced(people, target, columns=("id", "name"))
    execute(people, "update people set name = 'x' where id = 1")
    report = synced(people, target, columns=("id", "name"))
    assert "column email of the target is left out of the copy and was kept" in report.notes
    assert rows(target, "select distinct email from people") == [("mine",)]


def test_a_sync_that_forgets_the_masks_is_refused(people: str, target: str) -> None:
    synced(people, target, left_out=("nick",), masks={"name": HASH})
    execute(people, "update people set name = 'Secret' where id = 1")
    before = table(target)
    with pytest.raises(CannotSync, match=r"was masked at the last sync.*forget-table"):
        synced(people, target, left_out=("nick",))
    synced(people, target, left_out=("nick",), masks={"name": HASH})
    with pytest.raises(CannotSync, match=r"Column nick .* was left out"):
        synced(people, target, masks={"name": HASH})
    assert [row[0]["id"] for row in before] == [1, 2]
    # The remedy of the text:
    assert forget(target, "public.people")
    synced(people, target)
    assert rows(target, "select name from people where id = 1") == [("Secret",)]


def test_a_column_that_was_left_out_is_read_whole_when_it_is_copied(
    people: str, target: str
) -> None:
    synced(people, target, columns=("id", "name"))
    forget(target, "public.people")
    report = synced(people, target, columns=("id", "name", "email"))
    assert report.mode == "full"
    assert rows(target, "select email from people where id = 1") == [("ada@x",)]


def test_a_new_column_is_not_copied_unless_it_is_listed(people: str, target: str) -> None:
    synced(people, target, columns=("id", "name"))
    execute(people, "alter table people add column secret text default 's'")
    synced(people, target, columns=("id", "name"))
    assert "secret" not in table(target)[0][0]
    execute(people, "alter table people add column more text default 'm'")
    # Nothing kept this one away before.
    synced(people, target, columns=("id", "name", "more"), masks={"more": HASH})
    assert table(target)[0][0]["more"] == hashed("m")


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"columns": ("id", "nome")}, "has no column nome; it has id, name"),
        ({"masks": {"nome": NULL}}, "has no column nome"),
        ({"left_out": ("id",)}, "Column id is part of the key"),
        ({"masks": {"id": HASH}}, "Column id is part of the key"),
        ({"left_out": ("name",), "masks": {"name": NULL}}, "left out, and also copied or masked"),
        ({"columns": ("id",), "masks": {"name": NULL}}, "masked, but not among `columns`"),
        ({"masks": {"name": Mask("hash")}}, "needs a salt"),
        ({"masks": {"name": Mask("rot13")}}, "use one of null, hash, fixed"),
        ({"masks": {"born": Mask("fixed", "today's")}}, "fixed value that is no date"),
    ],
)
def test_a_wrong_choice_is_refused_before_a_row_is_read(
    people: str, target: str, options: dict[str, object], cause: str
) -> None:
    with pytest.raises(CannotSync, match=cause) as refused:
        synced(people, target, **options)
    assert SALT not in str(refused.value)
    assert rows(target, "select to_regclass('people')") == [(None,)]


def test_masks_of_many_tables_may_name_columns_that_one_lacks(people: str, target: str) -> None:
    masks = {"name": NULL, "password": NULL}
    synced(people, target, left_out=("nick", "token"), masks=masks, lenient=True)
    assert table(target)[0][0]["name"] is None


def test_a_table_without_a_key(source: str, target: str) -> None:
    execute(source, "create table people (id int, name text)")
    execute(source, "insert into people values (1, 'Ada'), (1, 'Ada'), (2, 'Bo')")
    for _ in range(2):
        synced(source, target, masks={"name": HASH})
        found = rows(target, "select id, name from people order by id")
        assert found == [(1, hashed("Ada"))] * 2 + [(2, hashed("Bo"))]
    assert validate(source, target, "people", masks={"name": HASH}).in_sync


def test_partitions_and_views(source: str, target: str) -> None:
    execute(
        source,
        "create table people (id int primary key, name text) partition by range (id)",
        "create table p1 partition of people for values from (0) to (10)",
        "insert into people values (1, 'Ada')",
    )
    synced(source, target, masks={"name": HASH})
    execute(source, "create table p2 partition of people for values from (10) to (20)")
    execute(source, "insert into people values (11, 'Bo')")
    synced(source, target, masks={"name": HASH})
    assert rows(target, "select name from people order by id") == [
        (hashed("Ada"),),
        (hashed("Bo"),),
    ]
    execute(source, "create view v as select * from people")
    spec = TableSpec("v", key=("id",), masks={"name": HASH})
    assert sync_group(source, target, [spec]).ok
    assert rows(target, "select name from v where id = 1") == [(hashed("Ada"),)]


def test_no_salt_is_kept_or_shown(people: str, target: str) -> None:
    assert SALT not in repr(TableSpec("people", masks={"name": HASH}))
    synced(people, target, left_out=("nick",), masks={"name": HASH})
    (kept,) = rows(target, "select w::text from replica_platform.mark w")
    assert SALT not in str(kept)
