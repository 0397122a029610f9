"""Tables that binary COPY would change are sent as text; in binary they fail or change."""

from collections.abc import Iterator

import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from replica_platform.xmin import session, sync
from replica_platform.xmin.errors import CannotSync
from replica_platform.xmin.source.catalog import SourceTable
from replica_platform_tests.xmin.helpers import execute, rows


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: every table is sent in binary."""
    monkeypatch.setattr(SourceTable, "binary", property(lambda _: True))


# By kind: in the source, in the target (where a type may be wider), the column, a value.
TYPES = {
    "composite": ("create type kind as (a int)", "create type kind as (a bigint)", "kind", "'(1)'"),
    "composites": (
        "create type kind as (a int)",
        "create type kind as (a bigint)",
        "kind[]",
        "array[row(1)::kind]",
    ),
    "regclass": ("create table kind ()", "create table kind ()", "regclass", "'kind'"),
    "regclasses": ("create table kind ()", "create table kind ()", "regclass[]", "'{kind}'"),
    "regtype": ("create domain kind as int", "create domain kind as int", "regtype", "'kind'"),
}
QUERY = "select id, v::text from t"


def make(source: str, target: str, kind: str) -> None:
    """Create a table with one such value, whose type and relation the target has as well."""
    here, there, column, value = TYPES[kind]
    execute(target, there)
    execute(source, here, f"create table t (id int primary key, v {column})")
    execute(source, f"insert into t values (1, {value})")


@pytest.mark.parametrize("kind", TYPES)
def test_sent_as_text_it_arrives(source: str, target: str, kind: str) -> None:
    make(source, target, kind)
    sync(source, target, "t")
    assert rows(source, QUERY) == rows(target, QUERY)
    execute(source, "insert into t select 2, v from t")
    sync(source, target, "t")
    assert rows(source, QUERY) == rows(target, QUERY)


@pytest.mark.parametrize("kind", TYPES)
def test_the_control_in_binary_fails_or_changes_it(
    source: str, target: str, kind: str, forced: None
) -> None:
    make(source, target, kind)
    if not kind.startswith("reg"):
        with pytest.raises(CannotSync, match=r"instead of expected|insufficient data"):
            sync(source, target, "t")
        return
    sync(source, target, "t")
    assert rows(source, QUERY) != rows(target, QUERY)  # without an error


def test_a_name_that_the_target_lacks_is_refused(source: str, target: str) -> None:
    execute(source, "create table here ()", "create table t (id int primary key, v regclass)",
            "insert into t values (1, 'here')")  # fmt: skip
    with pytest.raises(CannotSync, match=r'relation "public\.here" does not exist'):
        sync(source, target, "t")


HOSTILE = {
    "datestyle": ("'SQL, DMY'", "'SQL, MDY'"),
    "intervalstyle": ("'sql_standard'", "'postgres'"),
    "timezone": ("'Asia/Kathmandu'", "'America/St_Johns'"),
    "extra_float_digits": ("-10", "3"),
    "bytea_output": ("'escape'", "'hex'"),
}


@pytest.fixture
def settings(source: str, target: str) -> Iterator[None]:
    """Two databases whose settings write values differently; a table that is sent as text."""
    for name, sides in HOSTILE.items():
        for dsn, value in zip((source, target), sides, strict=True):
            alter(dsn, f"set {name} = {value}")
    execute(
        source,
        "create type pair as (a int)",
        "create table t (id int primary key, p pair[], d date, i interval, z timestamp, f float8, "
        "b bytea)",
        "insert into t values (1, null, '2000-02-01', '-1 day +2:03', '2000-02-01', 1/3.0::float8, "
        r"'\x5c00')",
    )
    yield
    for dsn in (source, target):
        alter(dsn, "reset all")


def alter(dsn: str, what: str) -> None:
    """Change a setting of a database, for later sessions."""
    name = sql.Identifier(conninfo_to_dict(dsn)["dbname"]).as_string()
    execute(dsn, f"alter database {name} {what}")


VALUES = r"""select id, d - date '2000-01-01', extract(epoch from i), extract(epoch from z),
    float8send(f), encode(b, 'hex') from t"""


def test_text_is_written_as_it_is_read(source: str, target: str, settings: None) -> None:
    sync(source, target, "t")
    assert rows(source, VALUES) == rows(target, VALUES)


def test_the_control_without_pinned_settings_changes_values(
    source: str, target: str, settings: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in HOSTILE:
        monkeypatch.delitem(session._PINNED, name)
    sync(source, target, "t")
    assert rows(source, VALUES) != rows(target, VALUES)  # without an error
