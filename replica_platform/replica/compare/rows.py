"""The rows of a table that only one of two generations has, found by DuckDB within its memory.

Equal rows of both cancel each other out, also where a table has one several times; what is left is
paired by the table's key. Values are compared as DuckDB groups them: NULL is NULL, NaN is NaN, and
0.0 is -0.0. Texts are compared byte by byte, whatever the collation of their column.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb

from replica_platform.replica.compare.reports import RowChange, Values
from replica_platform.replica.compare.row_groups import Range, Unread
from replica_platform.replica.compare.tables import Pair, Table
from replica_platform.replica.copy.file_format import quoted

# Positive `n`: rows of the later generation; negative: of the earlier one.
_LEFT_OVER = """
select {names}, sum(sign)::bigint n from ({rows}) {part} group by all having sum(sign) <> 0
"""
# Of a table whose rows do not fit into the memory, so many parts are grouped one after another:
# DuckDB's grouping may run out of memory although it writes to the disk.
PARTS = (1, 8, 64)
_BY_KEY = """
select count(*) filter (added and not removed), count(*) filter (removed and not added),
    count(*) filter (added and removed)
from (
    select bool_or(n > 0) added, bool_or(n < 0) removed from left_over where {has_key}
    group by {key}
)
"""
_UNPAIRED = """
select coalesce(sum(n) filter (n > 0), 0), coalesce(-sum(n) filter (n < 0), 0)
from left_over where not ({has_key})
"""
_JOINED = """
from (from left_over where n < 0 and {has_key}) a
join (from left_over where n > 0 and {has_key}) b on {same_key}
"""
_ONE_SIDED = """
select {texts} from (from left_over where n {sign}) a
where not exists (
    select 1 from left_over b where n {other} and ({has_key}) and {same_key}
) order by all limit ?
"""


@dataclass(frozen=True)
class RowDiff:
    """The rows of a table that differ; see `TableDiff`."""

    added: int
    removed: int
    changed: int
    changed_columns: Mapping[str, int]
    samples: Sequence[RowChange]


def compare_rows(
    connection: duckdb.DuckDBPyConnection, pair: Pair, unread: Unread, samples: int
) -> RowDiff:
    """Return which rows of a table differ.

    Args:
        connection: The connection to which both generations are attached.
        pair: The table.
        unread: The rows that have to be read.
        samples: How many rows of each kind are shown.

    Raises:
        duckdb.Error: A generation cannot be read, or memory and temporary disk space do not do.
    """
    names = ", ".join(f"c{number}" for number in range(len(pair.shared)))
    rows = " union all ".join(
        [
            *_select(pair, pair.before, -1, unread.before),
            *_select(pair, pair.after, 1, unread.after),
        ]
    )
    for parts in PARTS:
        try:
            _keep_left_over(connection, names, rows, parts)
            break
        except duckdb.OutOfMemoryException:
            if parts == PARTS[-1]:
                raise
    try:
        return _LeftOver(connection, pair).diff(samples)
    finally:
        connection.execute("drop table left_over")


def _keep_left_over(
    connection: duckdb.DuckDBPyConnection, names: str, rows: str, parts: int
) -> None:
    """Make the table of the rows that do not cancel each other out, grouped in so many parts."""
    for part in range(parts):
        where = f"where hash({names}) % {parts} = {part}" if parts > 1 else ""
        into = "insert into left_over" if part else "create or replace temp table left_over as"
        connection.execute(into + _LEFT_OVER.format(names=names, rows=rows, part=where))


def _select(pair: Pair, table: Table, sign: int, ranges: Sequence[Range] | None) -> list[str]:
    """Return the queries of the shared columns of a table's unread rows."""
    columns = ", ".join(
        f"{_exactly(quoted(name), table.columns[name])} as c{number}"
        for number, name in enumerate(pair.shared)
    )
    query = f"select {columns}, {sign} as sign from {table.source}"
    if ranges is None:
        return [query]
    # One query each: of ranges that are joined by `or`, DuckDB reads the whole table.
    found = [f"{query} where rowid between {first} and {last}" for first, last in ranges]
    return found or [f"{query} where false"]


