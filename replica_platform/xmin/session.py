"""Sessions on both servers, with every setting pinned that changes a value or ends a session.

How a session is set up belongs here; what it is used for does not.
"""

import psycopg

from replica_platform.core.postgres import connect
from replica_platform.xmin.errors import LOCK_TIMEOUT_S, Side, translate_errors

_PINNED = {
    "client_encoding": "UTF8",
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "xmloption": "content",
    "lock_timeout": f"{LOCK_TIMEOUT_S}s",
    "statement_timeout": "0",
    # A sync waits on one server while it uses the other, for as long as a copy takes.
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "transaction_timeout": "0",
    "default_transaction_read_only": "off",
    # Rows hidden by a policy would look deleted: an error is better than a silent filter.
    "row_security": "off",
    "jit": "off",
    # Notices such as "does not exist, skipping" tell the user nothing.
    "client_min_messages": "warning",
}
# With the empty path, format_type spells every type that is not built in with its schema.
_PINNED_ON_SOURCE = {"search_path": ""}
# A setting that the server's version does not have is skipped.
_PIN = """
select count(set_config(s.name, s.value, false)), repeat(' ', %s)
from unnest(%s::text[], %s::text[]) s(name, value) where current_setting(s.name, true) is not null
"""
# libpq reads at most 16 kB at a time from the socket until a message was larger. One such answer
# saves half of the switches between processes (2,000,000 rows by two streams: 1.49 s to 1.37 s).
_WIDE_ANSWER_BYTES = 256 * 1024


def open_source(dsn: str) -> psycopg.Connection:
    """Open a session on the source, in autocommit mode."""
    return _open(dsn, "source", {**_PINNED, **_PINNED_ON_SOURCE}, _WIDE_ANSWER_BYTES)


def open_target(dsn: str) -> psycopg.Connection:
    """Open a session on the target, in autocommit mode."""
    return _open(dsn, "target", _PINNED, 0)


def _open(dsn: str, side: Side, settings: dict[str, str], answer_bytes: int) -> psycopg.Connection:
    connection = connect(dsn, application_name="replica_platform xmin", autocommit=True)
    try:
        with translate_errors(side, "its tables"):
            connection.execute(_PIN, [answer_bytes, list(settings), list(settings.values())])
    except BaseException:
        connection.close()
        raise
    return connection
