"""ReplicaReader: rows, swaps, and each rung of the ladder."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pytest

import replica_platform
from replica_platform.replica import (
    Master,
    Publication,
    ReplicaReader,
    ReplicaUnavailable,
    publish,
    rollback,
    status,
)
from replica_platform.replica.serving import swap
from replica_platform.replica.store import integrity
from replica_platform.replica.store.manifest import Manifest
from replica_platform_tests.replica.conftest import damage

COUNT = "select count(*) from bars"


@pytest.fixture
def reader(store: Path) -> Iterator[ReplicaReader]:
    with ReplicaReader(store, poll_s=0.01) as reader:
        yield reader


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_rows_arrow_and_frames(master: Master, reader: ReplicaReader, store: Path) -> None:
    publish(master.path, store)
    until(lambda: reader.generation == 1)
    sql = "select symbol from bars where day = ?"
    assert reader.query(sql, [2]) == [("IBM",)]
    assert reader.arrow(sql, [2]).to_pylist() == [{"symbol": "IBM"}]
    assert reader.df(sql, [2]).symbol.tolist() == ["IBM"]


def test_a_new_generation_is_noticed(
    again: Callable[..., Publication], reader: ReplicaReader
) -> None:
    again()
    until(lambda: reader.generation == 1)
    assert reader.query(COUNT) == [(4,)]
    again(4)
    until(lambda: reader.generation == 2)
    assert reader.query(COUNT) == [(5,)]
    assert reader.status().served_from == "current"


def test_a_rollback_is_noticed(
    again: Callable[..., Publication], reader: ReplicaReader, store: Path
) -> None:
    again()
    again(4)
    until(lambda: reader.generation == 2)
    rollback(store)
    until(lambda: reader.generation == 1)
    assert reader.query(COUNT) == [(4,)]


def test_a_damaged_generation_is_refused_for_the_previous(
    again: Callable[..., Publication], store: Path
) -> None:
    again()
    second = again(4)
    damage(second.file, 300_000, b"\xff\x00\xff")
    with ReplicaReader(store, poll_s=0.01) as reader:
        assert reader.query(COUNT) == [(4,)]
        found = reader.status()
        assert (found.served_from, found.generation) == ("previous", 1)
        assert "not what was published" in found.refused[0]


def test_memory_then_default_then_an_error(again: Callable[..., Publication], store: Path) -> None:
    published = again()
    with ReplicaReader(store, poll_s=0.01) as reader:
        assert reader.query(COUNT) == [(4,)]
        reader._server._drop_attached()  # as if DuckDB had failed
        published.file.unlink()
        assert reader.query(COUNT, default=[]) == [(4,)]
        assert reader.status().served_from == "memory"
        assert reader.query("select 1", default=[(7,)]) == [(7,)]
        assert reader.status().served_from == "default"
        with pytest.raises(ReplicaUnavailable, match="publish again"):
            reader.query("select 2")


def test_an_empty_store_gives_the_default_and_makes_nothing(
    reader: ReplicaReader, store: Path
) -> None:
    assert reader.query(COUNT, default=[(0,)]) == [(0,)]
    assert not store.exists()


def test_a_wrong_query_is_its_authors(master: Master, reader: ReplicaReader, store: Path) -> None:
    publish(master.path, store)
    until(lambda: reader.generation == 1)
    with pytest.raises(duckdb.CatalogException):
        reader.query("select * from absent", default=[])
    assert reader.status().refused == []


def test_threads_share_it(again: Callable[..., Publication], reader: ReplicaReader) -> None:
    again()
    until(lambda: reader.generation == 1)
    counts: list[int] = []
    failures: list[BaseException] = []
    stop = threading.Event()

    def work() -> None:
        try:
            while not stop.is_set():
                counts.append(reader.query(COUNT)[0][0])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for day in range(4, 6):
        again(day, keep=1)
    until(lambda: reader.generation == 3)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert set(counts) <= {4, 5, 6}
    assert reader.query(COUNT) == [(6,)]


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder from which only duckdb and this package can be imported."""
    folder = tmp_path / "only"
    folder.mkdir()
    installed = Path(duckdb.__file__).parents[1]
    for found in [*installed.glob("duckdb*"), *installed.glob("_duckdb*")]:
        (folder / found.name).symlink_to(found)
    (folder / "replica_platform").symlink_to(Path(replica_platform.__file__).parent)
    return folder


