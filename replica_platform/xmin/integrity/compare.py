"""Source and target compared key by key, by hashes first: missing, stale, extra, pending rows.

The statements of the comparison belong here; what the differences mean is `validate`'s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import psycopg
from psycopg import sql

from replica_platform.core.postgres import one_row
from replica_platform.xmin.copy.ranges import full_xid
from replica_platform.xmin.copy.stream import copy_stream
from replica_platform.xmin.errors import translate_errors
from replica_platform.xmin.integrity.key_hashes import (
    TARGET_XMIN,
    KeyHashes,
    differing_ranges,
    row_hash,
)
from replica_platform.xmin.names import TableName, columns_sql, equal_columns
from replica_platform.xmin.source.catalog import SourceTable
from replica_platform.xmin.source.snapshot import SourceSnapshot
from replica_platform.xmin.target.columns import wider_in_target
from replica_platform.xmin.target.tables import XMIN, TargetTable, count_rows
from replica_platform.xmin.target.watermark import Watermark

_VERSIONS = sql.SQL("pg_temp.replica_compare")


@dataclass(frozen=True)
class BothSides:
    """One table on both servers, each under a fixed snapshot.

    Attributes:
        source: The source's session, with its snapshot.
        table: The table there.
        target: The target's session, in a transaction.
        target_name: The table there.
        found: The target table's columns.
        key: The key columns; empty for none.
        watermark: What the last sync remembers.
        content: Whether the content of rows is compared too, where they have an xmin.
    """

    source: SourceSnapshot
    table: SourceTable
    target: psycopg.Connection
    target_name: TableName
    found: TargetTable
    key: tuple[str, ...]
    watermark: Watermark
    content: bool = False

    @property
    def columns(self) -> list[str]:
        """The columns that both sides have."""
        return [name for name in self.table.names if name in self.found.columns]

    @property
    def casts(self) -> dict[str, str]:
        """The columns that are wider in the target, with their types there."""
        return wider_in_target(self.table, self.found)

    @property
    def by_xmin(self) -> bool:
        """Whether a row's version is its xmin; otherwise it is a hash of the row."""
        return self.table.has_xmin and self.watermark.mode != "timestamp"

    @property
    def compares_content(self) -> bool:
        """Whether rows of equal versions have equal content."""
        return self.content or not self.by_xmin or not self.key

    @property
    def source_xmin(self) -> sql.Composable:
        """The xmin of a source row, as a bigint."""
        return sql.SQL("({}::text::bigint)").format(self.table.xmin_column)

    @property
    def source_version(self) -> sql.Composable:
        """The version of a source row."""
        return self._version(self.source_xmin)

    @property
    def target_version(self) -> sql.Composable:
        """The version of a target row."""
        return self._version(TARGET_XMIN)

    def _version(self, xmin: sql.Composable) -> sql.Composable:
        if not self.compares_content:
            return xmin
        return row_hash(self.columns, self.casts, *([xmin] if self.by_xmin else []))

    @property
    def source_rows(self) -> sql.Composable:
        """The source's rows, with what the key and the version need."""
        columns = self.columns if self.compares_content else self.key
        return self.table.rows(columns, system=self.table.has_xmin)


@dataclass(frozen=True)
class Difference:
    """What two snapshots of one table differ in.

    Attributes:
        source_rows: Rows in the source.
        target_rows: Rows in the target.
        keyed: Whether the rows were compared by key.
        counts: Rows by kind: `missing`, `stale`, `extra`, `pending`.
        named: Some keys of each kind, as `(1,a)`.
        source_ages: Rows by floor(log2(age of xmin)); None without xmin.
        target_ages: The same of the target.
    """

    source_rows: int
    target_rows: int
    keyed: bool
    counts: Mapping[str, int] = field(default_factory=dict)
    named: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    source_ages: dict[int, int] | None = None
    target_ages: dict[int, int] | None = None


def compare(both: BothSides, most_named: int) -> Difference:
    """Compare both sides; up to `most_named` keys of each kind are named."""
    if not both.key:
        return _compare_multisets(both)
    keys = KeyHashes(both.table, both.key, count_rows(both.target, both.target_name), both.casts)
    in_target = keys.sums(both.target, both.target_name.sql, both.target_version)
    with translate_errors("source", both.table.name):
        in_source = keys.sums(both.source.connection, both.source_rows, both.source_version)
    difference = Difference(
        source_rows=sum(count for count, _ in in_source.values()),
        target_rows=sum(count for count, _ in in_target.values()),
        keyed=True,
    )
    if both.table.has_xmin:
        difference = _with_ages(difference, both)
    ranges = differing_ranges(in_target, in_source)
    if not ranges:
        return difference
    within = keys.within(ranges)
    _copy_versions(both, keys, within)
    return _classify(difference, both, within, most_named)


