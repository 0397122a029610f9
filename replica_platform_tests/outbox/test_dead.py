"""Bad rows: set aside, listed, replayed, and tried again by other code."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from replica_platform.outbox import Outbox, backlog, dead, drain, replay

Ask = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def refusing(box: Outbox, path: Path, target: str, ask: Ask) -> Ask:
    """A target whose table refuses records with `bad`."""
    drain([path], target)
    ask("alter table outbox.record add constraint no_bad check (not payload ? 'bad')")
    return ask


def test_one_bad_row_does_not_delay_the_others(
    box: Outbox, path: Path, target: str, refusing: Ask
) -> None:
    ids = box.append_many("note", [{"bad": 1} if n == 700 else {"n": n} for n in range(1000)])
    report = drain([path], target)
    assert (report.delivered, report.dead, report.pending, report.ok) == (999, 1, 0, False)
    [row] = dead(path)
    assert (row.id, row.seq, row.sqlstate, row.attempts) == (ids[700], 701, "23514", 1)
    assert "no_bad" in row.error
    assert backlog([path]).dead == 1
    assert refusing("select landed, number from outbox.chain") == [(999, 1)]


def test_many_bad_rows_do_not_delay_the_others(
    box: Outbox, path: Path, target: str, refusing: Ask
) -> None:
    box.append_many("note", [{"bad": 1} if n % 5 == 0 else {"n": n} for n in range(500)])
    report = drain([path], target)
    assert (report.delivered, report.dead) == (400, 100)
    assert refusing("select count(*) from outbox.record") == [(400,)]


def test_bad_rows_side_by_side_are_not_taken_for_a_broken_table(
    box: Outbox, path: Path, target: str, refusing: Ask
) -> None:
    box.append_many("note", [{"bad": 1} if n < 100 else {"n": n} for n in range(1000)])
    report = drain([path], target)
    assert (report.delivered, report.dead) == (900, 100)


def test_most_rows_failing_alike_stops_and_blames_no_row(
    box: Outbox, path: Path, target: str, refusing: Ask
) -> None:
    box.append_many("note", [{"bad": 1} if n % 10 else {"n": n} for n in range(500)])
    report = drain([path], target)
    assert (report.delivered, report.dead, report.pending) == (0, 0, 500)
    assert report.files[0].sqlstate == "23514"
    assert refusing("select count(*) from outbox.record") == [(0,)]


def test_a_replayed_row_is_delivered_after_the_fix(
    box: Outbox, path: Path, target: str, refusing: Ask
) -> None:
    box.append_many("note", [{"bad": 1}, {"n": 1}])
    assert drain([path], target).dead == 1
    assert drain([path], target).delivered == 0
    assert replay(path) == 1
    report = drain([path], target)
    assert (report.delivered, report.dead) == (0, 1)
    assert dead(path)[0].attempts == 2
    refusing("alter table outbox.record drop constraint no_bad")
    assert replay(path) == 1
    report = drain([path], target)
    assert (report.delivered, report.dead_rows, report.ok) == (1, 0, True)
    assert report.absorbed == 0  # the old row did not lower `delivered_through`


def test_other_code_tries_dead_rows_automatically(
    box: Outbox, path: Path, target: str, refusing: Ask
) -> None:
    box.append("note", {"bad": 1})
    assert drain([path], target, code_version="1").dead == 1
    assert drain([path], target, code_version="1").files[0].revived == 0
    refusing("alter table outbox.record drop constraint no_bad")
    report = drain([path], target, code_version="2")
    assert (report.files[0].revived, report.delivered, report.dead_rows) == (1, 1, 0)


def test_a_deferred_constraint_is_blamed_on_its_row(
    box: Outbox, path: Path, target: str, ask: Ask
) -> None:
    drain([path], target)
    ask("create table kinds (kind text primary key)")
    ask("insert into kinds values ('known')")
    ask(
        "alter table outbox.record add foreign key (kind) references kinds "
        "deferrable initially deferred"
    )
    box.append("known", {})
    box.append("unknown", {})
    report = drain([path], target)
    assert (report.delivered, report.dead) == (1, 1)
    assert dead(path)[0].kind == "unknown"


def test_a_broken_table_stops_and_all_arrive_after_the_fix(
    box: Outbox, path: Path, target: str, ask: Ask
) -> None:
    drain([path], target)
    ask("alter table outbox.record rename column payload to body")
    box.append_many("note", [{"n": n} for n in range(200)])
    report = drain([path], target)
    assert (report.files[0].sqlstate, report.pending, report.dead) == ("42703", 200, 0)
    ask("alter table outbox.record rename column body to payload")
    report = drain([path], target, force=True)
    assert (report.delivered, report.pending, report.ok) == (200, 0, True)


@pytest.fixture
def sleepy(box: Outbox, path: Path, target: str, ask: Ask) -> Ask:
    """A target whose trigger takes ten seconds for each record with `slow`."""
    drain([path], target)
    ask(
        "create function sleep() returns trigger language plpgsql as "
        "$$ begin perform pg_sleep(10); return new; end $$"
    )
    ask(
        "create trigger sleepy before insert on outbox.record for each row "
        "when (new.payload ? 'slow') execute function sleep()"
    )
    return ask


def test_one_slow_row_is_set_aside(box: Outbox, path: Path, target: str, sleepy: Ask) -> None:
    ids = box.append_many("note", [{"slow": 1} if n == 700 else {"n": n} for n in range(2000)])
    report = drain([path], target, deadline_s=2)
    assert (report.delivered, report.dead, report.pending) == (1999, 1, 0)
    [row] = dead(path)
    assert row.id == ids[700]
    assert "alone" in row.error
    sleepy("drop trigger sleepy on outbox.record")
    replay(path)
    assert drain([path], target).delivered == 1


def test_a_slow_target_blames_no_row(box: Outbox, path: Path, target: str, sleepy: Ask) -> None:
    box.append_many("note", [{"slow": n} for n in range(5)])
    report = drain([path], target, deadline_s=1)
    assert (report.files[0].state, report.dead, report.pending) == ("failed", 0, 5)
    assert "transient" in report.sentence


def test_a_locked_table_blames_no_row(box: Outbox, path: Path, target: str, sleepy: Ask) -> None:
    box.append_many("note", [{"n": n} for n in range(5)])
    with psycopg.connect(target) as other:
        other.execute("lock table outbox.record")
        report = drain([path], target, deadline_s=1)
        assert (report.files[0].state, report.dead, report.pending) == ("failed", 0, 5)
    assert drain([path], target, force=True).delivered == 5
