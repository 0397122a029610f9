"""Deleted rows found by where they lay: only the buckets that lost rows are compared.

The keys that are left there show which keys were there, where keys grow with the table; that spares
a scan of the target by `source_ctid`, which has no index, so that updates stay HOT.

The counts, the keys and `source_ctid` are hints, which VACUUM FULL or pg_repack make wrong. So a
row is only deleted once the source's snapshot is seen to lack its key, and where fewer are found
than the counts of the whole table say, the caller compares all keys.
"""

from collections.abc import Sequence
from itertools import pairwise

import psycopg
from psycopg import sql

from replica_platform.core.postgres import one_value
from replica_platform.xmin.copy.buckets import BucketCounts
from replica_platform.xmin.copy.stream import copy_stream
from replica_platform.xmin.errors import translate_errors
from replica_platform.xmin.names import TableName, columns_sql
from replica_platform.xmin.source.catalog import SourceTable
from replica_platform.xmin.target.block_counts import read_counts
from replica_platform.xmin.target.tables import CTID

# Beyond these the comparison of all keys costs less.
MOST_RUNS = 200
MOST_FRACTION = 0.25
MOST_CANDIDATES = 20_000
MOST_KEY = 2**63 - 1

_PRESENT = sql.SQL("pg_temp.replica_present")
_CANDIDATES = sql.SQL("pg_temp.replica_candidates")
_CREATE_PRESENT = """
create temp table {present} on commit drop as
select 0::bigint as run, {numbered} from {target} with no data
"""
_KEYS_OF_RUNS = """
select runs.n, k.* from unnest({low}::tid[], {high}::tid[]) with ordinality runs(low, high, n),
lateral (
    -- OFFSET keeps the subquery apart, so that its tids are a range of blocks.
    select {key} from only {leaf} s where s.ctid >= runs.low and s.ctid < runs.high offset 0) k
"""
_CREATE_CANDIDATES = """
create temp table {candidates} on commit drop as
select row_number() over () as n, {numbered} from {target} t where {within} limit {most}
"""
_QUARTILES = """
select percentile_disc(array[0.25, 0.75]) within group (order by k0)
from {present} group by run
"""
_DELETE_PRESENT = "delete from {candidates} t using {present} p where {same}"
_FIND = """
select k.n from unnest({asked}::bigint[], {arrays}) k(n, {columns}) where exists ({rows})
"""
_ROW = "select from only {leaf} s where {same}"
_DELETE = "delete from {target} t using {candidates} p where {same}"


def counts_at(target: psycopg.Connection, name: TableName, snapshot: str) -> BucketCounts | None:
    """Return where the rows lay that a target table got at a snapshot; None where unknown."""
    found = read_counts(target, name, snapshot)
    return BucketCounts(found[0], dict(enumerate(found[1]))) if found else None


def suspicious_runs(lost: BucketCounts) -> list[tuple[int, int]]:
    """Return the runs of blocks that lost rows, each as first block and the one after the last.

    Args:
        lost: How many rows of each bucket have gone without a successor.

    Returns:
        The runs; none where they are too many to be worth it.
    """
    numbers = sorted(number for number, rows in lost.rows.items() if rows > 0)
    if len(numbers) > max(1, MOST_FRACTION * len(lost.rows)):
        return []
    starts = [n for i, n in enumerate(numbers) if not i or numbers[i - 1] != n - 1]
    if len(starts) > MOST_RUNS:
        return []
    ends = [one for one, after in pairwise([*numbers, -1]) if after != one + 1]
    return [
        (first * lost.blocks, (last + 1) * lost.blocks)
        for first, last in zip(starts, ends, strict=True)
    ]


