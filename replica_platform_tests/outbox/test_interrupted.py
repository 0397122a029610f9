"""Interrupted appends: no acknowledged row is lost, and no later append hangs."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from replica_platform.outbox import Outbox, file
from replica_platform.outbox.errors import OutboxBusy, OutboxClosed
from replica_platform.outbox.group import ROWS_PER_STATEMENT

CALLS = ("append", "append_many", "group")


def interrupt(path: Path, call: str, moments: int, order: str) -> tuple[int, int, int]:
    """Run the writer until it kills itself; return acknowledged, lost and interrupted counts."""
    log = path.with_name("acknowledged")
    writer = subprocess.run(
        [
            *(sys.executable, "-m", f"{__package__}.interrupted_writer", path, log),
            *(call, str(moments), "7", order),
        ],
        capture_output=True,
        text=True,
        timeout=60 + moments / 20,
    )
    assert writer.returncode == -signal.SIGKILL, writer.stderr
    acknowledged = log.read_text().split()
    lost = set(acknowledged) - set(ids_in(path))
    return len(acknowledged), len(lost), int(writer.stdout.split()[0])


def ids_in(path: Path) -> list[str]:
    with closing(file.open_existing(path, read_only=True)) as connection:
        return [id for (id,) in connection.execute("select id from record order by seq")]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("call", CALLS)
def test_no_acknowledged_row_is_lost_to_a_handler_that_raises(
    path: Path, call: str, torture: bool
) -> None:
    moments = 3400 if torture else 200
    acknowledged, lost, interrupted = interrupt(path, call, moments, "")
    print(f"\n{call}: {interrupted} interrupted, {acknowledged} acknowledged, lost {lost}")
    assert interrupted == moments
    assert acknowledged > moments
    assert lost == 0


@pytest.mark.parametrize("call", ["append_many", "group"])
def test_a_transaction_begun_outside_the_try_loses_rows(path: Path, call: str) -> None:
    """The negative control: the old order in the same harness."""
    acknowledged, lost, interrupted = interrupt(path, call, 3000, "begin-first")
    print(f"\nbegin first, {call}: {interrupted} interrupted, {acknowledged} acknowledged, {lost=}")
    assert lost > 0


def test_an_open_transaction_is_rolled_back_before_the_next_append(box: Outbox, path: Path) -> None:
    """It holds rows of an append that raised: none of them was acknowledged."""
    kept = [box.append("note", {"n": 0})]
    assert box._connection is not None
    box._connection.execute("begin immediate")
    box._connection.execute("insert into record values (null, 'x', 'note', '{}', x'', 0)")
    kept.append(box.append("note", {"n": 1}))
    kept += box.append_many("note", [{"n": n} for n in range(ROWS_PER_STATEMENT + 1)])
    assert ids_in(path) == kept


class LeavesOpen:
    """A connection on which an INSERT is left in an open transaction."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, statement: str, *values: Any) -> Any:
        if statement.startswith("insert"):
            self._connection.execute("begin immediate")
        return self._connection.execute(statement, *values)


def test_no_id_is_returned_while_a_transaction_is_open(box: Outbox, path: Path) -> None:
    connection = box._connection
    box._connection = LeavesOpen(connection)  # type: ignore[assignment]
    with pytest.raises(OutboxBusy, match="not saved"):
        box.append("note", {})
    box._connection = connection
    assert ids_in(path) == []
    assert [box.append("note", {})] == ids_in(path)


def test_the_exception_of_a_handler_reaches_its_own_thread_only(box: Outbox, path: Path) -> None:
    """The interrupted thread writes the rows of others too; they must not get its exception."""

    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    write = box._write

    def interrupted(rows: list[tuple[object, ...]], *deadline: float) -> Any:
        if threading.current_thread() is threading.main_thread() and len(rows) > 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return write(rows, *deadline)

    acknowledged: list[str] = []
    raised: list[Exception] = []
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            try:
                acknowledged.append(box.append("note", {}))
            except Exception as error:
                raised.append(error)

    before = signal.signal(signal.SIGUSR1, stop)
    threads = [threading.Thread(target=work) for _ in range(4)]
    box._write = interrupted  # type: ignore[method-assign]
    interruptions = 0
    try:
        for thread in threads:
            thread.start()
        for _ in range(200):
            try:
                acknowledged.append(box.append("note", {}))
            except Stop:
                interruptions += 1
    finally:
        ended.set()
        signal.signal(signal.SIGUSR1, before)
        for thread in threads:
            thread.join()
    assert interruptions > 0
    assert raised == []
    assert set(acknowledged) <= set(ids_in(path))


def test_a_lock_that_stays_refuses_all_threads_at_one_deadline(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting one after another, later threads would still wait when the lock is free."""
    monkeypatch.setattr(file, "BUSY_TIMEOUT_S", 0.5)
    answers: list[object] = []

    def work() -> None:
        try:
            answers.append(box.append("note", {}))
        except OutboxBusy as error:
            answers.append(error)

    with Outbox(path) as box, closing(file.open_existing(path)) as holder:
        holder.execute("begin immediate")
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        freed = threading.Timer(2.0, holder.execute, ["rollback"])
        freed.start()
        for thread in [*threads, freed]:
            thread.join()
    assert [type(answer) for answer in answers] == [OutboxBusy] * 8


def test_close_in_a_handler_refuses_further_appends_and_a_second_close_ends_it(
    path: Path,
) -> None:
    box = Outbox(path)
    write = box._write

    def interrupted(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGUSR1)
        return write(*arguments)

    box._write = interrupted  # type: ignore[method-assign]
    before = signal.signal(signal.SIGUSR1, lambda *_: box.close())
    try:
        with pytest.raises(OutboxClosed):
            box.append("note", {})
    finally:
        signal.signal(signal.SIGUSR1, before)
    box.close()
    with Outbox(path) as again:
        assert [again.append("note", {})] == ids_in(path)


FORKS = """
import os, sys, threading, time
from replica_platform.outbox import Outbox, box as module

class SlowList(list):
    # The boxes closed for a fork, as slow threads see them: another fork may come in between.
    def __bool__(self):
        time.sleep(0.001)
        return len(self) > 0
    def append(self, box):
        super().append(box)
        time.sleep(0.003)

module._closed_for_fork = SlowList()
box = Outbox(sys.argv[1], durability="normal")
log = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
ended = threading.Event()

def append(by):
    os.write(log, (box.append("note", {"by": by}) + chr(10)).encode())

def fork():
    for _ in range(10):
        child = os.fork()
        if child == 0:
            append("child")
            os._exit(0)
        os.waitpid(child, 0)

def beside():
    while not ended.is_set():
        append("parent")

other = threading.Thread(target=beside)
other.start()
threads = [threading.Thread(target=fork) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
ended.set()
other.join()
"""


def test_threads_that_fork_at_once_leave_no_process_waiting(path: Path) -> None:
    log = path.with_name("acknowledged")
    program = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", FORKS, path, log], start_new_session=True
    )
    try:
        assert program.wait(30) == 0
    finally:
        if program.poll() is None:  # its children wait too
            os.killpg(program.pid, signal.SIGKILL)
            program.wait()
    acknowledged = log.read_text().split()
    assert len(acknowledged) >= 40
    assert set(acknowledged) <= set(ids_in(path))
