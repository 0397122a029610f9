"""`diff`: what differs between two kept generations, and what is read to find that out."""

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from replica_platform.replica import (
    GenerationDamaged,
    GenerationDiff,
    Master,
    NothingPublished,
    Part,
    Purpose,
    ReplicaReader,
    RowChange,
    TableDiff,
    TableUnknown,
    diff,
    publish,
    status,
)
from replica_platform.replica.compare.row_groups import SameBlocks
from replica_platform_tests.replica.conftest import damage

Write = Callable[..., GenerationDiff]
ROWS = 300_000  # three row groups


@pytest.fixture
def shop(tmp_path: Path) -> Master:
    """A master that is still empty."""
    return Master(tmp_path / "shop.duckdb", patience_s=0.3)


@pytest.fixture
def differ(shop: Master, store: Path) -> Write:
    """A function that publishes, writes, publishes, and returns the difference."""

    def write(first: str, then: str, **options: object) -> GenerationDiff:
        for statements in (first, then):
            with shop.write() as connection:
                connection.execute(statements)
            publish(shop.path, store, min_age_s=0)
        return diff(store, **options)  # type: ignore[arg-type]

    return write


def only(found: GenerationDiff) -> TableDiff:
    assert found.ok
    (table,) = found.tables
    return table


def counts(table: TableDiff) -> tuple[int | None, ...]:
    return table.rows_added, table.rows_removed, table.rows_changed


def test_rows_are_paired_by_the_primary_key(differ: Write) -> None:
    found = differ(
        'create table "o""rders" (id integer primary key, "the name" varchar, price decimal(9, 2));'
        """insert into "o""rders" values (1, 'a', 1), (2, 'b', 2), (3, null, 3)""",
        'delete from "o""rders" where id = 1;'
        """insert into "o""rders" values (4, 'd', 4);"""
        """update "o""rders" set "the name" = 'c' where id = 3""",
        rows=5,
    )
    table = only(found)
    assert (table.table, table.key, counts(table)) == ('o"rders', ["id"], (1, 1, 1))
    assert table.changed_columns == {"the name": 1}
    assert list(table.samples) == [
        RowChange(None, {"id": "4", "the name": "d", "price": "4.00"}),
        RowChange({"id": "1", "the name": "a", "price": "1.00"}, None),
        RowChange({"id": "3", "the name": None}, {"id": "3", "the name": "c"}),
    ]
    assert found.sentence == (
        "Between generations 1 and 2 1 of 1 tables differ: 1 rows added, 1 removed, 1 changed."
    )
    assert found.as_dict()["tables"][0]["samples"][0]["after"]["id"] == "4"


def test_without_a_key_rows_are_counted_as_often_as_they_are_there(differ: Write) -> None:
    table = only(
        differ(
            "create table t as select 1 a, 'x' b from range(3) union all select 2, null",
            "delete from t; insert into t values (1, 'x'), (2, null), (2, null), (3, 'z')",
        )
    )
    assert (counts(table), table.key) == ((2, 2, 0), [])
    assert "no key" in table.notes


@pytest.mark.parametrize(
    "unique", ["create table t (a int, b int, v int, unique (a, b))",
               "create table t (a int, b int, v int); create unique index i on t (a, b)"]
)  # fmt: skip
def test_a_unique_key_pairs_the_rows_that_have_it(differ: Write, unique: str) -> None:
    """In rows without the whole key, it does not say which belong together."""
    table = only(
        differ(
            f"{unique}; insert into t values (1, 1, 1), (1, 2, 1), (null, 1, 1), (null, 1, 1)",
            "update t set v = 2 where b = 2; delete from t where a is null;"
            "insert into t values (null, 1, 2)",
            rows=3,
        )
    )
    assert (counts(table), table.key) == ((1, 2, 1), ["a", "b"])
    assert [one.before for one in table.samples if one.after is None] == [
        {"a": None, "b": "1", "v": "1"}
    ]


def test_changes_of_columns_and_tables_are_named(differ: Write) -> None:
    found = differ(
        "create table gone (x int); insert into gone values (1);"
        "create table t (id int primary key, a int, b int); insert into t values (1, 1, 1)",
        "drop table gone; create table new as select 1 x from range(2); create schema s;"
        "create table s.t (x int); alter table t drop b; alter table t add c varchar;"
        "alter table t alter a type bigint",
    )
    gone, new, other, table = found.tables
    assert [gone.notes, new.notes, other.notes] == ["table removed", "table added", "table added"]
    assert (counts(gone), counts(new), other.table) == ((0, 1, 0), (2, 0, 0), "s.t")
    assert counts(table) == (0, 0, 0)
    assert (table.columns_added, table.columns_removed) == ({"c": "VARCHAR"}, {"b": "INTEGER"})
    assert table.columns_retyped == {"a": ("INTEGER", "BIGINT")}
    assert table.notes == (
        "column c added (VARCHAR); column b removed (INTEGER); column a: INTEGER became BIGINT"
    )


