"""The breaker: stored in the file, longer after each failure, ignored by `force`."""

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from replica_platform.outbox import Outbox, backlog, drain, file
from replica_platform.outbox.breaker import LONGEST_WAIT_S, Breaker, store
from replica_platform.outbox.errors import TargetRefused, TargetUnavailable

Ask = Callable[..., list[tuple[Any, ...]]]
DOWN = TargetUnavailable("the server is down")
BROKEN = TargetRefused("no such table", "42P01")
NOBODY = "postgresql://u@127.0.0.1:1/x"


def test_waits_grow_and_stay_shorter_than_the_schedule() -> None:
    breaker, longest = Breaker(), []
    for _ in range(12):
        breaker = breaker.after(DOWN)
        longest.append(breaker.open_until - time.time())
    assert breaker.failures == 12
    assert longest[0] <= 1
    assert max(longest) <= LONGEST_WAIT_S


def test_jitter_spreads_the_nodes() -> None:
    waits = {round(Breaker(failures=9).after(DOWN).open_until, 3) for _ in range(50)}
    assert len(waits) > 40


def test_a_clock_that_jumped_back_does_not_keep_it_open() -> None:
    assert Breaker(open_until=time.time() + 86400).wait_s() == 0
    assert Breaker(open_until=time.time() + 30).wait_s() > 29


def test_a_stop_is_reported_once() -> None:
    first = Breaker().after(BROKEN)
    assert first.state == "stopped"
    assert first.is_news(Breaker())
    assert not first.after(BROKEN).is_news(first)
    assert not Breaker().after(DOWN).is_news(Breaker())


def test_it_outlives_the_process_and_force_ignores_it(box: Outbox, path: Path, target: str) -> None:
    box.append("note", {})
    connection = file.open_existing(path)
    store(connection, Breaker("waiting", 3, time.time() + 50, time.time(), None, "it was down"))
    connection.close()
    report = drain([path], target)
    assert (report.files[0].state, report.pending, report.ok) == ("waiting", 1, False)
    assert "it was down" in report.sentence
    assert backlog([path]).files[0].breaker == "waiting"
    assert drain([path], target, force=True).delivered == 1
    assert backlog([path]).files[0].breaker == "closed"


def test_failures_count_and_a_success_closes(box: Outbox, path: Path, target: str) -> None:
    box.append("note", {})
    for _ in range(2):
        drain([path], NOBODY, force=True)
    assert backlog([path]).files[0].breaker == "waiting"
    assert "127.0.0.1" in (backlog([path]).files[0].breaker_why or "")
    assert drain([path], target, force=True).ok
    assert backlog([path]).files[0].breaker_why is None


def test_a_systemic_failure_alerts_once(box: Outbox, path: Path, target: str, ask: Ask) -> None:
    drain([path], target)
    ask("alter table outbox.record rename to other")
    box.append("note", {})
    alerts = [drain([path], target, force=True).files[0].alerts for _ in range(3)]
    assert alerts == [1, 0, 0]
    assert backlog([path]).files[0].breaker == "stopped"


@pytest.mark.parametrize(
    "stored", ['{"state": "waiting", "failures": 2, "of_a_later_version": 1}', "[]", "{"]
)
def test_a_breaker_of_another_version_does_not_end_the_drain(
    box: Outbox, path: Path, target: str, stored: str
) -> None:
    box.append("note", {})
    with closing(file.open_existing(path)) as connection:
        file.set_meta(connection, "breaker", stored)
    assert backlog([path]).pending == 1
    assert drain([path], target).delivered == 1
    assert backlog([path]).files[0].breaker == "closed"
