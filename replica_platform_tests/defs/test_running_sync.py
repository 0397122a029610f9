"""A sync in a thread: its reports while it goes on, its errors, and its end with the step."""

import logging
import threading
import time
from collections.abc import Callable

import dagster as dg
import pytest

from replica_platform.components import running_sync
from replica_platform.components.running_sync import Handover, RunningSync
from replica_platform.xmin import GroupReport, SyncReport, TableSpec, sync_group
from replica_platform_tests.xmin.helpers import execute, rows

LOG = logging.getLogger(__name__)


def report(name: str) -> SyncReport:
    return SyncReport(name, name, "scan", "")


def group(*names: str) -> GroupReport:
    return GroupReport({name: report(name) for name in names}, {}, 0.0)


def running(sync: Callable[[Handover], GroupReport], tables: int = 3) -> RunningSync:
    return RunningSync(sync, LOG, tables)  # type: ignore[arg-type]  # it logs, as Dagster's does


def test_each_report_is_there_before_the_next_one_is_made() -> None:
    taken = threading.Semaphore(0)

    def sync(handover: Handover) -> GroupReport:
        for name in "abc":
            handover.report(report(name))
            assert taken.acquire(timeout=20)
        return group("a", "b", "c")

    one = running(sync)
    seen = []
    for found in one:
        seen.append(found.table)
        taken.release()
    assert seen == ["a", "b", "c"]
    assert list(one.group.reports) == seen


@pytest.mark.parametrize("error", [dg.Failure("no source"), ValueError("a bug")])
def test_an_error_of_the_sync_is_raised_after_what_was_reported(error: Exception) -> None:
    def sync(handover: Handover) -> GroupReport:
        handover.report(report("a"))
        raise error

    reports = iter(running(sync))
    assert next(reports).table == "a"
    with pytest.raises(type(error)) as raised:
        next(reports)
    assert raised.value is error


def test_a_group_that_is_reported_at_the_end_has_all_its_reports() -> None:
    def sync(handover: Handover) -> GroupReport:
        handover.all_at_once(group("a", "b"))
        return group("a", "b")

    one = running(sync)
    seen = [(found.table, one.group.ok) for found in one]
    assert seen == [("a", True), ("b", True)]


def test_it_is_logged_how_far_a_silent_sync_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(running_sync, "LOG_EVERY_S", 0.1)

    def sync(handover: Handover) -> GroupReport:
        time.sleep(0.3)
        handover.progress(3 << 20, 5 << 20, "bytes")
        time.sleep(0.3)
        handover.report(report("a"))
        time.sleep(0.3)
        return group("a")

    with caplog.at_level(logging.INFO):
        assert len(list(running(sync, 1000))) == 1
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "0 of 1,000 tables are committed."
    assert "0 of 1,000 tables are committed; 3.0 MiB of 5.0 MiB were read." in lines
    assert lines[-1] == "1 of 1,000 tables are committed; 3.0 MiB of 5.0 MiB were read."


def test_a_step_that_ends_early_ends_its_sync(source: str, target: str) -> None:
    names = [f"t{number}" for number in range(6)]
    for name in names:
        execute(source, f"create table {name} (id int primary key)")
    specs = [TableSpec(name, into="copy") for name in names]
    may_go_on = threading.Event()

    def sync(handover: Handover) -> GroupReport:
        def hand_over(found: SyncReport) -> None:
            handover.report(found)
            assert may_go_on.wait(20)

        return sync_group(source, target, specs, on_report=hand_over, progress=handover.progress)

    reports = iter(running(sync))
    assert next(reports).target_table == "copy.t0"
    threading.Timer(0.2, may_go_on.set).start()
    reports.close()  # type: ignore[attr-defined]  # as when the run is terminated
    assert not [thread for thread in threading.enumerate() if thread.name == "sync"]
    ((copied,),) = rows(target, "select count(*) from pg_tables where schemaname = 'copy'")
    assert 1 <= copied < len(names)
    # Nothing is left locked: the next sync brings the others.
    assert sync_group(source, target, specs).ok
