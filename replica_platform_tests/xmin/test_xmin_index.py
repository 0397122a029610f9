"""The index on `source_xmin` lets updates of the target be HOT, from Postgres 16 on."""

import pytest

from replica_platform.app.embedded import Server
from replica_platform.xmin import sync
from replica_platform_tests.xmin.helpers import execute, rows

BTREE = "create index t_source_xmin_idx on t (source_xmin)"


@pytest.fixture
def target_with_room(source: str, target: str) -> str:
    """A target table whose pages have room for another version of a row."""
    execute(
        source,
        "create table t (id int primary key, x text)",
        "insert into t select i, repeat('x', 300) from generate_series(1, 1000) i",
    )
    sync(source, target, "t")
    execute(target, "delete from t where id % 2 = 0", "vacuum t")
    execute(source, "delete from t where id % 2 = 0")
    execute(target, "update replica_platform.mark set rows = 500")
    return target


def updates(source: str, target: str) -> tuple[int, int]:
    """Update 50 rows of the source and sync; return the target's updates and the HOT ones."""
    query = "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = 't'"
    before = rows(target, query)[0]
    execute(source, "update t set x = 'y' where id < 100")
    assert sync(source, target, "t").rows_updated == 50
    after = rows(target, query)[0]
    return after[0] - before[0], after[1] - before[1]


def test_updates_are_hot(source: str, target_with_room: str) -> None:
    total, hot = updates(source, target_with_room)
    assert total == 50
    assert hot >= 40


def test_a_btree_ends_that(source: str, target_with_room: str) -> None:
    """The control: what earlier versions created. The report names the remedy, which works."""
    execute(target_with_room, "drop index t_source_xmin_idx", BTREE)
    assert updates(source, target_with_room) == (50, 0)
    execute(source, "insert into t values (5000, 'new')")
    (note,) = sync(source, target_with_room, "t").notes
    assert note.startswith("the btree public.t_source_xmin_idx keeps updates from being HOT")
    remedy = note.split("replace it: ")[1]
    execute(target_with_room, *[one for one in remedy.split(";") if one])
    assert rows(target_with_room, "select indexdef from pg_indexes where tablename = 't' and "
                "indexdef ~ 'source_xmin'") == [
        ("CREATE INDEX t_source_xmin_idx1 ON public.t USING brin (source_xmin)",)
    ]  # fmt: skip
    execute(source, "insert into t values (5001, 'new')")
    assert sync(source, target_with_room, "t").notes == ()
    assert updates(source, target_with_room)[1] >= 40


def test_an_older_target_has_the_index_too(source: str, sixteen: Server) -> None:
    execute(source, "create table i (id int primary key)", "insert into i values (1)")
    sync(source, sixteen.dsn("target"), "i")
    assert rows(sixteen.dsn("target"), "select indexdef from pg_indexes where tablename = 'i' "
                "order by 1")[0] == (
        "CREATE INDEX i_source_xmin_idx ON public.i USING brin (source_xmin)",
    )  # fmt: skip
