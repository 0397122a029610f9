"""Sessions on both sides, with everything pinned that changes how a value is written.

How a session is set up belongs here; what it is used for does not.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql

from replica_platform.core.errors import PlatformError
from replica_platform.core.postgres import connect
from replica_platform.xmin.errors import (
    CannotSync,
    MissingGrant,
    SourceInterrupted,
    TableBusy,
    TargetInterrupted,
)

LOCK_TIMEOUT_S = 30

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
    "idle_in_transaction_session_timeout": "0",
    "jit": "off",
}
# libpq takes 16 kB at most from the socket at a time, until a message was larger. One such answer
# spares half of the switches between processes (2,000,000 rows by two streams: 1.49 s to 1.37 s).
_WIDENING = f", repeat(' ', {256 * 1024})"

# Rows that a policy hides would look deleted: better an error than a silent filter. The empty
# path makes format_type spell every name in full.
_SOURCE = {"row_security": "off", "search_path": ""}


def open_source(dsn: str) -> psycopg.Connection:
    """A session on the source, autocommit."""
    return _open(dsn, {**_PINNED, **_SOURCE}, _WIDENING)


def open_target(dsn: str) -> psycopg.Connection:
    """A session on the target, autocommit."""
    return _open(dsn, _PINNED)


def _open(dsn: str, settings: dict[str, str], more: str = "") -> psycopg.Connection:
    connection = connect(dsn, application_name="replica_platform xmin", autocommit=True)
    # Notices such as "does not exist, skipping" say nothing to the user.
    settings = {**settings, "client_min_messages": "warning"}
    calls = ", ".join(["set_config(%s, %s, false)"] * len(settings))
    words = [word for pair in settings.items() for word in pair]
    connection.execute(f"select {calls}{more}".encode(), words)
    return connection


@contextmanager
def in_words(side: str, table: str) -> Iterator[None]:
    """Turn the server's errors into the engine's; `side` is "source" or "target"."""
    try:
        yield
    except PlatformError:
        raise
    except psycopg.Error as error:
        raise translate(error, side, table) from error


@contextmanager
def may_create(target: psycopg.Connection, what: str) -> Iterator[None]:
    """Name the GRANT when the role may not make a schema."""
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
        database, role = sql.Identifier(target.info.dbname), sql.Identifier(target.info.user)
        raise MissingGrant(
            f"The target role may not make the schema of {what}; run there: GRANT CREATE ON "
            f"DATABASE {database.as_string()} TO {role.as_string()};"
        ) from error


def translate(error: psycopg.Error, side: str, table: str) -> PlatformError:
    """The engine's error for a server's error."""
    words = " ".join(str(error).split())
    state = error.sqlstate or ""
    if state == "42501":
        return MissingGrant(f"The role on the {side} may not do this for {table}: {words}.")
    if state == "55P03":
        return TableBusy(
            f"{table} stayed locked on the {side} for {LOCK_TIMEOUT_S} s ({words}); "
            "try again when the other session is done."
        )
    # Connection lost, serialization (a standby's recovery conflict), cancelled, out of resources.
    # 08P01 is no lost connection but a message that makes no sense, and will make none later.
    transient = state != "08P01" and (
        state[:2] in {"08", "40", "57", "53", ""} or isinstance(error, psycopg.OperationalError)
    )
    if transient:
        kind = SourceInterrupted if side == "source" else TargetInterrupted
        return kind(
            f"The {side} interrupted the sync of {table}: {words}. "
            "Nothing was lost; run the same sync again."
        )
    return CannotSync(f"The {side} refused the sync of {table}: {words}.")
