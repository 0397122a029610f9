"""The translation of Postgres's errors into the outbox's own: wait, stop, or set a row aside.

The classes are data, by SQLSTATE; the longest prefix wins. What a drain does about each class
belongs to `drain` and `isolate`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from replica_platform.core import postgres
from replica_platform.core.errors import PlatformError, TransientError
from replica_platform.outbox.errors import (
    DeliveryError,
    RowRefused,
    TargetRefused,
    TargetUnavailable,
)

SQLSTATES: dict[str, type[DeliveryError]] = {
    "08": TargetUnavailable,  # connection
    "25006": TargetUnavailable,  # read-only: a failover is under way
    "40": TargetUnavailable,  # serialisation, deadlock
    "53": TargetUnavailable,  # out of connections, memory, disk
    "55": TargetUnavailable,  # locked, not yet in the right state
    "57": TargetUnavailable,  # cancelled, shut down, starting up
    "58": TargetUnavailable,  # I/O
    "21": RowRefused,  # the same row twice in one command
    "22": RowRefused,  # data
    "23": RowRefused,  # constraint
    "44": RowRefused,  # WITH CHECK OPTION
    "54": RowRefused,  # too deep, too long, too many
    "P0001": RowRefused,  # a trigger's RAISE EXCEPTION, about the row it saw
    "": TargetRefused,  # 28, 3D, 3F, 42, 0A, XX and all others: unknown, so stop
}

# The client gets no SQLSTATE for a refused login, only a message. A message in another language
# counts as transient, which leaves the rows in the file too.
REFUSED_LOGIN = {
    "password authentication failed": "28P01",
    "no pg_hba.conf entry": "28000",
    'role "': "28000",
    'database "': "3D000",
}


@contextmanager
def translate_errors() -> Iterator[None]:
    """Turn psycopg's errors in the block, and those of connecting, into the outbox's own.

    Raises:
        TargetUnavailable: The same may work later.
        TargetRefused: Somebody must change the target or the code first.
        RowRefused: A row's content is refused.
    """
    try:
        yield
    except (
        psycopg.Error,
        postgres.CannotConnect,
        postgres.BadDsn,
        postgres.DeadlinePassed,
    ) as error:
        raise translated(error) from error


def translated(error: psycopg.Error | PlatformError) -> DeliveryError:
    """Return the outbox's own error for one of psycopg's or of connecting.

    An unknown error becomes `TargetRefused`, so that no row is blamed for it.
    """
    sentence = " ".join(str(error).split()) or type(error).__name__
    sqlstate = _sqlstate(error, sentence)
    if sqlstate is not None:
        length = next(n for n in range(len(sqlstate), -1, -1) if sqlstate[:n] in SQLSTATES)
        return SQLSTATES[sqlstate[:length]](sentence, sqlstate)
    if isinstance(error, psycopg.DataError):  # found by the client, such as a NUL in a text
        return RowRefused(sentence)
    if isinstance(error, (TransientError, psycopg.OperationalError, psycopg.InterfaceError)):
        return TargetUnavailable(sentence)
    return TargetRefused(sentence)


def _sqlstate(error: psycopg.Error | PlatformError, sentence: str) -> str | None:
    if isinstance(error, psycopg.Error):
        return error.sqlstate
    if isinstance(error, postgres.CannotConnect):
        return next((code for text, code in REFUSED_LOGIN.items() if text in sentence), None)
    return None