def test_every_type_and_value_is_compared_exactly(differ: Write) -> None:
    """NaN and NULL are themselves, and a collation hides nothing."""
    table = only(
        differ(
            """create table t (id int primary key, doubled int as (id * 2), f double,
                d decimal(38, 10), z timestamptz, s struct(a int, b varchar[]), l int[][],
                m map(varchar, int), u union(n int, t varchar), c varchar collate nocase,
                i interval, b blob, e enum('x', 'y'), j json, v variant, ar int[2], n uuid);
            insert into t by name select range id, 'nan'::double f, 0.1 d,
                timestamptz '2026-03-29 02:30:00+01' z, {'a': null, 'b': ['q', null]} s,
                [[1], null] l, map {'k': 1} m, union_value(t := 'x') u, 'Case' c,
                interval 30 day i, '\\x00\\xff'::blob b, 'x' e, '{"a": 1}' j, 5::variant v,
                [1, null] ar, uuid '00000000-0000-0000-0000-000000000001' n from range(14)""",
            """update t set f = null where id = 0; update t set d = 0.1000000001 where id = 1;
            update t set z = z + interval 1 microsecond where id = 2;
            update t set s = {'a': null, 'b': ['q', 'r']} where id = 3;
            update t set l = [[1], []] where id = 4; update t set m = map {'k': 2} where id = 5;
            update t set u = union_value(n := 1) where id = 6; update t set c = 'case' where id = 7;
            update t set i = interval 5 day where id = 8;
            update t set b = '\\x00\\xfe'::blob where id = 9; update t set e = 'y' where id = 10;
            update t set j = '{"a":1}' where id = 11; update t set v = '5'::variant where id = 12;
            update t set ar = [1, 2] where id = 13""",
            rows=20,
        )
    )
    assert counts(table) == (0, 0, 14)
    assert table.changed_columns == dict.fromkeys("fdzslmucibejv", 1) | {"ar": 1}
    assert [list(one.after or ())[1] for one in table.samples] == [*"fdzslmucibejv", "ar"]
    assert table.samples[2].after == {"id": "2", "z": "2026-03-29 01:30:00.000001+00"}


def test_a_month_is_not_thirty_days(differ: Write) -> None:
    """Although DuckDB counts both as equal, so that its own update would keep the former."""
    table = only(
        differ("create table t as select interval 30 day i",
               "create or replace table t as select interval 1 month i")
    )  # fmt: skip
    assert counts(table) == (1, 1, 0)


def test_only_row_groups_that_differ_are_read(differ: Write) -> None:
    """Also where rows were deleted before and elsewhere in the table."""
    found = differ(
        f"create table t (i int primary key, v double); insert into t select range, random() "
        f"from range({ROWS}); create table same as select range i from range({ROWS});"
        "delete from t where i = 7; create table empty (x int)",
        "update t set v = 2 where i = 250000; insert into t values (-1, 0)",
    )
    table = only(found)
    assert (counts(table), found.same) == ((1, 0, 1), 2)
    assert 0 < table.rows_read == found.rows_read < 120_000


def test_a_row_group_of_new_rows_is_all_that_is_read(differ: Write) -> None:
    """And nothing of the other generation."""
    table = only(
        differ(
            "create table t as select range i from range(122880)",
            "insert into t values (-1)",
        )
    )
    assert (counts(table), table.rows_read) == ((1, 0, 0), 1)


def test_a_deleted_row_is_found_where_no_block_differs(shop: Master, store: Path) -> None:
    """Two states of equally many rows whose segments are the same, with other rows deleted."""
    with shop.write() as connection:
        connection.execute(f"create table t as select range i from range({ROWS})")
    kept = shop.path.with_suffix(".kept")
    shutil.copyfile(shop.path, kept)
    for deleted in (5, 6):
        shutil.copyfile(kept, shop.path)
        with shop.write() as connection:
            connection.execute("delete from t where i = ?", [deleted])
        publish(shop.path, store, min_age_s=0, new_lineage=True)
    table = only(diff(store, rows=1))
    assert counts(table) == (1, 1, 0)
    assert [one.after or one.before for one in table.samples] == [{"i": "5"}, {"i": "6"}]


@pytest.fixture
def twins(store: Path, tmp_path: Path) -> Path:
    """Two databases with every block in one place, and another value in the middle of each."""
    for number in (1, 2):
        path = tmp_path / str(number) / "twin.duckdb"
        with Master(path).write() as connection:
            connection.execute(
                f"create table t as select case range when 500 then {number} "
                "else hash(range) % 1000 end::int i from range(1000)"
            )
        publish(path, store, min_age_s=0, new_lineage=True)
    return store


def test_the_place_of_a_segment_proves_nothing(twins: Path) -> None:
    assert counts(only(diff(twins))) == (1, 1, 0)


