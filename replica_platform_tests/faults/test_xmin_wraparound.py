"""The same syncs before, across and after a real wraparound of the source's xids."""

from collections.abc import Callable

import pytest

from replica_platform.xmin import sync, validate
from replica_platform_tests.faults.xmin_servers import burn, own_server, past_wraparound
from replica_platform_tests.xmin.helpers import execute, rows

QUERY = "select id, x from t order by id"


def step(source: str, target: str, key: int) -> None:
    """Make three changes, and a sync that must move exactly these."""
    execute(
        source,
        f"insert into t values ({key}, 'new')",
        f"update t set x = 'at {key}' where id = {key % 100 + 1}",
        f"delete from t where id = {key % 100 + 200}",
    )
    report = sync(source, target, "t")
    assert report.mode == "scan"
    assert (report.rows_inserted, report.rows_updated, report.rows_deleted) == (1, 1, 1)
    assert rows(source, QUERY) == rows(target, QUERY)


@pytest.mark.timeout(120)
def test_before_across_and_after(database: Callable[[str], str]) -> None:
    target = database("wrap_target")
    with own_server() as server:
        source = server.dsn("src")
        execute(
            source,
            "create table t (id int primary key, x text)",
            "insert into t select i, 'old' from generate_series(1, 1000) i",
        )
        past_wraparound(server)
        assert sync(source, target, "t").mode == "full"
        step(source, target, 2001)  # before
        execute(source, "create table other (id int primary key)", "insert into other values (1)")
        before = rows(source, "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint")[0][0]
        burn(source, 8_000)
        step(source, target, 2002)  # across
        after = rows(source, "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint")[0][0]
        step(source, target, 2003)  # after
        burn(source, 3_000)
        step(source, target, 2004)
        execute(source, "vacuum (freeze) t")
        step(source, target, 2005)

        # A first copy of a wrapped table takes the rows of both epochs.
        assert sync(source, target, "t", into="again").rows == 1000
        assert sync(source, target, "other").rows == 1
        assert validate(source, target, "t").in_sync

        naive_gt = rows(
            source,
            f"select count(*) from t where xmin::text::bigint >= {before} and x like '%2004'",
        )
        epochs = rows(target, "select count(distinct source_xmin >> 32) from t")
        print(
            f"\nnext xid {before} before and {after} after 8,000 more; rows of {epochs[0][0]} "
            f"epochs in the target; the bare comparison finds {naive_gt[0][0]} of the later rows"
        )
        assert before < 2**32 < after
        assert epochs == [(2,)]
        assert naive_gt == [(0,)]
        execute(source, "update t set x = 'far' where id = 1")
        execute(target, "update replica_platform.mark set w = w - 2200000000, next = w")
        far = sync(source, target, "t")
        assert far.mode == "full"
        assert "too many for a 32-bit xmin" in far.why
        assert rows(source, QUERY) == rows(target, QUERY)
