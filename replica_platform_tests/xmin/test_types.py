"""User-defined types are created in the target and kept in step."""

import pytest

from replica_platform.xmin import sync
from replica_platform.xmin.errors import SchemaRefused
from replica_platform_tests.xmin.helpers import execute, rows


@pytest.fixture
def table(source: str, target: str) -> None:
    execute(
        source,
        "create schema kinds",
        """create type kinds."Mood" as enum ('sad', 'it''s ok')""",
        "create domain kinds.positive as int check (value > 0)",
        """create type kinds.pair as (a kinds.positive, m kinds."Mood"[])""",
        "create type kinds.span as range (subtype = float8)",
        """create table t (id kinds.positive primary key, m kinds."Mood", p kinds.pair,
           ms kinds."Mood"[], ps kinds.pair[], s kinds.span)""",
        """insert into t values (1, 'sad', (5, '{sad}'), '{sad,"it''s ok"}',
           array[(1, null)::kinds.pair], '[1,2)')""",
    )
    sync(source, target, "t")


QUERY = "select id, m, p, ms, ps, s from t order by id"


def test_types_are_created_and_values_arrive(source: str, target: str, table: None) -> None:
    assert rows(source, QUERY) == rows(target, QUERY)
    spelled = rows(target, "select column_name, udt_name from information_schema.columns")
    assert ("m", "Mood") in spelled


def test_enum_labels_are_added_and_renamed(source: str, target: str, table: None) -> None:
    execute(
        source,
        """alter type kinds."Mood" add value 'great' before 'sad'""",
        "insert into t (id, m) values (2, 'great')",
    )
    sync(source, target, "t")
    assert rows(source, QUERY) == rows(target, QUERY)

    execute(source, """alter type kinds."Mood" rename value 'sad' to 'blue'""")
    report = sync(source, target, "t")
    assert report.mode == "full"
    assert not report.changed  # rows refer to the label, which was renamed in the type
    assert rows(source, QUERY) == rows(target, QUERY)


def test_a_composite_grows(source: str, target: str, table: None) -> None:
    execute(
        source,
        "alter type kinds.pair add attribute z text",
        "insert into t (id, p) values (3, (1, null, 'z'))",
    )
    sync(source, target, "t")
    assert rows(source, QUERY) == rows(target, QUERY)


def test_a_type_that_cannot_follow_is_refused(source: str, target: str, table: None) -> None:
    execute(target, """alter type kinds."Mood" add value 'own'""")
    execute(source, """alter type kinds."Mood" add value 'other'""",
            """alter type kinds."Mood" add value 'third'""")  # fmt: skip
    with pytest.raises(SchemaRefused, match="rename them in the target by hand"):
        sync(source, target, "t")


def test_a_composite_that_is_too_narrow_is_refused(source: str, target: str) -> None:
    execute(target, "create type wide as (a int)")
    execute(source, "create type wide as (a bigint)", "create table t (id int primary key, w wide)")
    with pytest.raises(SchemaRefused, match="a bigint in the source and a integer in the target"):
        sync(source, target, "t")
    assert rows(target, "select to_regclass('t') is null") == [(True,)]


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ("domain other as text", "domain other as int"),
        ("domain other as int", "domain other as bigint"),
        ("type other as range (subtype = float8)", "type other as range (subtype = int)"),
        ("domain other as int", "type other as enum ('a')"),
    ],
)
def test_another_type_of_the_same_name_is_refused(
    source: str, target: str, here: str, there: str
) -> None:
    execute(source, f"create {here}", "create table t (id int primary key, v other)")
    execute(target, f"create {there}")
    with pytest.raises(SchemaRefused, match=r"public\.other"):
        sync(source, target, "t")
    assert rows(target, "select to_regclass('t') is null") == [(True,)]