def _compare_multisets(both: BothSides) -> Difference:
    """Without a key: the multisets of rows are equal or not; no row can be named."""
    query = sql.SQL("select count(*), sum({}::numeric) from {}")
    hashed = row_hash(both.columns, both.casts)
    with translate_errors("source", both.table.name):
        rows = both.table.rows(both.columns)
        in_source = one_row(both.source.connection.execute(query.format(hashed, rows)))
    in_target = one_row(both.target.execute(query.format(hashed, both.target_name.sql)))
    pending = max(1, abs(in_source[0] - in_target[0])) if in_source != in_target else 0
    return Difference(in_source[0], in_target[0], keyed=False, counts={"pending": pending})


def _with_ages(difference: Difference, both: BothSides) -> Difference:
    next_xid = both.source.snapshot.next
    target_ages = _ages(both.target, both.target_name.sql, sql.Identifier(XMIN), next_xid)
    with translate_errors("source", both.table.name):
        source_ages = _ages(both.source.connection, both.source_rows, both.source_xmin, next_xid)
    return replace(difference, source_ages=source_ages, target_ages=target_ages)


def _ages(
    connection: psycopg.Connection, rows: sql.Composable, xid: sql.Composable, next_xid: int
) -> dict[int, int]:
    """Count rows by floor(log2) of their age, on both sides from the same next xid.

    Not by age(): that counts from the session's own next xid, so that on a busy source all rows of
    one transaction could fall into another class there than here.
    """
    age = sql.SQL("({} - {}) & 4294967295").format(sql.Literal(next_xid), xid)
    found = connection.execute(
        sql.SQL(
            "select floor(log(2, greatest(age, 1)))::int, sum(n)::bigint from "
            "(select {} as age, count(*) as n from {} group by 1) a "
            "where age is not null group by 1 order by 1"
        ).format(age, rows)
    )
    return dict(found.fetchall())


def _copy_versions(both: BothSides, keys: KeyHashes, within: sql.Composable) -> None:
    """Copy the keys, versions and full xids of the source's differing ranges to the target."""
    both.target.execute(
        sql.SQL(
            "create temp table {} on commit drop as "
            "select {}, 0::bigint as version, 0::bigint as xid from {} with no data"
        ).format(_VERSIONS, _numbered(both.key), both.target_name.sql)
    )
    xid: sql.Composable = sql.SQL("null::bigint")
    if both.table.has_xmin:
        xid = full_xid(both.source.snapshot, both.table.xmin_column)
    copy_stream(
        both.source.connection,
        sql.SQL("copy (select {}, {}, {} from {} where {}) to stdout").format(
            keys.columns, both.source_version, xid, both.source_rows, within
        ),
        both.target,
        sql.SQL("copy {} from stdin").format(_VERSIONS),
        both.table.name,
    )


def _classify(
    difference: Difference, both: BothSides, within: sql.Composable, most_named: int
) -> Difference:
    """Count and name the rows that differ, by kind."""
    key = _numbers(both.key)
    rows = both.target.execute(
        sql.SQL(
            "select kind, count(*), (array_agg(k order by k))[1:{most_named}] from ("
            " select case when s.version is null then 'extra'"
            "  when s.xid >= {w} and not s.xid = any({delivered}::bigint[]) then 'pending'"
            "  when t.{first} is null then 'missing' else 'stale' end as kind,"
            "  (case when s.version is null then row({tkey}) else row({skey}) end)::text as k"
            " from (select {key}, {version} as version from {target} where {within}) t"
            " full join {versions} s on {joined}"
            " where t.{first} is null or s.version is null or t.version <> s.version) d group by 1"
        ).format(
            most_named=sql.Literal(most_named),
            w=sql.Literal(both.watermark.w),
            delivered=sql.Literal(list(both.watermark.delivered)),
            first=sql.Identifier(key[0]),
            tkey=columns_sql(key, "t"),
            skey=columns_sql(key, "s"),
            key=_numbered(both.key),
            version=both.target_version,
            target=both.target_name.sql,
            within=within,
            versions=_VERSIONS,
            joined=equal_columns(key),
        )
    ).fetchall()
    return replace(
        difference,
        counts={kind: count for kind, count, _ in rows},
        named={kind: tuple(keys) for kind, _, keys in rows},
    )


def _numbers(key: Sequence[str]) -> list[str]:
    """Return a name for each key column that is neither `version` nor `xid`."""
    return [f"k{number}" for number in range(len(key))]


def _numbered(key: Sequence[str]) -> sql.Composable:
    """Return the key columns, each renamed by its number."""
    return sql.SQL(", ").join(
        sql.SQL("{} as {}").format(sql.Identifier(name), sql.Identifier(number))
        for name, number in zip(key, _numbers(key), strict=True)
    )
