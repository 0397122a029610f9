"""Source and target row by row, by hashes first: which keys are missing, stale, extra, pending.

The statements of the comparison belong here; what the differences are worth is `integrity`'s.
"""

from dataclasses import dataclass

import psycopg
from psycopg import sql

from replica_platform.xmin.copy.ranges import full_xid
from replica_platform.xmin.copy.stream import relay
from replica_platform.xmin.integrity.deletes import Keys
from replica_platform.xmin.names import TableName, columns_sql
from replica_platform.xmin.source.catalog import Table
from replica_platform.xmin.source.snapshot import Leader
from replica_platform.xmin.target.tables import Target
from replica_platform.xmin.target.watermark import Mark


@dataclass(frozen=True)
class Difference:
    """What two snapshots of one table differ in."""

    source_rows: int
    target_rows: int
    keyed: bool
    coverage: float
    missing: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    missing_count: int = 0
    stale_count: int = 0
    extra_count: int = 0
    pending_count: int = 0
    source_ages: dict[int, int] | None = None
    target_ages: dict[int, int] | None = None


def compare(
    leader: Leader,
    home: psycopg.Connection,
    table: Table,
    target: TableName,
    key: tuple[str, ...],
    known: Mark,
    found: Target,
    named: int,
) -> Difference:
    """Compare under the leader's snapshot and the target's open transaction."""
    source = leader.connection
    columns = [name for name in table.names if name in found.columns]
    xmin = table.has_xmin and known.mode != "timestamp" and bool(key)
    if not key:
        return _unkeyed(source, home, table.rows(columns), target, columns)
    # The version of a row: its xmin where there is one, else a hash of all of it.
    image = sql.SQL("hashtextextended(row({})::text, 0)").format(columns_sql(columns))
    xid = sql.SQL("({}::text::bigint)").format(table.version)
    theirs = xid if xmin else image
    place = table.rows(key if xmin else columns, system=table.has_xmin)
    ours = sql.SQL("(coalesce(source_xmin, -1) & 4294967295)") if xmin else image
    types = {column.name: column.type for column in table.columns}
    ages, next_xid = table.has_xmin, leader.snapshot.next
    rows = _count(home, target.sql)
    keys = Keys(key, [types[name] for name in key], rows)
    here = keys.sums(home, target.sql, ours)
    there = keys.sums(source, place, theirs)
    differing = [part for part in {*here, *there} if here.get(part) != there.get(part)]
    base = Difference(
        source_rows=sum(count for count, _ in there.values()),
        target_rows=sum(count for count, _ in here.values()),
        keyed=True,
        coverage=1.0,
        source_ages=_ages(source, place, xid, next_xid) if ages else None,
        target_ages=_ages(home, target.sql, sql.SQL("source_xmin"), next_xid) if ages else None,
    )
    if not differing:
        return base
    home.execute(
        sql.SQL(
            "create temp table pg_temp.replica_compare on commit drop as "
            "select {}, 0::bigint as v, 0::bigint as x from {} with no data"
        ).format(_by_place(key), target.sql)
    )
    relay(
        source,
        sql.SQL("copy (select {}, {}, {} from {} where {}) to stdout").format(
            columns_sql(key), theirs,
            full_xid(leader.snapshot, table.version) if table.has_xmin else sql.SQL("null::bigint"),
            place, keys.within(differing),
        ),
        home,
        sql.SQL("copy pg_temp.replica_compare from stdin"),
        str(table.name),
    )  # fmt: skip
    return _name(home, base, target, key, keys.within(differing), ours, known, named)


def _name(
    home: psycopg.Connection,
    base: Difference,
    target: TableName,
    key: tuple[str, ...],
    within: sql.Composable,
    ours: sql.Composable,
    known: Mark,
    named: int,
) -> Difference:
    places = [_place(i) for i in range(len(key))]
    joined = sql.SQL(" and ").join(
        sql.SQL("t.{0} = s.{0}").format(sql.Identifier(name)) for name in places
    )
    rows = home.execute(
        sql.SQL(
            "select kind, count(*), (array_agg(k order by k))[1:{named}] from ("
            " select case when s.v is null then 'extra'"
            "  when s.x >= {w} and not s.x = any({delivered}::bigint[]) then 'pending'"
            "  when t.{first} is null then 'missing' else 'stale' end as kind,"
            "  (case when s.v is null then row({tkey}) else row({skey}) end)::text as k"
            " from (select {key}, {ours} as v from {target} where {within}) t"
            " full join pg_temp.replica_compare s on {joined}"
            " where t.{first} is null or s.v is null or t.v <> s.v) d group by 1"
        ).format(
            named=sql.Literal(named),
            w=sql.Literal(known.w),
            delivered=sql.Literal(list(known.delivered)),
            first=sql.Identifier(places[0]),
            tkey=columns_sql(places, "t"),
            skey=columns_sql(places, "s"),
            key=_by_place(key),
            ours=ours,
            target=target.sql,
            within=within,
            joined=joined,
        )
    ).fetchall()
    counts = {kind: count for kind, count, _ in rows}
    names = {kind: tuple(keys) for kind, _, keys in rows}
    return Difference(
        **{
            **base.__dict__,
            "missing": names.get("missing", ()),
            "stale": names.get("stale", ()),
            "extra": names.get("extra", ()),
            "missing_count": counts.get("missing", 0),
            "stale_count": counts.get("stale", 0),
            "extra_count": counts.get("extra", 0),
            "pending_count": counts.get("pending", 0),
        }
    )


def _place(index: int) -> str:
    return f"k{index}"


def _by_place(key: tuple[str, ...]) -> sql.Composable:
    """The key's columns under names by their place, which meet neither `v` nor `x`."""
    return sql.SQL(", ").join(
        sql.SQL("{} as {}").format(sql.Identifier(name), sql.Identifier(_place(i)))
        for i, name in enumerate(key)
    )


def _unkeyed(
    source: psycopg.Connection,
    home: psycopg.Connection,
    place: sql.Composable,
    target: TableName,
    columns: list[str],
) -> Difference:
    """Without a key: the multisets of rows are equal or not; no row can be named."""
    query = "select count(*), sum(hashtextextended(row({})::text, 0)::numeric) from {}"
    there = source.execute(sql.SQL(query).format(columns_sql(columns), place)).fetchone()
    here = home.execute(sql.SQL(query).format(columns_sql(columns), target.sql)).fetchone()
    assert there is not None and here is not None
    differ = max(1, abs(there[0] - here[0])) if there != here else 0
    return Difference(there[0], here[0], False, 1.0, pending_count=differ)


def _ages(
    connection: psycopg.Connection, place: sql.Composable, xid: sql.Composable, next_xid: int
) -> dict[int, int]:
    """Rows by floor(log2) of their age, counted on both sides from the same next xid.

    Not by age(): that counts from the session's own next xid, so that on a busy source all
    rows of one transaction could stand in another class there than here.
    """
    age = sql.SQL("({} - {}) & 4294967295").format(sql.Literal(next_xid), xid)
    rows = connection.execute(
        sql.SQL(
            "select floor(log(2, greatest(age, 1)))::int, sum(n)::bigint from "
            "(select {age} as age, count(*) as n from {place} group by 1) a "
            "where age is not null group by 1 order by 1"
        ).format(age=age, place=place)
    )
    return dict(rows.fetchall())


def _count(connection: psycopg.Connection, place: sql.Composable) -> int:
    row = connection.execute(sql.SQL("select count(*) from {}").format(place)).fetchone()
    assert row is not None
    return int(row[0])
