"""Target tables that a user has created before the first sync, with constraints of the user's."""

import pytest

from replica_platform.xmin import sync, validate
from replica_platform_tests.xmin.helpers import execute, rows

QUERY = "select id, mail from t order by id"


@pytest.fixture(params=["unique (mail)", "exclude (mail with =)", "partial"])
def table(request: pytest.FixtureRequest, source: str, target: str) -> None:
    """A table whose second column is unique in the target, and 20 rows of it."""
    execute(
        source,
        "create table t (id int primary key, mail text)",
        "insert into t select i, 'm' || i from generate_series(1, 20) i",
    )
    if request.param == "partial":
        execute(
            target,
            "create table t (id int primary key, mail text)",
            "create unique index on t (mail) where id > 0",
        )
    else:
        execute(target, f"create table t (id int primary key, mail text, {request.param})")
    sync(source, target, "t")


@pytest.mark.parametrize("mode", ["auto", "full"])
@pytest.mark.parametrize("deletes", ["auto", "keys"])
def test_a_unique_value_that_moves_to_another_row_arrives(
    mode: str, deletes: str, source: str, target: str, table: None
) -> None:
    execute(
        source,
        "delete from t where id = 1",
        "insert into t values (21, 'm1')",
        "update t set mail = case id when 2 then 'm3' else 'm2' end where id in (2, 3)",
        "update t set mail = 'new' where id = 4",
        "insert into t values (22, 'm4')",
        "update t set id = 23 where id = 5",
    )
    report = sync(source, target, "t", mode=mode, deletes=deletes)
    assert rows(source, QUERY) == rows(target, QUERY)
    assert (report.rows_inserted, report.rows_updated, report.rows_deleted) == (3, 3, 2)
    assert validate(source, target, "t", content=True).in_sync
    execute(source, "delete from t where id > 20")
    assert sync(source, target, "t", mode=mode, deletes=deletes).rows_deleted == 3
    assert rows(source, QUERY) == rows(target, QUERY)


def test_rows_that_refer_to_a_changed_row_are_not_deleted_with_it(source: str, target: str) -> None:
    """A changed row is deleted and inserted only where no foreign key refers to it."""
    execute(
        source,
        "create table t (id int primary key, mail text)",
        "insert into t values (1, 'a'), (2, 'b')",
    )
    execute(
        target,
        "create table t (id int primary key, mail text unique)",
        "create table u (t int references t on delete cascade)",
    )
    sync(source, target, "t")
    execute(target, "insert into u values (1), (2)")
    execute(source, "update t set mail = 'c' where id = 1")
    assert sync(source, target, "t").rows_updated == 1
    assert rows(target, "select count(*) from u") == [(2,)]


def test_columns_that_only_the_target_has_are_kept(source: str, target: str, table: None) -> None:
    execute(target, "alter table t add column own text", "update t set own = 'o' || id")
    execute(source, "update t set mail = 'new' where id = 4")
    assert sync(source, target, "t").rows_updated == 1
    assert rows(target, "select mail, own from t where id = 4") == [("new", "o4")]
