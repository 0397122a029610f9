"""Connections to Postgres with time limits and readable errors, and the reading of single rows.

What every engine needs of a connection belongs here; the statements sent over it do not.
"""

import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from replica_platform.core.errors import TerminalError, TransientError

CONNECT_TIMEOUT_S = 10


class CannotConnect(TransientError):
    """Postgres does not answer at this address; check that it runs and that the DSN is right."""


class BadDsn(TerminalError):
    """This is not a Postgres connection string."""


class DeadlinePassed(TransientError):
    """The server went silent for longer than allowed; the connection was cut."""


def mask_dsn(dsn: str) -> str:
    """Return the connection string with its passwords replaced by `***`, fit for printing."""
    dsn = re.sub(r"(://[^:/@]*):.*@", r"\1:***@", dsn)
    return re.sub(r"(password\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&]+)", r"\1***", dsn)


def connect(
    dsn: str, *, application_name: str = "replica_platform", autocommit: bool = False
) -> psycopg.Connection:
    """Open a connection; the password never appears in an error.

    Args:
        dsn: A connection string; settings in it win over the defaults set here.
        application_name: The name shown in `pg_stat_activity`.
        autocommit: Whether each statement is its own transaction.

    Returns:
        The open connection.

    Raises:
        BadDsn: `dsn` is not a connection string.
        CannotConnect: The server does not answer or refuses the login.
    """
    defaults = {
        "application_name": application_name,
        "connect_timeout": str(CONNECT_TIMEOUT_S),
        "keepalives_idle": "30",
        "keepalives_interval": "10",
        "keepalives_count": "3",
    }
    try:
        conninfo = make_conninfo("", **{**defaults, **conninfo_to_dict(dsn)})
    except psycopg.ProgrammingError as error:
        if _password_is_not_escaped(dsn):
            raise _not_escaped(dsn) from None
        raise BadDsn(
            f"{mask_dsn(dsn)!r} is not a Postgres connection string; "
            "write it as postgresql://user:password@host:5432/database."
        ) from error
    try:
        return psycopg.connect(conninfo, autocommit=autocommit)
    except psycopg.OperationalError as error:
        if _password_is_not_escaped(dsn):
            raise _not_escaped(dsn) from None
        reason = " ".join(str(error).split()).rstrip(".?")
        raise CannotConnect(
            f"Cannot connect to {mask_dsn(dsn)}: {reason}. "
            "Check that the server runs and that host, database, user and password are right."
        ) from error


def _password_is_not_escaped(dsn: str) -> bool:
    """Whether a password in a URI has a character that ends it for Postgres.

    Postgres then takes the rest of it for the host or the port, and prints it.
    """
    address = dsn if "@" not in dsn.partition("?")[0] else dsn.partition("?")[0]
    found = re.search(r"://[^:/@]*:(.*)@", address, re.DOTALL)
    return found is not None and any(mark in found[1] for mark in "@/?#")


def _not_escaped(dsn: str) -> BadDsn:
    return BadDsn(
        f"The password in {mask_dsn(dsn)} has a character that ends it; write @ as %40, / as %2F, "
        "? as %3F and # as %23."
    )


@contextmanager
def deadline(connection: psycopg.Connection, seconds: float) -> Iterator[None]:
    """Cut the connection when the block takes longer than `seconds`.

    psycopg waits for ever on a server that went silent, whatever its timeouts, because the
    peer's kernel still acknowledges packets. Shutting the socket down ends that wait.

    Args:
        connection: The connection that the block uses.
        seconds: The longest that the block may take.

    Raises:
        DeadlinePassed: The block took longer, and the connection was cut.
    """
    lock = threading.Lock()
    state = "running"

    def cut() -> None:
        nonlocal state
        with lock:
            if state == "running" and not connection.closed:
                state = "cut"
                # A duplicate, so that closing it leaves libpq's descriptor open. The connection may
                # have been closed in the meantime: then there is nothing left to cut.
                with (
                    suppress(OSError, psycopg.Error),
                    socket.socket(fileno=os.dup(connection.fileno())) as duplicate,
                ):
                    duplicate.shutdown(socket.SHUT_RDWR)

    watchdog = threading.Timer(seconds, cut)
    watchdog.daemon = True
    watchdog.start()
    try:
        yield
    except psycopg.Error as error:
        if state == "cut":
            raise DeadlinePassed(
                f"No answer from Postgres within {seconds:g} s; the connection was cut."
            ) from error
        raise
    finally:
        watchdog.cancel()
        with lock:
            state = "over"


def one_row(cursor: psycopg.Cursor[Any]) -> tuple[Any, ...]:
    """Return the first row of a result that always has one.

    Args:
        cursor: An executed query, such as one with aggregates only.

    Raises:
        LookupError: The result is empty, which is an error in the query.
    """
    row: tuple[Any, ...] | None = cursor.fetchone()
    if row is None:
        raise LookupError("The query returned no row.")
    return row


def one_value(cursor: psycopg.Cursor[Any]) -> Any:
    """Return the first column of the first row of a result that always has one.

    Args:
        cursor: An executed query.

    Raises:
        LookupError: The result is empty, which is an error in the query.
    """
    return one_row(cursor)[0]
