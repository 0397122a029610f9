"""What takes long of `diff`: random changes, compared with an oracle in Python, and little memory.

The masters of the random changes have small row groups.
"""

import itertools
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replica_platform.replica import Master, TableDiff, diff, publish
from replica_platform.replica.compare import rows

SMALL = "row_group_size 2048, storage_version 'v1.5.0'"
VALUES = """
    case when {n} % 7 = 0 then null else {n} % 50 end::int as a,
    case {n} % 5 when 0 then null when 1 then 'nan'::double else {n} / 4 end as b,
    case when {n} % 3 = 0 then repeat('long', 1 + {n} % 3000) else 'x' || {n} % 9 end as c,
    case when {n} % 4 = 0 then null else [{n} % 6, null] end as d,
    {{'x': {n} % 2, 'y': 'k'}} as e, 1 as f
"""
TABLES = {"keyed": "k integer primary key", "plain": "k integer"}
COLUMNS = "a int, b double, c varchar, d int[], e struct(x int, y varchar), f int"

number = st.integers(0, 9_000)
table = st.sampled_from([*TABLES])
# A kind of change, its table, the first row and how many.
change = st.one_of(
    st.tuples(st.just("delete"), table, number, st.sampled_from([1, 1, 40, 2048, 5000])),
    st.tuples(st.just("update"), table, number, st.sampled_from([1, 1, 30, 3000])),
    st.tuples(st.just("insert"), table, number, st.sampled_from([1, 10, 2500])),
    st.tuples(st.just("same"), table, number, st.sampled_from([1, 2000])),
    st.tuples(st.just("copy"), table, number, st.just(0)),
)


def apply(connection: duckdb.DuckDBPyConnection, one: tuple[str, str, int, int]) -> None:
    kind, name, first, count = one
    where = f"k between {first} and {first + count - 1}"
    if kind == "delete":
        connection.execute(f"delete from {name} where {where}")
    elif kind == "update":
        connection.execute(f"update {name} set a = a + 1, f = 2 where {where}")
    elif kind == "same":
        connection.execute(f"update {name} set a = a where {where}")
    elif kind == "copy":  # all rows at other places
        connection.execute(f"create temp table rows as from {name} order by hash(k + {first})")
        connection.execute(f"delete from {name}")
        connection.execute(f"insert into {name} from rows")
        connection.execute("drop table rows")
    else:
        values = VALUES.format(n="r.n")
        there = "where r.n not in (select k from keyed)" if name == "keyed" else ""
        connection.execute(
            f"insert into {name} select r.n, {values} from "
            f"(select range + {first} n from range({count})) r {there}"
        )


def contents(connection: duckdb.DuckDBPyConnection) -> dict[str, Counter[str]]:
    return {
        name: Counter(repr(row) for row in connection.execute(f"from {name}").fetchall())
        for name in TABLES
    }


def expected(name: str, before: Counter[str], after: Counter[str]) -> tuple[int, int, int]:
    """Return the rows added, removed and changed, by comparing all rows as text."""
    added, removed = after - before, before - after
    if name == "plain":
        return added.total(), removed.total(), 0
    keys = [{row.split(",")[0] for row in some} for some in (added, removed)]
    changed = len(keys[0] & keys[1])
    return len(keys[0]) - changed, len(keys[1]) - changed, changed


def found(table: TableDiff) -> tuple[int | None, ...]:
    return table.rows_added, table.rows_removed, table.rows_changed


@settings(
    max_examples=8,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(steps=st.lists(st.lists(change, max_size=4), min_size=2, max_size=3))
def test_a_diff_is_what_an_oracle_finds(steps: list[list[tuple[str, str, int, int]]]) -> None:
    folder = Path(tempfile.mkdtemp())
    master, store = folder / "master.duckdb", folder / "store"
    seen: dict[int, dict[str, Counter[str]]] = {}
    try:
        for number, changes in enumerate([[], *steps]):
            with duckdb.connect() as connection:
                connection.execute(f"attach '{master}' as m ({SMALL})")
                connection.execute("use m")
                if number == 0:
                    for name, key in TABLES.items():
                        connection.execute(f"create table {name} ({key}, {COLUMNS})")
                        connection.execute(
                            f"insert into {name} select range, {VALUES.format(n='range')} "
                            "from range(7000)"
                        )
                for one in changes:
                    apply(connection, one)
                content = contents(connection)
                connection.execute("checkpoint")
            # A step that changed nothing publishes nothing.
            seen[publish(Master(master).path, store, min_age_s=0, keep=9).generation] = content
        for before, after in itertools.combinations(sorted(seen), 2):
            tables = {one.table: one for one in diff(store, before, after).tables}
            for name in TABLES:
                want = expected(name, seen[before][name], seen[after][name])
                got = found(tables[name]) if name in tables else (0, 0, 0)
                assert got == want, (name, before, after)
    finally:
        shutil.rmtree(folder)


def test_little_memory_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows are new, 100 MB of them: in parts, and by way of a temporary folder.

    The control groups all rows at once. What its error advises helps.
    """
    master, store = Master(tmp_path / "master.duckdb"), tmp_path / "store"
    for statement in (
        "create table t as select range i, repeat(md5(range::varchar), 8) s from range(200000)",
        "create or replace table t as select i, s || '!' as s from t",
    ):
        with master.write() as connection:
            connection.execute(statement)
        publish(master.path, store, min_age_s=0)
    little = 16 * 1024**2
    (table,) = diff(store, memory_bytes=little).tables
    assert found(table) == (200_000, 200_000, 0)
    monkeypatch.setattr(rows, "PARTS", (1,))
    (refused,) = diff(store, memory_bytes=little).tables
    assert "allow more memory" in refused.problem
    (table,) = diff(store, memory_bytes=20 * little).tables
    assert found(table) == (200_000, 200_000, 0)
