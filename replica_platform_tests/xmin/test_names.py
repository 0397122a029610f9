"""Tables whose columns have the names that the engine's statements use."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

import replica_platform.xmin
from replica_platform.xmin import Proving, TableSpec, merge_frame, sync, sync_group, validate
from replica_platform.xmin.errors import CannotSync
from replica_platform_tests.xmin.helpers import execute, rows

SYSTEM = {"tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"}
OURS = {"source_xmin", "source_ctid"}
# As after a failover: W cannot be trusted, and both sides are hashed.
PROMOTED = """update replica_platform.mark set
    identity = jsonb_set(identity, '{timeline}', '7'), w = w + 1000, next = next + 1000"""
Sides = tuple[psycopg.Connection, psycopg.Connection]
# The columns of a table's key, and the others.
Columns = tuple[list[str], list[str]]
# An index, and so a key, has at most 32 columns.
KEY_COLUMNS = 30


def words() -> list[str]:
    """Return every word in the engine's strings: aliases, functions, columns and others."""
    found: set[str] = set()
    for module in Path(replica_platform.xmin.__file__).parent.rglob("*.py"):
        tree = ast.parse(module.read_text())
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = "" if id(node) in docs else re.sub("--.*", "", node.value)
                found |= set(re.findall(r"[a-z_][a-z0-9_]*", text))
    return sorted(word for word in found - SYSTEM - OURS if len(word) < 64)


WORDS = words()
CHUNKS = [WORDS[i : i + KEY_COLUMNS] for i in range(0, len(WORDS), KEY_COLUMNS)]
# A key of one column may be hashed in another way than one of several.
ALONE = [
    *(word for word in WORDS if len(word) == 1 or word.startswith("replica_")),
    "version", "xid", "nothing", "tid", "position", "part", "leaf", "kind", "age", "nth", "one",
    "two", "did", "merged", "image", "count", "tids", "ct", "tc", "am", "ln",
]  # fmt: skip


def test_the_words_are_those_of_the_statements() -> None:
    some = {"t", "s", "k", "n", "x", "age", "count", "nth", "tid", "version", "xid", "select"}
    assert some <= set(WORDS)


def columns(names: list[str], kind: str) -> sql.Composed:
    return sql.SQL(", ").join(sql.SQL("{} " + kind).format(sql.Identifier(n)) for n in names)


def make(
    connection: psycopg.Connection, table: str, key: list[str], other: list[str], kind: str
) -> None:
    """Create a table with those columns and 300 rows."""
    name, listed = sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, key))
    connection.execute(
        sql.SQL("create table {} ({}, {}, primary key ({}))").format(
            name, columns(key, kind), columns(other, "int"), listed
        )
    )
    values = sql.SQL(", ").join([sql.SQL("i")] * (len(key) + len(other)))
    connection.execute(
        sql.SQL("insert into {} select {} from generate_series(1, 300) i").format(name, values)
    )


def change(connection: psycopg.Connection, table: str, key: str, other: str) -> None:
    """Update one row, delete one, insert none."""
    connection.execute(
        sql.SQL("update {} set {} = -1 where {}::int = 5").format(
            *map(sql.Identifier, (table, other, key))
        )
    )
    delete(connection, table, key, 6)


def delete(connection: psycopg.Connection, table: str, key: str, value: int) -> None:
    connection.execute(
        sql.SQL("delete from {} where {}::int = {}").format(
            *map(sql.Identifier, (table, key)), sql.Literal(value)
        )
    )


def content(
    connection: psycopg.Connection, table: str, names: list[str]
) -> list[tuple[object, ...]]:
    listed = sql.SQL(", ").join(map(sql.Identifier, names))
    query = sql.SQL("select {} from {} order by 1").format(listed, sql.Identifier(table))
    return connection.execute(query).fetchall()


@pytest.fixture
def sides(source: str, target: str) -> Iterator[Sides]:
    """A session on each side: a session for each statement takes most of the time of a test."""
    with (
        psycopg.connect(source, autocommit=True, prepare_threshold=None) as one,
        psycopg.connect(target, autocommit=True, prepare_threshold=None) as other,
    ):
        yield one, other


def check(source: str, target: str, sides: Sides, tables: dict[str, Columns]) -> None:
    """Copy, update and delete, validate, lose a row in the target, repair by hashes."""
    one, two = sides
    specs = [TableSpec(table) for table in tables]
    assert not sync_group(source, target, specs).failures
    for table, (key, other) in tables.items():
        change(one, table, key[0], other[0])
    group = sync_group(source, target, specs)
    assert not group.failures
    for table, report in group.reports.items():
        assert (report.rows_updated, report.rows_deleted) == (1, 1), table
    for table, (key, other) in tables.items():
        assert content(one, table, key + other) == content(two, table, key + other)
        # The same row again, which the target has not seen, and one that it has lost.
        change(one, table, key[0], other[0])
        delete(two, table, key[0], 7)
        found = validate(source, target, f'"{table}"', content=True)
        assert (found.missing_count, found.pending_count, found.stale_count) == (1, 1, 0), table
    execute(target, PROMOTED)
    repaired = sync_group(source, target, specs)
    assert not repaired.failures
    for table, report in repaired.reports.items():
        assert "compared by hashes" in report.why
        assert (report.rows_inserted, report.rows_updated) == (1, 1), table
    for table, (key, other) in tables.items():
        assert content(one, table, key + other) == content(two, table, key + other)
    for table, (key, other) in tables.items():
        # Changed rows are deleted and inserted again where they exclude one another.
        unique = sql.SQL("create unique index on {} ({})")
        two.execute(unique.format(*map(sql.Identifier, (table, other[0]))))
        change(one, table, key[0], other[0])
        delete(two, table, key[0], 8)
        delete(two, table, key[0], 9)
    proven = sync_group(source, target, specs, prove=Proving(within_s=0))
    assert not proven.failures
    for table, report in proven.reports.items():
        assert report.proof is not None
        assert (report.proof.differing, report.proof.whole) == (2, True), table
        assert (report.rows_inserted, report.rows_updated) == (2, 1), table
    for table in list(tables)[:3]:
        assert validate(source, target, f'"{table}"').in_sync, table


