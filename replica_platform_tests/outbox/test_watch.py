"""`watch`: the agent of a node drains as records come, and ends on request."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from replica_platform.outbox import DrainReport, Outbox, watch

Ask = Callable[..., list[tuple[Any, ...]]]


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_records_are_delivered_as_they_come(tmp_path: Path, target: str, ask: Ask) -> None:
    stop, reports = threading.Event(), list[DrainReport]()
    thread = threading.Thread(
        target=watch,
        args=([tmp_path], target),
        kwargs={"stop": stop, "interval_s": 600, "look_s": 0.01, "on_report": reports.append},
    )
    with Outbox.claim(tmp_path) as box:
        before = box.append("note", {"n": 0})  # waited before the agent started
        thread.start()
        until(lambda: len(reports) >= 1 and reports[0].delivered == 1)
        after = box.append("note", {"n": 1})
        until(lambda: sum(report.delivered for report in reports) == 2)
        with Outbox.claim(tmp_path) as late:  # a file created after the start
            other = late.append("note", {"n": 2})
            until(lambda: sum(report.delivered for report in reports) == 3)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    assert {id for (id,) in ask("select id::text from outbox.record")} == {before, after, other}


def test_a_failed_drain_is_tried_again_after_the_interval(path: Path) -> None:
    stop, reports = threading.Event(), list[DrainReport]()
    with Outbox(path) as box:
        box.append("note", {})
        thread = threading.Thread(
            target=watch,
            args=([path], "postgresql://u@127.0.0.1:1/x"),
            kwargs={
                "stop": stop,
                "interval_s": 0.05,
                "look_s": 0.01,
                "on_report": reports.append,
                "force": True,
            },
        )
        thread.start()
        until(lambda: len(reports) >= 3)
    stop.set()
    thread.join(10)
    assert {report.files[0].state for report in reports} == {"failed"}
    assert reports[-1].pending == 1


def test_sigterm_ends_a_running_drain_cleanly(path: Path, target: str, ask: Ask) -> None:
    with Outbox(path) as box:
        box.append_many("note", [{"n": n, "text": "x" * 500} for n in range(20_000)])
        agent = subprocess.Popen(
            [sys.executable, "-m", "replica_platform_tests.faults.outbox_drainer",
             str(path.parent), target]
        )  # fmt: skip
        until(lambda: ask("select to_regclass('outbox.chain')") != [(None,)])
        until(lambda: ask("select count(*) > 0 from outbox.chain where number > 0") == [(True,)])
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(10) == 0
    [(rows, in_batches)] = ask(
        "select (select count(*) from outbox.record), (select sum(landed)::int8 from outbox.chain)"
    )
    assert rows == in_batches
    assert 0 < rows <= 20_000