def _exactly(column: str, kind: str) -> str:
    """Return an expression whose values are the same only where the stored ones are."""
    if kind == "VARCHAR":
        return f'{column} collate "C"'
    # A month counts as 30 days where intervals are compared.
    return f"{column}::varchar" if kind == "INTERVAL" else column


class _LeftOver:
    """The table `left_over` of a connection: its rows counted, paired and shown."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, pair: Pair) -> None:
        self._connection = connection
        self._columns = pair.shared
        self._kinds = [pair.after.columns[name] for name in self._columns]
        self._key = [self._columns.index(name) for name in pair.key]
        key = [f"c{at}" for at in self._key]
        self._words = {
            "key": ", ".join(key),
            # A unique key may be NULL, in any number of rows.
            "has_key": " and ".join(f"{name} is not null" for name in key) or "false",
            "same_key": " and ".join(f"a.{name} = b.{name}" for name in key) or "false",
        }

    def diff(self, samples: int) -> RowDiff:
        """Return what is in the table."""
        added = removed = changed = 0
        if self._key:
            added, removed, changed = self._row(_BY_KEY)
        more_added, more_removed = self._row(_UNPAIRED)
        return RowDiff(
            int(added + more_added),
            int(removed + more_removed),
            int(changed),
            self._changed_columns() if changed else {},
            self._samples(samples) if samples else [],
        )

    def _row(self, query: str) -> tuple[int, ...]:
        found = self._connection.execute(query.format_map(self._words)).fetchone()
        assert found is not None
        return found

    def _differs(self, at: int) -> str:
        a, b = (f"{side}.c{at}" for side in "ab")
        if "VARIANT" in self._kinds[at].upper():  # of two types they group, but cannot be compared
            a, b = f"{a}::varchar", f"{b}::varchar"
        differs = f"{a} is distinct from {b}"
        if self._kinds[at] == "VARIANT":
            types = (f"variant_typeof({side}.c{at})" for side in "ab")
            differs = f"({differs} or {' is distinct from '.join(types)})"
        return differs

    def _others(self) -> list[int]:
        return [at for at in range(len(self._columns)) if at not in self._key]

    def _changed_columns(self) -> dict[str, int]:
        """Return in how many of the changed rows each column differs, those with none left out."""
        counts = ", ".join(f"count(*) filter ({self._differs(at)})" for at in self._others())
        found = self._row(f"select {counts} {_JOINED}")
        return {
            self._columns[at]: rows for at, rows in zip(self._others(), found, strict=True) if rows
        }

    def _samples(self, limit: int) -> list[RowChange]:
        removed = [RowChange(self._named(row), None) for row in self._one_sided("< 0", limit)]
        added = [RowChange(None, self._named(row)) for row in self._one_sided("> 0", limit)]
        return [*added, *removed, *(self._changed(limit) if self._key else [])]

    def _one_sided(self, sign: str, limit: int) -> list[tuple[str | None, ...]]:
        texts = ", ".join(f"c{at}::varchar" for at in range(len(self._columns)))
        other = "> 0" if sign == "< 0" else "< 0"
        query = _ONE_SIDED.format(texts=texts, sign=sign, other=other, **self._words)
        return self._connection.execute(query, [limit]).fetchall()

    def _named(self, row: Sequence[str | None]) -> Values:
        return dict(zip(self._columns, row, strict=True))

    def _changed(self, limit: int) -> list[RowChange]:
        """Return changed rows: their key, and the columns that changed."""
        both = range(len(self._columns))
        texts = ", ".join(f"{side}.c{at}::varchar" for side in "ab" for at in both)
        flags = ", ".join(self._differs(at) for at in both)
        order = ", ".join(f"a.c{at}" for at in self._key)
        query = f"select {texts}, {flags} {_JOINED} order by {order} limit {limit:d}"
        found = []
        for row in self._connection.execute(query.format_map(self._words)).fetchall():
            width = len(self._columns)
            shown = [at for at in both if at in self._key or row[2 * width + at]]
            before, after = (
                {self._columns[at]: row[side * width + at] for at in shown} for side in (0, 1)
            )
            found.append(RowChange(before, after))
        return found