def test_comparing_places_alone_would_miss_it(twins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above."""
    monkeypatch.setattr(SameBlocks, "holds", lambda *_: True)
    assert diff(twins).tables == []


def test_a_column_called_rowid_hides_nothing(differ: Write) -> None:
    table = only(
        differ(
            f"create table t as select range % 3 as rowid, range i from range({ROWS})",
            "delete from t where i = 5; insert into t values (9, 9)",
        )
    )
    assert counts(table) == (1, 1, 0)


def test_large_tables_can_be_left_out(differ: Write) -> None:
    found = differ(
        "create table small as select 1 a; create table large as select range a from range(1000)",
        "insert into small values (2); insert into large values (2)",
        most_values=100,
    )
    large, small = found.tables
    assert (counts(large), counts(small), found.ok) == ((None, None, None), (1, 0, 0), False)
    assert (large.rows_before, large.rows_after) == (1000, 1001)
    assert found.sentence.endswith("The rows of large were not compared.")
    assert "2,001 values are more than the 100 left to read" in large.notes


def test_tables_are_chosen_by_name(differ: Write, store: Path) -> None:
    differ("create table a (x int); create table b (x int)",
           "insert into a values (1); insert into b values (1)")  # fmt: skip
    assert [one.table for one in diff(store, tables=["main.b"]).tables] == ["b"]
    with pytest.raises(TableUnknown, match="a table c; there are a, b"):
        diff(store, tables=["c"])


def test_generations_are_named_by_number_day_or_time(
    publish_next: Callable[..., object], store: Path
) -> None:
    for day in (3, 4, 5):
        publish_next(day)
    today = datetime.now(UTC).date()
    for before, after, added in (
        (1, 3, 2), ("1", None, 2), (2, today.isoformat(), 1), (None, None, 1), (3, 1, 0),
        (1, datetime.now(UTC), 2), (None, 2, 1), (2, 2, 0),
    ):  # fmt: skip
        found = diff(store, before, after)  # type: ignore[arg-type]
        assert found.rows_added == added, (before, after)
    assert diff(store, 3, 1).rows_removed == 2
    assert diff(store, 2, 2).sentence.endswith("nothing differs: 2 tables are the same.")
    with pytest.raises(NothingPublished, match=r"published by .* not kept in .*; kept are 3 \(20"):
        diff(store, today - timedelta(days=1), None)
    with pytest.raises(NothingPublished, match=r"No generation before 1 is kept .* larger `keep`"):
        diff(store, None, 1)
    with pytest.raises(ValueError, match="no generation's number, day or time; write 12, 2026"):
        diff(store, "yesterday")


def test_a_purpose_has_no_keys(shop: Master, store: Path) -> None:
    """Its tables are made of the master's rows, without constraints."""
    purpose = Purpose("crm", {"t": Part(columns=["id", "name"], mask={"name": "redact"})})
    for statements in (
        "create table t (id int primary key, name varchar); insert into t values (1, 'Ann')",
        "insert into t values (2, 'Bob'); update t set name = 'Eve' where id = 1",
    ):
        with shop.write() as connection:
            connection.execute(statements)
        publish(shop.path, store, purpose=purpose, min_age_s=0)
    assert counts(only(diff(store))) == (1, 0, 0)


def test_readers_and_publications_go_on(
    publish_next: Callable[..., object], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both generations are leased while they are compared, and no longer."""
    publish_next(3)
    publish_next(4)
    seen: list[object] = []

    def publish_meanwhile(done: int, total: int, unit: str) -> None:
        if not seen:
            publish_next(5, keep=1)
            with ReplicaReader(store) as reader:
                seen.extend([reader.generation, status(store).kept])

    found = diff(store, 1, 2, progress=publish_meanwhile)
    assert (found.rows_added, seen) == (1, [3, [3, 2, 1]])
    publish_next(6, keep=1)
    assert status(store).kept == [4]


def test_a_damaged_generation_is_refused(publish_next: Callable[..., object], store: Path) -> None:
    publish_next(3)
    publish_next(4)
    damage(next(store.glob("generations/*000001*.duckdb")), 300_000, b"\xff\x00\xff")
    with pytest.raises(GenerationDamaged, match=r"Generation 1 .*or name another generation"):
        diff(store)
    publish_next(5)
    assert diff(store, 2, 3).rows_added == 1


def test_what_duckdb_cannot_read_is_named(differ: Write) -> None:
    """A generated column may call a macro by a name that only the master's catalog has."""
    found = differ(
        "create macro twice(x) as x * 2; create table t (a int, b int as (shop.main.twice(a)));"
        "create table u (x int)",
        "insert into t values (1); insert into u values (1)",
    )
    t, u = found.tables
    assert (found.ok, counts(u)) == (False, (1, 0, 0))
    assert t.problem.startswith(("Binder Error", "Catalog Error"))
