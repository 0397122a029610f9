"""The table of the history in the target: written with upserts, cut off by age."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import psycopg
from psycopg import sql

from replica_platform.core.postgres import connect, one_value
from replica_platform.history.errors import HistoryNotWritten
from replica_platform.history.series import COMBINE, SERIES, Sample, Span

SCHEMA, TABLE = "replica_platform", "history"
# The space of advisory locks that the platform's tables are created under.
LOCK_SPACE = 0x5250
_TABLE = sql.Identifier(SCHEMA, TABLE)
_THERE = "select to_regclass(%s) is not null"
_SETUP = sql.SQL("""
create table if not exists {table} (
    series text not null,
    name text not null,
    span text not null,
    at timestamptz not null,
    value double precision not null,
    primary key (series, name, span, at)
);
create index if not exists history_by_age on {table} (span, at)
""").format(table=_TABLE)
# Sorted, so that two writers lock the same rows in the same order.
_WRITE = sql.SQL("""
insert into {table} as history (series, name, span, at, value)
select series, name, %(span)s, date_trunc(%(span)s, %(at)s::timestamptz, 'UTC'), value
from unnest(%(series)s::text[], %(names)s::text[], %(values)s::float8[]) new (series, name, value)
order by series, name
on conflict (series, name, span, at) do update set value = case history.series {cases} end
""").format(
    table=_TABLE,
    cases=sql.SQL(" ").join(
        sql.SQL("when {} then ").format(series) + sql.SQL(COMBINE[how])
        for series, how in SERIES.items()
    ),
)
_CUT = sql.SQL("""
delete from {table} where span = %(span)s
and at <= date_trunc(%(span)s, %(at)s::timestamptz, 'UTC') - %(kept)s * %(length)s::interval
""").format(table=_TABLE)
_READ = sql.SQL("""
select name, extract(epoch from at)::bigint, value from {table}
where series = %s and span = %s and at > %s::timestamptz - %s * %s::interval order by name, at
""").format(table=_TABLE)


@dataclass(frozen=True)
class Past:
    """The past of one series.

    Attributes:
        at: The moments, as seconds since 1970, ascending and without a gap.
        values: For each name its value at each moment; None where nothing was recorded.
    """

    at: Sequence[int]
    values: Mapping[str, Sequence[float | None]]


def record(target: str, samples: Iterable[Sample], *, at: datetime | None = None) -> int:
    """Add samples to their hour and their day, and remove what is too old.

    Args:
        target: The DSN of the target.
        samples: What was seen; of the same series and name only the last one counts.
        at: When it was seen; now if left out.

    Returns:
        How many samples were stored.

    Raises:
        CannotConnect: The target does not answer.
        HistoryNotWritten: The role may not write there.
        KeyError: There is no such series.
    """
    seen = {(one.series, one.name): float(one.value) for one in samples if one.value is not None}
    for series, _ in seen:
        SERIES[series]
    if not seen:
        return 0
    given = {
        "series": [series for series, _ in seen],
        "names": [name for _, name in seen],
        "values": list(seen.values()),
        "at": at or datetime.now(UTC),
    }
    try:
        with connect(target) as connection:
            _set_up(connection)
            for span in Span:
                length = {"span": span.unit, "kept": span.kept, "length": f"1 {span.unit}"}
                connection.execute(_WRITE, given | length)
                connection.execute(_CUT, given | length)
    except psycopg.errors.InsufficientPrivilege as error:
        raise HistoryNotWritten(
            f"The history cannot be written to the target ({_line(error)}); let its role create "
            f"and write tables in the schema {SCHEMA}."
        ) from error
    except psycopg.Error as error:
        raise HistoryNotWritten(
            f"The history was not written to the target ({_line(error)}); the next look writes it."
        ) from error
    return len(seen)


def read(
    target: str, series: Iterable[str], span: Span, count: int, *, at: datetime | None = None
) -> dict[str, Past]:
    """Return the last hours or days of some series.

    Args:
        target: The DSN of the target.
        series: Their names.
        span: Hours or days.
        count: How many of them, up to now.
        at: The moment to look back from; now if left out.

    Returns:
        The past of each series; without names where nothing was recorded.

    Raises:
        CannotConnect: The target does not answer.
    """
    now = at or datetime.now(UTC)
    length_s = 3600 if span is Span.HOUR else 86_400
    last = int(now.timestamp()) // length_s
    moments = [moment * length_s for moment in range(last - count + 1, last + 1)]
    place = {moment: number for number, moment in enumerate(moments)}
    found: dict[str, Past] = {}
    with connect(target) as connection:
        there = one_value(connection.execute(_THERE, [f"{SCHEMA}.{TABLE}"]))
        for one in series:
            values: dict[str, list[float | None]] = {}
            asked = [one, span.unit, now, count + 1, f"1 {span.unit}"]
            for name, moment, value in connection.execute(_READ, asked) if there else ():
                if moment in place:
                    row = values.setdefault(name, [None] * count)
                    row[place[moment]] = value
            found[one] = Past(moments, values)
    return found


def _line(error: psycopg.Error) -> str:
    return str(error).partition("\n")[0]


def _set_up(connection: psycopg.Connection) -> None:
    if one_value(connection.execute(_THERE, [f"{SCHEMA}.{TABLE}"])):
        return
    if one_value(connection.execute("select to_regnamespace(%s) is null", [SCHEMA])):
        # IF NOT EXISTS fails beside another session that does the same; then the schema is there.
        made_meanwhile = suppress(psycopg.errors.UniqueViolation, psycopg.errors.DuplicateSchema)
        create = sql.SQL("create schema if not exists {}").format(sql.Identifier(SCHEMA))
        with made_meanwhile, connection.transaction():
            connection.execute(create)
    connection.execute("select pg_advisory_xact_lock(%s, 1)", [LOCK_SPACE])
    connection.execute(_SETUP)
