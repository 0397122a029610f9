"""Connections that fail in words, keep passwords to themselves, and never wait for ever."""

import os
import signal
import time

import psycopg
import pytest

from replica_platform.core.postgres import (
    BadDsn,
    CannotConnect,
    DeadlinePassed,
    connect,
    deadline,
    mask_dsn,
)


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("postgresql://u:secret@h:5432/d", "postgresql://u:***@h:5432/d"),
        ("postgresql://u:se:cr/et@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:s@cret@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u@h/d?password=secret&x=1", "postgresql://u@h/d?password=***&x=1"),
        ("host=h password=secret dbname=d", "host=h password=*** dbname=d"),
        ("host=h password = 'sec ret' dbname=d", "host=h password = *** dbname=d"),
        ("postgresql://postgres@/d?host=/tmp", "postgresql://postgres@/d?host=/tmp"),
    ],
)
def test_passwords_are_masked(dsn: str, shown: str) -> None:
    assert mask_dsn(dsn) == shown


def test_a_server_that_is_not_there_is_one_clear_sentence() -> None:
    with pytest.raises(CannotConnect, match="Check that the server runs") as caught:
        connect("postgresql://u:secret@127.0.0.1:1/d")
    assert "secret" not in str(caught.value)


def test_what_is_no_dsn_is_refused_without_its_password() -> None:
    with pytest.raises(BadDsn, match="postgresql://user:password@host") as caught:
        connect("mysql://u:secret@h/d")
    assert "secret" not in str(caught.value)


def test_settings_in_the_dsn_win(source: str) -> None:
    with connect(source + "&application_name=mine") as connection:
        assert connection.info.get_parameters()["application_name"] == "mine"


def test_a_silent_server_is_cut_at_the_deadline(source: str) -> None:
    with connect(source) as connection:
        pid = connection.info.backend_pid
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        try:
            with pytest.raises(DeadlinePassed, match=r"within 0\.5 s"), deadline(connection, 0.5):
                connection.execute("select 1")
        finally:
            os.kill(pid, signal.SIGCONT)
        assert time.monotonic() - began < 5


def test_within_the_deadline_nothing_happens(source: str) -> None:
    with connect(source) as connection:
        with deadline(connection, 0.2):
            assert connection.execute("select 1").fetchone() == (1,)
        time.sleep(0.4)
        assert connection.execute("select 2").fetchone() == (2,)


def test_an_error_of_the_server_stays_what_it_is(source: str) -> None:
    with (
        connect(source) as connection,
        pytest.raises(psycopg.errors.UndefinedTable),
        deadline(connection, 5),
    ):
        connection.execute("select * from nowhere")


@pytest.mark.parametrize(
    "password", ["first@tail-x", "first/tail-x", "first?tail-x", "first#tail-x", "a@b@tail-x"]
)
def test_no_part_of_a_password_that_is_not_escaped_is_printed(password: str) -> None:
    with pytest.raises(BadDsn, match="write @ as %40") as caught:
        connect(f"postgresql://u:{password}@127.0.0.1:1/d")
    assert "tail-x" not in str(caught.value)
    # Dagster's pages show the causes too.
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_an_at_sign_after_the_address_is_no_password() -> None:
    with pytest.raises(CannotConnect):
        connect("postgresql://u:secret@127.0.0.1:1/d?application_name=me@here")