def test_keys_of_many_columns(source: str, target: str, sides: Sides) -> None:
    tables = {
        f"chunk{i}": (chunk, CHUNKS[i - 1] if i else CHUNKS[-1]) for i, chunk in enumerate(CHUNKS)
    }
    for table, (key, other) in tables.items():
        make(sides[0], table, key, other, "int")
    check(source, target, sides, tables)


@pytest.mark.parametrize(("kind", "words"), [("int", ALONE), ("text", ["x", "xid", "version"])])
def test_keys_of_one_column_in_tables_of_that_name(
    kind: str, words: list[str], source: str, target: str, sides: Sides
) -> None:
    tables = {word: ([word], [other]) for word, other in zip(words, [*words[1:], "t"], strict=True)}
    for table, (key, other) in tables.items():
        make(sides[0], table, key, other, kind)
    check(source, target, sides, tables)


@pytest.mark.parametrize("chunk", range(0, len(CHUNKS), 4))
def test_tables_without_a_key(chunk: int, source: str, target: str, sides: Sides) -> None:
    names = [word for some in CHUNKS[chunk : chunk + 4] for word in some]
    with psycopg.connect(source, autocommit=True) as connection:
        connection.execute(sql.SQL("create table t ({})").format(columns(names, "int")))
        values = sql.SQL(", ").join([sql.SQL("i")] * len(names))
        connection.execute(sql.SQL("insert into t select {} from generate_series(1, 9) i").format(
            values))  # fmt: skip
    sync(source, target, "t")
    change(sides[0], "t", names[0], names[1])
    report = sync(source, target, "t")
    assert (report.rows_inserted, report.rows_deleted) == (1, 2)
    assert validate(source, target, "t").in_sync
    assert content(sides[0], "t", names) == content(sides[1], "t", names)


def test_a_view_by_timestamp(source: str, target: str, sides: Sides) -> None:
    names = ["version", "v", "x", "s", "t", "hand", "since", "nothing"]
    make(sides[0], "base", names, ["n"], "int")
    execute(source, "create view t as select *, now() - interval '1 hour' as at from base")
    for _ in range(2):
        sync(source, target, "t", mode="timestamp", timestamp_column="at", key=names)
    change(sides[0], "base", "v", "n")
    report = sync(source, target, "t", mode="timestamp", timestamp_column="at", key=names)
    assert report.rows_deleted == 1
    validate(source, target, "t", key=tuple(names))


def test_target_tables_named_like_the_temporary_ones(source: str, target: str) -> None:
    """Where the search path names pg_temp last, an unqualified name is the other table's."""
    names = ("replica_compare", "replica_source_keys", "replica_had", "replica_wanted",
             "replica_frame", "replica_measure", "replica_part")  # fmt: skip
    for name in names:
        execute(target, f"create table {name} (a int)", f"insert into {name} values (1)")
    execute(source, "create table t (id int primary key, x text)", "create table u (a int)",
            "insert into t values (1, 'a'), (2, 'b')", "insert into u values (1), (2)")  # fmt: skip
    last = f"{target}{'&' if '?' in target else '?'}options=-csearch_path%3Dpublic,pg_temp"
    for _ in range(2):
        sync(source, last, "t", prove=Proving(within_s=0))
        sync(source, last, "u")
        execute(source, "delete from t where id = 1", "delete from u where a = 1",
                "update t set x = 'new' where id = 2")  # fmt: skip
        assert validate(source, last, "t").pending_count in (0, 1)
    assert rows(target, "select id, x from t") == [(2, "new")]
    for name in names:
        assert rows(target, f"select a from {name}") == [(1,)]


def test_a_column_named_like_one_of_the_sync_is_refused(source: str, target: str) -> None:
    execute(source, "create table t (id int primary key, source_xmin int)")
    with pytest.raises(CannotSync, match="source_xmin"):
        sync(source, target, "t")


def test_a_frame_with_such_columns(target: str) -> None:
    pandas = pytest.importorskip("pandas")
    names = WORDS[:200]
    frame = pandas.DataFrame({name: [1, 2] for name in names})
    for _ in range(2):
        assert merge_frame(target, "t", frame, names[:20]).rows == 2
    frame[names[50]] = [1, 3]
    assert merge_frame(target, "t", frame, names[:20]).rows_updated == 1
