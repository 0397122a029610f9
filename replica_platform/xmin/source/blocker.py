"""Who holds W back: the oldest transaction that writes, prepared or running.

Only the naming belongs here; it is never waited for.
"""

import psycopg

from replica_platform.xmin.source.snapshot import LOW32, Snapshot

_HOLDER = """
-- The transaction whose xid is W itself: while it lasts, W stays.
select 'prepared transaction ' || quote_literal(gid) || ' of ' || owner,
       extract(epoch from clock_timestamp() - prepared)::float8
from pg_prepared_xacts where transaction = %(w)s::xid
union all
select 'pid ' || pid || coalesce(' (' || usename || ', ' || nullif(application_name, '') || ')', '')
       || coalesce(', ' || state, ''),
       extract(epoch from clock_timestamp() - xact_start)::float8
from pg_stat_activity where backend_xid = %(w)s::xid
limit 1
"""


def of(source: psycopg.Connection, snapshot: Snapshot) -> str | None:
    """A sentence that names who holds W back and since when; None where nobody does."""
    if snapshot.quiet:
        return None
    row = source.execute(_HOLDER, {"w": str(snapshot.w & LOW32)}).fetchone()
    cost = f"{snapshot.next - snapshot.w:,} xids wait behind it"
    if row is None:
        return f"Transaction {snapshot.w & LOW32} holds W back ({cost})."
    who, seconds = row
    age = f" for {seconds:,.0f} s" if seconds is not None else ""
    return f"Transaction {snapshot.w & LOW32} of {who} holds W back{age} ({cost})."
