"""Every class of error, raised by a real server while it takes a batch."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from replica_platform.core.postgres import CannotConnect
from replica_platform.outbox import Outbox, dead, drain
from replica_platform.outbox.delivery.failures import SQLSTATES, translated
from replica_platform.outbox.errors import RowRefused, TargetRefused, TargetUnavailable

Ask = Callable[..., list[tuple[Any, ...]]]

_TRANSIENT = """
08000 08003 08006 08P01 25006 40001 40P01 53000 53100 53200 53300 53400 55000 55006 55P03
57000 57014 57P01 57P02 57P03 57P05 58000 58030
"""
_SYSTEMIC = """
0A000 25P02 26000 28000 28P01 2F000 34000 38000 3D000 3F000 42501 42601 42703 42804 42883
42P01 42P10 F0000 HV000 P0002 XX000 XX001 XX002
"""
_ROW = """
21000 22000 22001 22003 22007 22008 22021 22P02 22P05 22032 23000 23502 23503 23505 23514
23P01 44000 54000 54001 54011 P0001
"""


TRANSIENT, SYSTEMIC, ROW = _TRANSIENT.split(), _SYSTEMIC.split(), _ROW.split()


@pytest.fixture
def raising(box: Outbox, path: Path, target: str, ask: Ask) -> None:
    """A target whose table raises the SQLSTATE that a record names."""
    drain([path], target)
    ask(
        "create function raise() returns trigger language plpgsql as $$ begin "
        "if new.payload ? 'code' then "
        "raise exception 'as the record asks' using errcode = new.payload ->> 'code'; "
        "end if; return new; end $$"
    )
    ask("create trigger t before insert on outbox.record for each row execute function raise()")


def test_each_class_treats_the_rows_as_documented(
    box: Outbox, path: Path, target: str, ask: Ask, raising: None
) -> None:
    for code in TRANSIENT + SYSTEMIC:
        with Outbox(path.with_name(f"{code}.db")) as other:
            other.append_many("note", [{"n": 1}, {"code": code}, {"n": 2}])
        report = drain([other.path], target)
        assert (report.files[0].sqlstate, report.pending, report.dead) == (code, 3, 0)
        assert report.files[0].alerts == (code in SYSTEMIC), code
    for code in ROW:
        with Outbox(path.with_name(f"{code}.db")) as other:
            other.append_many("note", [{"n": 1}, {"code": code}, {"n": 2}])
        report = drain([other.path], target)
        assert (report.delivered, report.pending, report.dead) == (2, 0, 1), code
        assert dead(other.path)[0].sqlstate == code
    print(f"{len(TRANSIENT)} transient, {len(SYSTEMIC)} systemic, {len(ROW)} row codes")


def test_every_listed_prefix_is_tried() -> None:
    tried = {
        TargetUnavailable: TRANSIENT,
        TargetRefused: SYSTEMIC,
        RowRefused: ROW,
    }
    for prefix, kind in SQLSTATES.items():
        assert any(code.startswith(prefix) for code in tried[kind]), prefix


def test_a_refused_login_is_systemic(box: Outbox, path: Path, target: str) -> None:
    box.append("note", {})
    info = psycopg.conninfo.conninfo_to_dict(target)
    nowhere = psycopg.conninfo.make_conninfo(**{**info, "dbname": "no_such_database"})
    report = drain([path], nowhere)
    assert (report.files[0].sqlstate, report.pending, report.files[0].alerts) == ("3D000", 1, 1)
    nobody = psycopg.conninfo.make_conninfo(**{**info, "user": "no_such_role"})
    report = drain([path], nobody, force=True)
    assert (report.files[0].sqlstate, report.pending) == ("28000", 1)
    wrong = CannotConnect('FATAL: password authentication failed for user "x"')
    assert type(translated(wrong)) is TargetRefused


def test_a_target_that_became_read_only_is_transient(
    box: Outbox, path: Path, target: str, ask: Ask
) -> None:
    drain([path], target)
    [(name,)] = ask("select current_database()")
    ask(f'alter database "{name}" set default_transaction_read_only = on')
    box.append("note", {})
    report = drain([path], target)
    assert (report.files[0].sqlstate, report.pending, report.files[0].alerts) == ("25006", 1, 0)


def test_a_missing_privilege_is_systemic(box: Outbox, path: Path, target: str, ask: Ask) -> None:
    drain([path], target)
    ask("drop role if exists poor")
    ask("create role poor login")
    box.append("note", {})
    info = psycopg.conninfo.conninfo_to_dict(target)
    report = drain([path], psycopg.conninfo.make_conninfo(**{**info, "user": "poor"}))
    assert (report.files[0].sqlstate, report.pending) == ("42501", 1)
    ask("drop role poor")


def test_a_held_lock_and_an_ended_session_are_transient(
    box: Outbox, path: Path, target: str, ask: Ask
) -> None:
    drain([path], target)
    box.append("note", {})
    with psycopg.connect(target) as holder:
        holder.execute("lock table outbox.record")
        report = drain([path], target, deadline_s=0.3)
        assert report.pending == 1
        assert report.files[0].sqlstate in ("57014", "55P03", None)
        killer = threading.Timer(
            0.3,
            lambda: ask(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where application_name = 'replica outbox drain' "
                "and datname = current_database()"
            ),
        )
        killer.start()
        report = drain([path], target, force=True)
        killer.join()
        assert (report.files[0].sqlstate, report.pending, report.dead) == ("57P01", 1, 0)
    assert drain([path], target, force=True).delivered == 1


def test_the_session_sets_synchronous_commit_to_on(
    box: Outbox, path: Path, target: str, ask: Ask
) -> None:
    [(name,)] = ask("select current_database()")
    ask(sql.SQL("alter database {} set synchronous_commit = off").format(sql.Identifier(name)))
    drain([path], target)
    ask("create table seen (value text)")
    ask(
        "create function note_it() returns trigger language plpgsql as $$ begin "
        "insert into seen values (current_setting('synchronous_commit')); return new; end $$"
    )
    ask("create trigger t before insert on outbox.record for each row execute function note_it()")
    box.append("note", {})
    assert drain([path], target).ok
    assert ask("select value from seen") == [("on",)]
