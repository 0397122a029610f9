"""Reading by a timestamp column, for tables without xmin: views, foreign tables, other storages.

Weaker than xmin by nature: a row's time is set when it is written, not when it is committed, and
nothing forces a writer to move it forward. Looking back further than the oldest transaction covers
the first; nothing covers the second, for which integrity caps the score.

A column without a time zone holds the wall clock of the writer's session. It is compared with the
start of the read on that clock: the sessions of a sync are in UTC, and a comparison with a
`timestamptz` there would miss every change that was written west of it.
"""

from dataclasses import dataclass

import psycopg
from psycopg import sql

from replica_platform.core.postgres import one_value
from replica_platform.xmin.errors import CannotSync

MARGIN_S = 60
# Where other roles' transactions cannot be seen, or run on another server.
BLIND_MARGIN_S = 3600
# No clock on earth is further behind UTC.
WESTERNMOST = "Etc/GMT+12"

_START = """
-- Older than the oldest transaction that may still write, by the server's clock.
select (least(
    now(),
    (select min(xact_start) from pg_stat_activity where backend_type = 'client backend'),
    (select min(prepared) from pg_prepared_xacts)
) - make_interval(secs => case
    when pg_is_in_recovery() or exists (
        select from pg_stat_activity
        where backend_type = 'client backend' and query = '<insufficient privilege>')
    then %s else %s end))::text
"""
_BASE_TYPE = """
-- The type of a column; a domain is followed to its base type.
with recursive base(oid) as (
    select a.atttypid from pg_attribute a
    where a.attrelid = %s and a.attname = %s and not a.attisdropped
    union all
    select t.typbasetype from base b join pg_type t on t.oid = b.oid where t.typtype = 'd'
)
select format_type(t.oid, null) from base b join pg_type t on t.oid = b.oid where t.typtype <> 'd'
"""
_CONFIGURED_ZONE = "select reset_val from pg_settings where name = 'TimeZone'"
_WALL_CLOCK = """
-- The earliest that a clock of the zone shows from then on: it is put back where summer time ends,
-- always at a full quarter of an hour.
select min(hand at time zone %(zone)s)::text
from generate_series(date_bin('15 minutes', %(since)s::timestamptz, 'epoch'::timestamptz),
                     %(since)s::timestamptz + interval '25 hours', '15 minutes') hand
"""


@dataclass(frozen=True)
class Window:
    """The rows that a read by a timestamp column covers.

    Attributes:
        condition: The condition that they meet.
        zoneless: Whether the column has no time zone.
        assumed: A sentence on the time zone that was assumed; empty where the column has one.
    """

    condition: sql.Composable
    zoneless: bool
    assumed: str


def next_start(source: psycopg.Connection) -> str:
    """Return where the next read starts; to be taken before the snapshot of this one."""
    return str(one_value(source.execute(_START, [BLIND_MARGIN_S, MARGIN_S])))


def window(
    source: psycopg.Connection, table_oid: int, column: str, since: str | None, zone: str | None
) -> Window:
    """Return the rows of a table from `since` on (None: all) by a column.

    Args:
        source: The session that reads.
        table_oid: The table.
        column: Its column of times.
        since: Where the read starts, as `next_start` returned it.
        zone: The time zone of the writers' sessions. None: unknown, since a client may set another
            one than the server's; the read then starts where the westernmost clock was.

    Raises:
        CannotSync: The column holds no times, or the source does not know the zone.
    """
    row = source.execute(_BASE_TYPE, [table_oid, column]).fetchone()
    kind = str(row[0]) if row else "unknown"
    if kind == "timestamp with time zone":
        return Window(_from(column, since, kind), False, "")
    if kind not in ("timestamp without time zone", "date"):
        raise CannotSync(
            f"Mode timestamp reads by a timestamp or a date, and {column} is of type {kind}; "
            "name another column with timestamp_column, or use mode full."
        )
    start = _wall_clock(source, since, zone or WESTERNMOST)
    if zone:
        assumed = f"{column} has no time zone and is read as {zone}."
    else:
        found = source.execute(_CONFIGURED_ZONE).fetchone()
        assumed = (
            f"{column} has no time zone and is taken for {found[0] if found else 'UTC'}, the "
            "source's configured TimeZone; since a writer may set another one, the read starts "
            "early enough for every zone (timestamp_zone names the writers' and reads less)."
        )
    return Window(_from(column, since and start, kind), True, assumed)


def _wall_clock(source: psycopg.Connection, since: str | None, zone: str) -> str:
    """Return the earliest time that a clock of the zone shows at `since` or later."""
    try:
        with source.transaction():
            found = source.execute(_WALL_CLOCK, {"zone": zone, "since": since or "now"})
            return str(one_value(found))
    except psycopg.errors.InvalidParameterValue as error:
        raise CannotSync(
            f"The source knows no time zone {zone!r}; set timestamp_zone to a name of its "
            "pg_timezone_names, such as America/New_York."
        ) from error


def _from(column: str, start: str | None, kind: str) -> sql.Composable:
    # Rows without a time are read every time: nothing tells when they changed.
    if start is None:
        return sql.SQL("true")
    return sql.SQL("({0} >= {1}::{2} or {0} is null)").format(
        sql.Identifier(column), sql.Literal(start), sql.SQL(kind)
    )
