"""Reading by a timestamp column, for what has no xmin: views, foreign tables, other storages.

Weaker than xmin by nature: a row's time is set when it is written, not when it is committed,
and nothing forces a writer to move it. The look back covers the first; nothing covers the
second, and integrity caps its score for it.
"""

import psycopg
from psycopg import sql

MARGIN_S = 60
# Where other roles' transactions cannot be seen, or run on another server.
BLIND_MARGIN_S = 3600

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


def next_start(source: psycopg.Connection) -> str:
    """Where the read after this one starts; to be taken before this one's snapshot."""
    row = source.execute(_START, [BLIND_MARGIN_S, MARGIN_S]).fetchone()
    assert row is not None
    return str(row[0])


def since_condition(column: str, since: str) -> sql.Composable:
    """Rows without a time are read every time: nothing tells when they changed."""
    name = sql.Identifier(column)
    return sql.SQL("({0} >= {1}::timestamptz or {0} is null)").format(name, sql.Literal(since))
