"""The blocker: the oldest transaction that writes, running or prepared, which holds W back.

It is only named in reports; a sync never waits for it.
"""

import psycopg

from replica_platform.xmin.source.snapshot import LOW32, Snapshot

_BLOCKER = """
-- The transaction whose xid is W itself: W stays until it ends.
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


def find_blocker(source: psycopg.Connection, snapshot: Snapshot) -> str | None:
    """Return a sentence that names the blocker and its age; None where no transaction runs."""
    if snapshot.quiet:
        return None
    row = source.execute(_BLOCKER, {"w": str(snapshot.w & LOW32)}).fetchone()
    cost = f"{snapshot.next - snapshot.w:,} xids wait behind it"
    if row is None:
        return f"Transaction {snapshot.w & LOW32} holds W back ({cost})."
    session, seconds = row
    age = f" for {seconds:,.0f} s" if seconds is not None else ""
    return f"Transaction {snapshot.w & LOW32} of {session} holds W back{age} ({cost})."
