"""Faults of the system: full disks, missing permissions, clock jumps and foreign writers.

Each ends in a clear error, with readers on the generation they had and no file left behind.
"""

import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest

from replica_platform.replica import BlockStore, Master, ReplicaReader, publish, status, verify
from replica_platform.replica.errors import (
    MasterBusy,
    MasterChanging,
    MasterOpenHere,
    StoreBusy,
    StoreFull,
)
from replica_platform.replica.store import manifest
from replica_platform.replica.store.disk_space import MARGIN_BYTES
from replica_platform.replica.store.layout import Layout

COUNT = "select count(*) from t"
NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that another user may enter; pytest's own may be closed."""
    with tempfile.TemporaryDirectory(prefix="rp-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture
def master(folder: Path) -> Master:
    master = Master(folder / "master.duckdb", patience_s=0.2)
    fill(master)
    return master


def fill(master: Master, rows: int = 100_000) -> None:
    with master.write() as connection:
        connection.execute(
            "create or replace table t as select range i, hash(range + ?)::varchar s from range(?)",
            [rows, rows],
        )


def child(program: str, *arguments: object) -> str:
    """Run a program, and return the line it prints: a result or an error."""
    prelude = (
        "import sys, os, resource, duckdb\n"
        "from pathlib import Path\n"
        "from replica_platform.replica import Master, ReplicaReader, publish\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", prelude + program, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    return (finished.stdout + finished.stderr).strip()


def as_nobody(task: Callable[[], object]) -> str:
    """Return what `task` returns or raises in a fork of this process without root."""
    import numpy  # noqa: F401 - that user may not read the folder it is imported from
    import xxhash  # noqa: F401

    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        try:
            message = str(task())
        except BaseException as error:
            message = f"{type(error).__name__} {error}"
        os.write(writing, message.encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as pipe:
        return pipe.read()


def ask(store: Path) -> tuple[object, str | None]:
    with ReplicaReader(store) as reader:
        return reader.query(COUNT), reader.status().served_from


def leftovers(store: Path) -> list[Path]:
    layout = Layout(store)
    return [*layout.candidates.iterdir(), *store.rglob(".tmp-*")]


PUBLISH = """
try:
    print(publish(sys.argv[1], sys.argv[2]).generation)
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_file_size_limit_has_a_clear_error(master: Master, folder: Path) -> None:
    store = folder / "store"
    publish(master.path, store)
    fill(master, 200_000)
    limit = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({1 << 20}, {1 << 20}))\n"
    message = child(limit + PUBLISH, master.path, store)
    assert message.startswith("StoreFull No room for another generation")
    assert leftovers(store) == []
    with ReplicaReader(store) as reader:
        assert reader.query(COUNT) == [(100_000,)]
    assert publish(master.path, store).generation == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs takes root")
def test_a_full_disk_has_a_clear_error(master: Master, folder: Path) -> None:
    small = folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(small)], check=True)
    try:
        store = small / "store"
        filler = small / "filler"
        publish(master.path, store)
        fill(master, 150_000)

        def fill_up(step: str) -> None:
            if step == "copy":
                filler.write_bytes(bytes(shutil.disk_usage(small).free - (1 << 20)))

        # After the check of free space, the disk fills up during the copy.
        with pytest.raises(StoreFull, match="No room for another generation"):
            publish(master.path, store, step=fill_up)
        with pytest.raises(StoreFull, match="bytes free and a generation needs"):
            publish(master.path, store)
        assert leftovers(store) == []
        filler.unlink()
        with ReplicaReader(store) as reader:
            assert reader.query(COUNT) == [(100_000,)]
        assert publish(master.path, store).generation == 2
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.fixture
def disk(folder: Path) -> Iterator[Callable[[int], Path]]:
    """A function that mounts a file system of a given size."""
    with ExitStack() as mounted:

        def mount(size: int) -> Path:
            small = folder / f"disk-{size}"
            small.mkdir()
            options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(small)]
            if subprocess.run(["mount", *options], capture_output=True).returncode:
                pytest.skip("mounting a small disk needs root")
            mounted.callback(subprocess.run, ["umount", str(small)], check=True)
            return small

        yield mount


def add_row(master: Master, row: int) -> None:
    with master.write() as connection:
        connection.execute("insert into t values (?, 'new')", [row])


ROOM_TO_GROW = 3 * 1024 * 1024


def filled(master: Master, disk: Callable[[int], Path]) -> Path:
    """Return a store with three generations, on a disk without space for a fourth."""
    fill(master, 400_000)
    small = disk(3 * master.path.stat().st_size + MARGIN_BYTES + ROOM_TO_GROW)
    for row in range(3):
        add_row(master, row)
        publish(master.path, small / "store", keep=3, min_age_s=0)
    add_row(master, 3)
    with pytest.raises(StoreFull, match="keep fewer generations"):
        publish(master.path, small / "store", keep=3, min_age_s=0)
    assert [kept.generation for kept in Layout(small / "store").kept()] == [3, 2, 1]
    return small / "store"


def test_on_a_full_disk_keeping_fewer_generations_makes_room(
    master: Master, disk: Callable[[int], Path]
) -> None:
    store = filled(master, disk)
    with ReplicaReader(store) as reader:
        assert reader.query(COUNT) == [(400_003,)]
        assert publish(master.path, store, keep=2, min_age_s=0).generation == 4
        reader._server.refresh()
        assert reader.query(COUNT) == [(400_004,)]
    assert [kept.generation for kept in Layout(store).kept()] == [4, 3]
    assert leftovers(store) == []


def test_a_full_disk_retires_no_generation_that_must_stay(
    master: Master, disk: Callable[[int], Path]
) -> None:
    store = filled(master, disk)
    with pytest.raises(StoreFull):  # too young
        publish(master.path, store, keep=2, min_age_s=3600)
    oldest = Layout(store).kept()[-1]
    program = (
        "import duckdb, sys; held = duckdb.connect(sys.argv[1], read_only=True)\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(Layout(store).data(oldest))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as reader:
        assert reader.stdout and reader.stdin and reader.stdout.readline()
        with pytest.raises(StoreFull):  # being read
            publish(master.path, store, keep=2, min_age_s=0)
        reader.stdin.close()
    assert [kept.generation for kept in Layout(store).kept()] == [3, 2, 1]
    assert leftovers(store) == []
    assert publish(master.path, store, keep=2, min_age_s=0).generation == 4


def test_on_a_full_disk_a_pull_with_fewer_generations_makes_room(
    master: Master, disk: Callable[[int], Path], folder: Path
) -> None:
    store = filled(master, disk)
    other_store, block_store = folder / "elsewhere", BlockStore(folder / "blocks")
    for _ in range(4):
        fill(master, 400_000)  # so that the two stores share no block
        publish(master.path, other_store, min_age_s=0)
    block_store.push(other_store)
    with pytest.raises(StoreFull, match="keep fewer generations"):
        block_store.pull(store, keep=3, min_age_s=0)
    assert block_store.pull(store, keep=2, min_age_s=0).generation == 4
    assert ask(store) == ([(400_000,)], "current")
    assert leftovers(store) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
def test_a_missing_permission_has_a_clear_error(master: Master, folder: Path) -> None:
    store = folder / "store"
    publish(master.path, store)
    fill(master, 5)
    for path in (master.path, master.lock_path, folder):
        shutil.chown(path, NOBODY)
    message = as_nobody(lambda: publish(master.path, store))
    assert message.startswith("StoreDenied")
    assert "Give the publisher write permission" in message
    # A reader needs read permission only.
    assert as_nobody(lambda: ask(store)) == "([(100000,)], 'current')"


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
def test_a_master_that_may_not_be_written_has_a_clear_error(master: Master, folder: Path) -> None:
    def write() -> None:
        with master.write():
            pass

    assert as_nobody(write).startswith("MasterDenied This user may not use the master")
    shutil.chown(master.lock_path, NOBODY)
    assert as_nobody(write).startswith("MasterDenied This user may not use the master")


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
def test_an_unreadable_generation_is_replaced_by_the_previous_one(
    master: Master, folder: Path
) -> None:
    store = folder / "store"
    publish(master.path, store)
    fill(master, 5)
    publish(master.path, store).file.chmod(0o000)
    assert as_nobody(lambda: ask(store)) == "([(100000,)], 'previous')"


def test_clock_jumps_do_not_disturb_publication(
    master: Master, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = folder / "store"
    jump = timedelta()

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> "Clock":
            moment = datetime.now(UTC) + jump
            return cls.fromisoformat(moment.isoformat())

    monkeypatch.setattr(manifest, "datetime", Clock)
    generations = []
    with ReplicaReader(store, poll_s=0.01) as reader:
        for rows, days in ((1, 0), (2, 9000), (3, -9000), (4, 0), (5, 9000), (6, 0)):
            jump = timedelta(days=days)
            fill(master, rows)
            generations.append(publish(master.path, store, keep=2, min_age_s=0).generation)
            deadline = time.monotonic() + 5
            while reader.query(COUNT) != [(rows,)]:
                assert time.monotonic() < deadline
            found = reader.status()
            assert found.publication_age_s is not None
            assert found.publication_age_s >= 0
    assert generations == [1, 2, 3, 4, 5, 6]
    assert status(store).kept == [6, 5]


def test_readers_of_any_kind_keep_their_generation(master: Master, folder: Path) -> None:
    """Our readers hold a lease, other DuckDB clients a lock; when released, the generation goes."""
    store = folder / "store"
    publish(master.path, store)
    hold = (
        "c = duckdb.connect(sys.argv[1], read_only=True)\n"
        "print(flush=True); input()\n"
        f"print(c.execute('{COUNT}').fetchone()[0])"
    )
    ours = (
        "c = ReplicaReader(sys.argv[1], poll_s=600)\n"
        f"c.query('{COUNT}')\n"
        "print(flush=True); input()\n"
        f"print(c.query('{COUNT}')[0][0])"
    )
    prelude = "import sys, duckdb\nfrom replica_platform.replica import ReplicaReader\n"
    holders = [
        subprocess.Popen(
            [sys.executable, "-c", prelude + program, str(argument)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for program, argument in ((hold, store / "stock_data_replica.db"), (ours, store))
    ]
    for holder in holders:
        assert holder.stdout is not None
        holder.stdout.readline()
    for rows in (10, 20, 30, 40):
        fill(master, rows)
        publish(master.path, store, keep=1, min_age_s=0)
        assert 1 in status(store).kept
    found = status(store)
    assert {reader.pid for reader in found.readers if reader.generation == 1} == {
        holder.pid for holder in holders
    }
    message = [holder.communicate("\n")[0].strip() for holder in holders]
    assert message == ["100000", "100000"]
    fill(master, 50)
    publish(master.path, store, keep=1, min_age_s=0)
    assert status(store).kept == [6]


def test_a_held_spare_is_not_patched(master: Master, folder: Path) -> None:
    """A client that opened a generation just before it retired keeps its rows."""
    store = folder / "store"
    publish(master.path, store)
    fill(master, 10)
    publish(master.path, store, keep=1, min_age_s=0)
    spare = next((store / "spare").glob("*.duckdb"))
    with duckdb.connect(str(spare), read_only=True) as connection:
        fill(master, 20)
        assert publish(master.path, store, keep=1, min_age_s=0).how == "copy"
        assert connection.execute("select count(*), bit_xor(hash(s)) from t").fetchone() is not None
    fill(master, 30)
    assert publish(master.path, store, keep=1, min_age_s=0).how == "patch"


def test_retention_races_with_opening_readers(master: Master, folder: Path, torture: bool) -> None:
    """With one generation kept, readers that open all the time always get one."""
    store = folder / "store"
    fill(master, 100)
    publish(master.path, store)
    stop = threading.Event()
    opened: list[int] = []
    failures: list[BaseException] = []

    def open_repeatedly() -> None:
        while not stop.is_set():
            try:
                with ReplicaReader(store) as reader:
                    opened.append(reader.query(COUNT)[0][0])
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=open_repeatedly) for _ in range(2)]
    for thread in threads:
        thread.start()
    for rows in range(101, 161 if torture else 108):
        fill(master, rows)
        publish(master.path, store, keep=1, min_age_s=0)
    stop.set()
    for thread in threads:
        thread.join()
    print(f"\nopened {len(opened)} readers, {len(failures)} failed: {failures[:2]}")
    assert failures == []
    assert len(opened) > 20


def test_a_foreign_writer_is_refused_while_the_master_is_copied(
    master: Master, folder: Path
) -> None:
    write = (
        "try:\n"
        "    duckdb.connect(sys.argv[1]).execute('delete from t')\n"
        "    print('wrote')\n"
        "except duckdb.Error as error:\n"
        "    print(type(error).__name__)\n"
    )
    outputs = []
    publish(
        master.path,
        folder / "store",
        step=lambda step: outputs.append(child(write, master.path)) if step == "copy" else None,
    )
    assert outputs == ["IOException"]


def test_a_foreign_writer_that_no_lock_stops_is_detected(master: Master, folder: Path) -> None:
    """POSIX locks do not work within a process; the header reveals the write: copy again."""
    writes: list[int] = []

    def write_too(step: str) -> None:
        if step == "copy" and len(writes) < limit:
            writes.append(1)
            with duckdb.connect(str(master.path)) as connection:
                connection.execute("insert into t values (-1, 'foreign')")

    limit = 1
    publication = publish(master.path, folder / "store", step=write_too)
    assert publication.manifest.tables["t"].rows == 100_001
    assert filecmp.cmp(publication.file, master.path, shallow=False)
    limit = 99
    fill(master, 10)
    with pytest.raises(MasterChanging, match="thrown away"):
        publish(master.path, folder / "store", step=write_too)
    assert leftovers(folder / "store") == []
    assert verify(folder / "store").ok


def test_a_second_writer_is_told_who_holds_the_master(master: Master, folder: Path) -> None:
    try_to_write = (
        "try:\n"
        "    with Master(sys.argv[1], patience_s=0.1).write(): print('wrote')\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    with master.write():
        message = child(try_to_write, master.path)
    assert message.startswith("MasterBusy")
    assert f"PID {os.getpid()}" in message
    with duckdb.connect(str(master.path)):  # a writer that ignores our lock
        message = child(try_to_write, master.path)
    assert message.startswith("MasterBusy")
    assert f"PID {os.getpid()}" in message


def test_batch_and_publication_exclude_each_other(master: Master, folder: Path) -> None:
    with master.write() as connection:
        connection.execute("delete from t")
        with pytest.raises(MasterBusy, match=f"PID {os.getpid()}"):
            publish(master.path, folder / "store", patience_s=0.1)


def test_two_publishers_exclude_each_other(
    master: Master, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from replica_platform.replica.store import pointer

    monkeypatch.setattr(pointer, "STORE_PATIENCE_S", 0.1)
    refused: list[str] = []

    def publish_too(step: str) -> None:
        if step == "copy":
            with pytest.raises(StoreBusy) as caught:
                publish(master.path, folder / "store")
            refused.append(str(caught.value))

    publish(master.path, folder / "store", step=publish_too)
    assert f"PID {os.getpid()}" in refused[0]


WRITE_ONE_MORE = """
try:
    connection = duckdb.connect(sys.argv[1])
    connection.execute("insert into t values (-7, 'the second writer')")
    connection.close()
    print('wrote')
except duckdb.Error as error:
    print(type(error).__name__)
"""


def lost_rows(master: Master, copy: Callable[[], object]) -> tuple[str, int]:
    """Hold the master open, `copy` it, let another write; return its output and its lost rows."""
    connection = duckdb.connect(str(master.path))
    connection.execute("insert into t values (-1, 'the first writer')")
    connection.execute("checkpoint")
    copy()
    message = child(WRITE_ONE_MORE, master.path)
    connection.execute("insert into t select range, 'more' from range(1000)")
    connection.execute("checkpoint")
    connection.close()
    with duckdb.connect(str(master.path), read_only=True) as connection:
        row = connection.execute("select count(*) from t where i = -7").fetchone()
    return message, (1 if message == "wrote" else 0) - (row[0] if row else 0)


def test_a_copy_in_the_writers_process_loses_rows(master: Master, folder: Path) -> None:
    """The control: `copy2` drops DuckDB's lock, and the second writer's row is lost."""
    message, lost = lost_rows(master, lambda: shutil.copy2(master.path, folder / "copy.db"))
    print(f"\ncopy2 in the writer's process: the second writer {message}, rows lost {lost}")
    assert (message, lost) == ("wrote", 1)


def test_our_publication_refuses_and_loses_no_row(master: Master, folder: Path) -> None:
    def copy() -> None:
        with pytest.raises(MasterOpenHere):
            publish(master.path, folder / "store")

    message, lost = lost_rows(master, copy)
    print(f"\nours: the second writer {message}, rows lost {lost}")
    assert (message, lost) == ("IOException", 0)