def said_with_only_duckdb(bare: Path, program: str, *arguments: object) -> str:
    # -S: no site-packages; -I: no current folder and no PYTHONPATH.
    prelude = f"import sys; sys.path.append({str(bare)!r})\n"
    finished = subprocess.run(
        [sys.executable, "-I", "-S", "-c", prelude + program, *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    return finished.stdout.strip() or finished.stderr.strip().splitlines()[-1]


def test_it_needs_nothing_but_duckdb(
    again: Callable[..., Publication], store: Path, bare: Path
) -> None:
    """In a process that has duckdb, the standard library and this package."""
    assert "No module named 'xxhash'" in said_with_only_duckdb(bare, "import xxhash")
    assert "No module named 'numpy'" in said_with_only_duckdb(bare, "import numpy")
    again()
    second = again(4)
    program = (
        "from replica_platform.replica import ReplicaReader\n"
        "with ReplicaReader(sys.argv[1]) as reader:\n"
        "    print(reader.query('select count(*) from bars'), reader.status().served_from)\n"
    )
    assert said_with_only_duckdb(bare, program, store) == "[(5,)] current"
    # What it cannot verify it does not serve.
    damage(second.file, 300_000, b"\xff")
    assert said_with_only_duckdb(bare, program, store) == "[(4,)] previous"


def test_what_is_read_cannot_be_written(
    again: Callable[..., Publication], reader: ReplicaReader
) -> None:
    again()
    until(lambda: reader.generation == 1)
    for statement in ("delete from bars", "create table more as select 1 i"):
        with pytest.raises(duckdb.Error, match="read-only"):
            reader.query(statement, default=[])
    assert reader.query(COUNT) == [(4,)]
    assert reader.status().refused == []


def test_a_bad_generation_is_looked_at_once(
    again: Callable[..., Publication], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again()
    second = again(4)
    damage(second.file, 300_000, b"\xff\x00\xff")
    checked: list[str] = []

    def noting(path: Path, manifest: Manifest, **options: bool) -> None:
        checked.append(path.name)
        integrity.check(path, manifest, **options)

    monkeypatch.setattr(swap, "check", noting)
    with ReplicaReader(store, poll_s=600) as reader:
        for _ in range(20):
            reader._server.refresh()
            assert reader.query(COUNT) == [(4,)]
        assert checked.count(second.file.name) == 1
        # Another file in its place is another chance.
        whole = second.file.read_bytes()
        second.file.unlink()
        second.file.write_bytes(whole)
        reader._server.refresh()
        assert checked.count(second.file.name) == 2


def test_a_query_that_fails_in_the_file_is_answered_from_the_previous(
    again: Callable[..., Publication], store: Path
) -> None:
    """DuckDB meets the damage before we look: its poisoned instance is dropped with the file."""
    again()
    second = again(4)
    with ReplicaReader(store, poll_s=600) as reader:
        assert reader.query(COUNT) == [(5,)]
        whole = second.file.read_bytes()
        damage(second.file, 12_288 + 4096, bytes(len(whole) - 12_288 - 4096))
        hashes = reader.query("select bit_xor(hash(s)) from pad")
        assert reader.status().served_from == "previous"
        assert "failed a query" in str(reader.status().last_error) or reader.status().refused
        assert reader.query(COUNT) == [(4,)]
    with ReplicaReader(store) as reader:
        assert reader.query("select bit_xor(hash(s)) from pad") == hashes


def test_several_questions_of_one_generation(
    again: Callable[..., Publication], store: Path
) -> None:
    again()
    with ReplicaReader(store, poll_s=0.01) as reader, reader.snapshot() as snapshot:
        again(4)
        until(lambda: reader.generation == 2)
        assert reader.query(COUNT) == [(5,)]
        assert snapshot.generation == 1
        assert snapshot.query(COUNT) == [(4,)]
        assert snapshot.query("select max(day) from bars") == [(3,)]


def test_closed_it_lets_go(again: Callable[..., Publication], store: Path) -> None:
    first = again()
    reader = ReplicaReader(store)
    reader.query(COUNT)
    assert [found.generation for found in status(store).readers] == [1]
    reader.close()
    assert status(store).readers == []
    assert first.file.exists()
    with pytest.raises(ReplicaUnavailable):
        reader.query("select 1")