def delete_located(
    source: psycopg.Connection,
    table: SourceTable,
    target: psycopg.Connection,
    target_name: TableName,
    key: Sequence[str],
    runs: Sequence[tuple[int, int]],
    expected: int,
) -> int:
    """Delete the target's rows that lay in some runs of blocks and whose keys the source lacks.

    Args:
        source: A session that sees the snapshot.
        table: The source table.
        target: A session on the target, in a transaction.
        target_name: The target table.
        key: The key columns, of equal types on both sides.
        runs: The runs of blocks.
        expected: How many rows there are to delete; all that are found are deleted.

    Returns:
        How many rows were deleted; fewer than expected without runs, or where there were too many
        candidates.
    """
    if not runs:
        return 0
    _copy_present_keys(source, table, target, target_name, key, runs)
    deleted = 0
    for within in (_key_ranges(table, target, key), _places(runs)):
        if within is not None and deleted < expected:
            _find_candidates(target, target_name, key, within)
            deleted += _delete_absent(source, table, target, target_name, key)
            target.execute(sql.SQL("drop table {}").format(_CANDIDATES))
    target.execute(sql.SQL("drop table {}").format(_PRESENT))
    return deleted


def _delete_absent(
    source: psycopg.Connection,
    table: SourceTable,
    target: psycopg.Connection,
    target_name: TableName,
    key: Sequence[str],
) -> int:
    """Delete the candidates whose keys the source lacks, where they are not too many."""
    rows = target.execute(
        sql.SQL("select n, {} from {} limit {}").format(
            sql.SQL(", ").join(sql.SQL("{}::text").format(one) for one in _numbers(key)),
            _CANDIDATES,
            sql.Literal(MOST_CANDIDATES + 1),
        )
    ).fetchall()
    if not 0 < len(rows) <= MOST_CANDIDATES:
        return 0
    with translate_errors("source", table.name):
        alive = _alive(source, table, key, rows)
    target.execute(sql.SQL("delete from {} where n = any(%s)").format(_CANDIDATES), [alive])
    # Few are left: to join them one by one takes less than a scan of the target.
    target.execute(sql.SQL("analyze {}").format(_CANDIDATES))
    statement = sql.SQL(_DELETE).format(
        target=target_name.sql, candidates=_CANDIDATES, same=_same(key, "t")
    )
    return target.execute(statement).rowcount


def _copy_present_keys(
    source: psycopg.Connection,
    table: SourceTable,
    target: psycopg.Connection,
    target_name: TableName,
    key: Sequence[str],
    runs: Sequence[tuple[int, int]],
) -> None:
    """Copy the keys that the source has in the runs to the target."""
    target.execute(
        sql.SQL(_CREATE_PRESENT).format(
            present=_PRESENT, numbered=_numbered(key), target=target_name.sql
        )
    )
    parts = [
        sql.SQL(_KEYS_OF_RUNS).format(
            key=columns_sql(key, "s"),
            leaf=leaf.name.sql,
            low=sql.Literal([f"({first},0)" for first, _ in runs]),
            high=sql.Literal([f"({last},0)" for _, last in runs]),
        )
        for leaf in table.leaves
    ]
    if parts:
        query = sql.SQL("copy ({}) to stdout").format(sql.SQL(" union all ").join(parts))
        command = sql.SQL("copy {} from stdin").format(_PRESENT)
        copy_stream(source, query, target, command, table.name)
    target.execute(sql.SQL("analyze {}").format(_PRESENT))


def _key_ranges(
    table: SourceTable, target: psycopg.Connection, key: Sequence[str]
) -> sql.Composable | None:
    """Return the condition on the keys that may have been in the runs; None where none can be said.

    A few rows of a run are others, which were put into room that was free: so not from the least to
    the greatest key, but twice as far around the middle half.
    """
    if table.types[key[0]] not in ("smallint", "integer", "bigint"):
        return None
    found = target.execute(sql.SQL(_QUARTILES).format(present=_PRESENT)).fetchall()
    ranges = []
    for ((low, high),) in found:
        reach = high - low + 1
        bounds = (max(low - reach, -MOST_KEY), min(high + reach, MOST_KEY))
        ranges.append(
            sql.SQL("t.{} between {} and {}").format(
                sql.Identifier(key[0]), *(sql.Literal(bound) for bound in bounds)
            )
        )
    return sql.SQL("({})").format(sql.SQL(" or ").join(ranges)) if ranges else None


