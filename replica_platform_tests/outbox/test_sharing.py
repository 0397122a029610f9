"""Threads, forks and processes: each record is in the file when its append returns."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from replica_platform.outbox import Outbox
from replica_platform.outbox.errors import (
    ForkedOutbox,
    NetworkFileSystem,
    OutboxBusy,
    OutboxFull,
)
from replica_platform.outbox.file import open_existing
from replica_platform.outbox.slots import file_system_of, refuse_network_file_system


def ids_in(path: Path) -> list[str]:
    connection = open_existing(path, read_only=True)
    rows = [id for (id,) in connection.execute("select id from record order by seq")]
    connection.close()
    return rows


def test_threads_share_commits_and_every_row_is_saved(box: Outbox, path: Path) -> None:
    acknowledged: list[str] = []
    commits = 0
    write = box._write

    def counting(*arguments: Any) -> Exception | None:
        nonlocal commits
        commits += 1
        return write(*arguments)

    box._write = counting  # type: ignore[method-assign]

    def work() -> None:
        for n in range(25):
            acknowledged.append(box.append("note", {"n": n}))

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(acknowledged) == sorted(ids_in(path))
    assert len(acknowledged) == 400
    assert commits < 300  # a group is one transaction; alone it would be 400


def test_one_threads_huge_record_does_not_fail_the_others(path: Path) -> None:
    with Outbox(path, max_bytes=400_000) as box:
        results: dict[int, object] = {}

        def work(n: int) -> None:
            try:
                results[n] = box.append("note", {"text": "x" * (10_000_000 if n == 3 else 10)})
            except OutboxFull as error:
                results[n] = error

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        with box._write_lock:  # so that all wait and are written as one group
            for thread in threads:
                thread.start()
            while len(box._waiting) < 8:
                time.sleep(0.001)
        for thread in threads:
            thread.join()
    assert isinstance(results[3], OutboxFull)
    assert sorted(r for r in results.values() if isinstance(r, str)) == sorted(ids_in(path))


def test_an_append_in_a_signal_handler_is_refused_at_once(
    box: Outbox, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait for ever for the append of its own thread that it interrupted."""
    refusals: list[str] = []

    def handler(*_: object) -> None:
        try:
            box.append("note", {"by": "handler"})
        except OutboxBusy as error:
            refusals.append(str(error))

    write = box._write

    def interrupted(*arguments: Any) -> Exception | None:
        error = write(*arguments)
        os.kill(os.getpid(), signal.SIGUSR1)
        return error

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        monkeypatch.setattr(box, "_write", interrupted)
        one = box.append("note", {})
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert ids_in(path) == [one]
    assert "signal handler" in refusals[0]


def test_a_wait_that_a_signal_ends_leaves_no_thread_asleep(box: Outbox, path: Path) -> None:
    class Stop(Exception):
        pass

    def handler(*_: object) -> None:
        raise Stop

    acknowledged: list[str] = []
    held, free = threading.Event(), threading.Event()

    def hold() -> None:
        with box._write_lock:
            box._is_writing = True
            held.set()
            free.wait()
            box._is_writing = False

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    before = signal.signal(signal.SIGUSR1, handler)
    main = threading.main_thread().ident
    assert main is not None
    try:
        other = threading.Thread(target=lambda: acknowledged.append(box.append("note", {})))
        killer = threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGUSR1))
        killer.start()
        with pytest.raises(Stop):
            threading.Timer(0.1, other.start).start()
            box.append("note", {"by": "the one that is interrupted"})
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(box._waiting) == 1
    free.set()  # and no thread wakes the other one
    holder.join()
    other.join(10)
    assert not other.is_alive()
    assert ids_in(path) == acknowledged


def test_a_fork_appends_and_outlives_its_parent(path: Path) -> None:
    """The child writes after the parent closed: with an inherited connection, SQLite would assume
    that no other process has the file and delete the log that the child writes to."""
    box = Outbox(path)
    ids = [box.append("note", {"by": "parent"})]
    reader, writer = os.pipe()
    go_reader, go_writer = os.pipe()
    child = os.fork()
    if child == 0:
        first = box.append("note", {"by": "child"})
        os.write(writer, first.encode())
        os.read(go_reader, 1)
        os.write(writer, box.append("note", {"by": "child, alone"}).encode())
        os._exit(0)
    ids.append(os.read(reader, 36).decode())
    ids.append(box.append("note", {"by": "parent, after"}))
    box.close()
    os.write(go_writer, b"x")
    ids.append(os.read(reader, 36).decode())
    assert os.waitpid(child, 0)[1] == 0
    assert ids_in(path) == ids


def _work(box: Outbox, n: int, answers: "multiprocessing.Queue[list[str]]") -> None:
    answers.put([box.append("note", {"n": n}) for _ in range(20)])


def test_a_forked_pool_shares_one_file(box: Outbox, path: Path) -> None:
    box.append("note", {"by": "parent"})
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    workers = [context.Process(target=_work, args=(box, n, answers)) for n in range(4)]
    for worker in workers:
        worker.start()
    acknowledged = [id for _ in workers for id in answers.get(timeout=30)]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert set(acknowledged) < set(ids_in(path))
    assert len(ids_in(path)) == 81


def test_a_fork_without_pythons_knowledge_is_refused(box: Outbox, path: Path) -> None:
    box.append("note", {})
    box._process -= 1
    with pytest.raises(ForkedOutbox, match="not saved"):
        box.append("note", {})
    assert len(ids_in(path)) == 1


def test_a_killed_writer_frees_its_slot_and_keeps_what_it_acknowledged(path: Path) -> None:
    program = (
        "import os, sys\n"
        "from replica_platform.outbox import Outbox\n"
        "box = Outbox(sys.argv[1])\n"
        "print(box.append('note', {}), flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True
    )
    with Outbox(path) as box:
        second = box.append("note", {})
    assert ids_in(path) == [answer.stdout.strip(), second]


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "9p"])
def test_a_network_file_system_is_refused(tmp_path: Path, kind: str) -> None:
    device = tmp_path.stat().st_dev
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        f"1 0 0:1 / /other rw shared:1 - ext4 /dev/x rw\n"
        f"2 0 {os.major(device)}:{os.minor(device)} / /data rw - {kind} host:/x rw\n"
    )
    with pytest.raises(NetworkFileSystem, match=kind):
        refuse_network_file_system(tmp_path, mounts)


def test_the_file_system_here_is_known_and_accepted(tmp_path: Path) -> None:
    assert file_system_of(tmp_path)
    refuse_network_file_system(tmp_path)
