"""Deleted rows leave no xmin: they are found by comparing keys.

The target's keys are fixed first (the sync holds its lock), then the source's snapshot is
taken; a key that is absent there is an orphan. The other way round a row that arrives between
the two looks would be deleted, and never come back, since its xmin lies below W.

Both sides sum up their keys by ranges of the key's hash, so that neither collations nor byte
orders matter; only the ranges that differ are then compared key by key, in the target.
"""

from collections.abc import Sequence

import psycopg
from psycopg import sql

from replica_platform.xmin.copy.stream import relay
from replica_platform.xmin.errors import TooManyDeletes
from replica_platform.xmin.names import TableName, columns_sql

ROWS_A_RANGE = 128
MOST_RANGES = 1 << 16
# Small tables may lose everything: a rail there would only be in the way.
ALWAYS_ALLOWED = 1_000


class Keys:
    """The keys of one table on both sides, and how they are hashed."""

    def __init__(self, key: Sequence[str], types: Sequence[str], rows: int) -> None:
        self.key = list(key)
        self.types = list(types)
        ranges = 1
        while ranges < MOST_RANGES and ranges * ROWS_A_RANGE < rows:
            ranges *= 2
        self.ranges = ranges

    @property
    def hash(self) -> sql.Composable:
        """64 bits of the key, the same on every supported server."""
        if self.types in (["bigint"], ["integer"], ["smallint"]):
            return sql.SQL("hashint8extended({}::bigint, 0)").format(sql.Identifier(self.key[0]))
        return sql.SQL('hashtextextended(row({})::text collate "C", 0)').format(
            columns_sql(self.key)
        )

    def sums(
        self,
        connection: psycopg.Connection,
        place: sql.Composable,
        version: sql.Composable | None = None,
    ) -> dict[int, tuple[int, int]]:
        """Count and xor of the hashes by range; `version`, a bigint, is hashed in with the key."""
        hashed: sql.Composable = self.hash
        if version is not None:
            hashed = sql.SQL("hashint8extended({}, {})").format(version, hashed)
        rows = connection.execute(
            sql.SQL("select {}, count(*), bit_xor({}) from {} group by 1").format(
                self._range, hashed, place
            )
        )
        return {part: (count, total) for part, count, total in rows}

    @property
    def _range(self) -> sql.Composable:
        return sql.SQL("({} & {})::int").format(self.hash, sql.Literal(self.ranges - 1))

    def within(self, ranges: Sequence[int]) -> sql.Composable:
        """True for keys in one of the ranges."""
        return sql.SQL("{} = any({}::int[])").format(self._range, sql.Literal(list(ranges)))


def delete_orphans(
    source: psycopg.Connection,
    place: sql.Composable,
    target_connection: psycopg.Connection,
    target: TableName,
    keys: Keys,
) -> int:
    """Delete from the target what the source's snapshot does not have; return how many.

    `place` is what the source reads from.
    """
    run = target_connection.execute
    ours = keys.sums(target_connection, target.sql)
    theirs = keys.sums(source, place)
    differing = [part for part, total in ours.items() if theirs.get(part) != total]
    if not differing:
        return 0
    columns = columns_sql(keys.key)
    run(
        sql.SQL(
            "create temp table pg_temp.replica_source_keys on commit drop as "
            "select {} from {} with no data"
        ).format(columns, target.sql)
    )
    relay(
        source,
        sql.SQL("copy (select {} from {} where {}) to stdout").format(
            columns, place, keys.within(differing)
        ),
        target_connection,
        sql.SQL("copy pg_temp.replica_source_keys from stdin"),
        str(target),
    )
    run("analyze pg_temp.replica_source_keys")
    same = sql.SQL(" and ").join(
        sql.SQL("t.{0} = k.{0}").format(sql.Identifier(name)) for name in keys.key
    )
    deleted = run(
        sql.SQL(
            "delete from {} t where {} and not exists "
            "(select from pg_temp.replica_source_keys k where {})"
        ).format(target.sql, keys.within(differing), same)
    ).rowcount
    run("drop table pg_temp.replica_source_keys")
    return deleted


def check_fraction(
    deleted: int,
    rows: int,
    target: TableName,
    max_fraction: float,
    always_allowed: int = ALWAYS_ALLOWED,
) -> None:
    """Refuse a delete that is larger than allowed; the caller's transaction rolls it back."""
    if deleted > always_allowed and deleted > max_fraction * rows:
        raise TooManyDeletes(
            f"{deleted:,} of {rows:,} rows of {target} are no longer in the source, more than "
            f"{max_fraction:.0%}; nothing was deleted. If that is right, sync once with "
            "max_delete_fraction=1."
        )