def _places(runs: Sequence[tuple[int, int]]) -> sql.Composable:
    """Return the condition that a row lay in one of the runs."""
    if len(runs) == 1:
        low, high = (sql.Literal(f"({block},0)") for block in runs[0])
        return sql.SQL("t.{0} >= {1}::tid and t.{0} < {2}::tid").format(
            sql.Identifier(CTID), low, high
        )
    # Above an even number of bounds a tid lies between two runs, above an odd number in one.
    bounds = sql.Literal([f"({block},0)" for run in runs for block in run])
    return sql.SQL("width_bucket(t.{}, {}::tid[]) % 2 = 1").format(sql.Identifier(CTID), bounds)


def _find_candidates(
    target: psycopg.Connection, target_name: TableName, key: Sequence[str], within: sql.Composable
) -> None:
    """Find the target's rows that meet a condition and whose keys are not there any more."""
    present = int(one_value(target.execute(sql.SQL("select count(*) from {}").format(_PRESENT))))
    target.execute(
        sql.SQL(_CREATE_CANDIDATES).format(
            candidates=_CANDIDATES,
            numbered=_numbered(key, "t"),
            target=target_name.sql,
            within=within,
            most=sql.Literal(4 * present + MOST_CANDIDATES),
        )
    )
    # A step of its own: the planner expects one row between two tids, and would join them one by
    # one (3.5 s instead of 0.3 s of 2,000,000 rows).
    target.execute(sql.SQL("analyze {}").format(_CANDIDATES))
    same = sql.SQL(" and ").join(sql.SQL("t.{0} = p.{0}").format(one) for one in _numbers(key))
    target.execute(
        sql.SQL(_DELETE_PRESENT).format(candidates=_CANDIDATES, present=_PRESENT, same=same)
    )


def _alive(
    source: psycopg.Connection,
    table: SourceTable,
    key: Sequence[str],
    candidates: Sequence[Sequence[object]],
) -> list[int]:
    """Return the numbers of the candidates whose keys the source has."""
    numbers = _numbers(key)
    same = sql.SQL(" and ").join(
        sql.SQL("s.{} = k.{}::{}").format(sql.Identifier(name), number, sql.SQL(table.types[name]))
        for name, number in zip(key, numbers, strict=True)
    )
    rows = [sql.SQL(_ROW).format(leaf=leaf.name.sql, same=same) for leaf in table.leaves]
    if not rows:
        return []
    # As literals: in a statement with parameters a table's name may hold no percent sign.
    asked, *columns = (sql.Literal(list(column)) for column in zip(*candidates, strict=True))
    query = sql.SQL(_FIND).format(
        asked=asked,
        arrays=sql.SQL(", ").join(sql.SQL("{}::text[]").format(column) for column in columns),
        columns=sql.SQL(", ").join(numbers),
        rows=sql.SQL(" union all ").join(rows),
    )
    return [n for (n,) in source.execute(query)]


def _numbers(key: Sequence[str]) -> list[sql.Identifier]:
    """Return a name for each key column, which no other name can meet."""
    return [sql.Identifier(f"k{number}") for number in range(len(key))]


def _numbered(key: Sequence[str], alias: str | None = None) -> sql.Composed:
    return sql.SQL(", ").join(
        sql.SQL("{} as {}").format(columns_sql([name], alias), number)
        for name, number in zip(key, _numbers(key), strict=True)
    )


def _same(key: Sequence[str], alias: str) -> sql.Composed:
    """Return the join condition of a table and the numbered columns of `p`."""
    return sql.SQL(" and ").join(
        sql.SQL("{} = p.{}").format(sql.Identifier(alias, name), number)
        for name, number in zip(key, _numbers(key), strict=True)
    )
