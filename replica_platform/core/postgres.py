"""Connections to Postgres that fail in words and never wait for ever.

What every engine needs of a connection belongs here; what it says over it does not.
"""

import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

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
    """The same connection string with its passwords as `***`, fit for printing."""
    dsn = re.sub(r"(://[^:/@]*):.*@", r"\1:***@", dsn)
    return re.sub(r"(password\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&]+)", r"\1***", dsn)


def connect(
    dsn: str, *, application_name: str = "replica_platform", autocommit: bool = False
) -> psycopg.Connection:
    """Open a connection, or raise `CannotConnect` / `BadDsn` with a sentence to act on.

    The password never appears in an error. Settings given in the DSN win over ours.
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
        raise BadDsn(
            f"{mask_dsn(dsn)!r} is not a Postgres connection string; "
            "write it as postgresql://user:password@host:5432/database."
        ) from error
    try:
        return psycopg.connect(conninfo, autocommit=autocommit)
    except psycopg.OperationalError as error:
        reason = " ".join(str(error).split()).rstrip(".?")
        raise CannotConnect(
            f"Cannot connect to {mask_dsn(dsn)}: {reason}. "
            "Check that the server runs and that host, database, user and password are right."
        ) from error


@contextmanager
def deadline(connection: psycopg.Connection, seconds: float) -> Iterator[None]:
    """Cut the connection when the block takes longer than `seconds`; then `DeadlinePassed`.

    psycopg waits for ever on a server that went silent, whatever its timeouts, because the
    peer's kernel still acknowledges. Shutting the socket down wakes it.
    """
    lock = threading.Lock()
    state = "running"

    def cut() -> None:
        nonlocal state
        with lock:
            if state == "running" and not connection.closed:
                state = "cut"
                # A duplicate, so that closing it leaves libpq's own descriptor alone. The wire may
                # be gone in this very moment: then there is nothing left to cut.
                with (
                    suppress(OSError, psycopg.Error),
                    socket.socket(fileno=os.dup(connection.fileno())) as wire,
                ):
                    wire.shutdown(socket.SHUT_RDWR)

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
