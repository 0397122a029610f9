"""`ReplicaReader`: rows, swaps, and each fallback."""

import shutil
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


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_rows_arrow_tables_and_data_frames(
    master: Master, reader: ReplicaReader, store: Path
) -> None:
    publish(master.path, store)
    wait_until(lambda: reader.generation == 1)
    sql = "select symbol from bars where day = ?"
    assert reader.query(sql, [2]) == [("IBM",)]
    assert reader.arrow(sql, [2]).to_pylist() == [{"symbol": "IBM"}]
    assert reader.df(sql, [2]).symbol.tolist() == ["IBM"]


def test_a_new_generation_is_served(
    publish_next: Callable[..., Publication], reader: ReplicaReader
) -> None:
    publish_next()
    wait_until(lambda: reader.generation == 1)
    assert reader.query(COUNT) == [(4,)]
    publish_next(4)
    wait_until(lambda: reader.generation == 2)
    assert reader.query(COUNT) == [(5,)]
    assert reader.status().served_from == "current"


def test_a_rollback_is_noticed(
    publish_next: Callable[..., Publication], reader: ReplicaReader, store: Path
) -> None:
    publish_next()
    publish_next(4)
    wait_until(lambda: reader.generation == 2)
    rollback(store)
    wait_until(lambda: reader.generation == 1)
    assert reader.query(COUNT) == [(4,)]


def test_the_previous_generation_replaces_a_damaged_one(
    publish_next: Callable[..., Publication], store: Path
) -> None:
    publish_next()
    second = publish_next(4)
    damage(second.file, 300_000, b"\xff\x00\xff")
    with ReplicaReader(store, poll_s=0.01) as reader:
        assert reader.query(COUNT) == [(4,)]
        found = reader.status()
        assert (found.served_from, found.generation) == ("previous", 1)
        assert "not what was published" in found.refused[0]


def test_without_a_generation_memory_then_default_then_an_error(
    publish_next: Callable[..., Publication], store: Path
) -> None:
    published = publish_next()
    with ReplicaReader(store, poll_s=0.01) as reader:
        assert reader.query(COUNT) == [(4,)]
        reader._server._drop_attached()  # as after an internal error of DuckDB
        published.file.unlink()
        assert reader.query(COUNT, default=[]) == [(4,)]
        assert reader.status().served_from == "memory"
        assert reader.query("select 1", default=[(7,)]) == [(7,)]
        assert reader.status().served_from == "default"
        with pytest.raises(ReplicaUnavailable, match="publish again"):
            reader.query("select 2")


def test_an_empty_store_gives_the_default_and_creates_nothing(
    reader: ReplicaReader, store: Path
) -> None:
    assert reader.query(COUNT, default=[(0,)]) == [(0,)]
    assert not store.exists()


def test_a_wrong_query_raises_duckdbs_error(
    master: Master, reader: ReplicaReader, store: Path
) -> None:
    publish(master.path, store)
    wait_until(lambda: reader.generation == 1)
    with pytest.raises(duckdb.CatalogException):
        reader.query("select * from absent", default=[])
    assert reader.status().refused == []


def test_threads_share_a_reader(
    publish_next: Callable[..., Publication], reader: ReplicaReader
) -> None:
    publish_next()
    wait_until(lambda: reader.generation == 1)
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
        publish_next(day, keep=1)
    wait_until(lambda: reader.generation == 3)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert set(counts) <= {4, 5, 6}
    assert reader.query(COUNT) == [(6,)]


@pytest.fixture
def only_duckdb(tmp_path: Path) -> Path:
    """A folder from which only duckdb and this package can be imported."""
    folder = tmp_path / "only"
    folder.mkdir()
    installed = Path(duckdb.__file__).parents[1]
    for found in [*installed.glob("duckdb*"), *installed.glob("_duckdb*")]:
        (folder / found.name).symlink_to(found)
    (folder / "replica_platform").symlink_to(Path(replica_platform.__file__).parent)
    return folder


def output_with_only_duckdb(only_duckdb: Path, program: str, *arguments: object) -> str:
    # -S: no site-packages; -I: no current folder and no PYTHONPATH.
    prelude = f"import sys; sys.path.append({str(only_duckdb)!r})\n"
    finished = subprocess.run(
        [sys.executable, "-I", "-S", "-c", prelude + program, *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    return finished.stdout.strip() or finished.stderr.strip().splitlines()[-1]


def test_a_reader_needs_only_duckdb(
    publish_next: Callable[..., Publication], store: Path, only_duckdb: Path
) -> None:
    """In a process that has duckdb, the standard library and this package."""
    assert "No module named 'xxhash'" in output_with_only_duckdb(only_duckdb, "import xxhash")
    assert "No module named 'numpy'" in output_with_only_duckdb(only_duckdb, "import numpy")
    publish_next()
    second = publish_next(4)
    program = (
        "from replica_platform.replica import ReplicaReader\n"
        "with ReplicaReader(sys.argv[1]) as reader:\n"
        "    print(reader.query('select count(*) from bars'), reader.status().served_from)\n"
    )
    assert output_with_only_duckdb(only_duckdb, program, store) == "[(5,)] current"
    # A generation that it cannot verify is not served.
    damage(second.file, 300_000, b"\xff")
    assert output_with_only_duckdb(only_duckdb, program, store) == "[(4,)] previous"


def test_a_reader_cannot_write(
    publish_next: Callable[..., Publication], reader: ReplicaReader
) -> None:
    publish_next()
    wait_until(lambda: reader.generation == 1)
    for statement in ("delete from bars", "create table more as select 1 i"):
        with pytest.raises(duckdb.Error, match="read-only"):
            reader.query(statement, default=[])
    assert reader.query(COUNT) == [(4,)]
    assert reader.status().refused == []


def test_a_damaged_generation_is_checked_once(
    publish_next: Callable[..., Publication], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_next()
    second = publish_next(4)
    damage(second.file, 300_000, b"\xff\x00\xff")
    checked: list[str] = []

    def recorded(path: Path, manifest: Manifest, **options: bool) -> None:
        checked.append(path.name)
        integrity.check(path, manifest, **options)

    monkeypatch.setattr(swap, "check", recorded)
    with ReplicaReader(store, poll_s=600) as reader:
        for _ in range(20):
            reader._server.refresh()
            assert reader.query(COUNT) == [(4,)]
        assert checked.count(second.file.name) == 1
        # A new file in its place is checked again.
        whole = second.file.read_bytes()
        second.file.unlink()
        second.file.write_bytes(whole)
        reader._server.refresh()
        assert checked.count(second.file.name) == 2


def test_a_query_that_meets_damage_is_answered_from_the_previous(
    publish_next: Callable[..., Publication], store: Path
) -> None:
    """DuckDB meets the damage before we check: its instance is dropped, and the file refused."""
    publish_next()
    second = publish_next(4)
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


def test_a_snapshot_stays_on_one_generation(
    publish_next: Callable[..., Publication], store: Path
) -> None:
    publish_next()
    with ReplicaReader(store, poll_s=0.01) as reader, reader.snapshot() as snapshot:
        publish_next(4)
        wait_until(lambda: reader.generation == 2)
        assert reader.query(COUNT) == [(5,)]
        assert snapshot.generation == 1
        assert snapshot.query(COUNT) == [(4,)]
        assert snapshot.query("select max(day) from bars") == [(3,)]


def test_a_closed_reader_releases_its_generation(
    publish_next: Callable[..., Publication], store: Path
) -> None:
    first = publish_next()
    reader = ReplicaReader(store)
    reader.query(COUNT)
    assert [found.generation for found in status(store).readers] == [1]
    reader.close()
    assert status(store).readers == []
    assert first.file.exists()
    with pytest.raises(ReplicaUnavailable):
        reader.query("select 1")


@pytest.mark.parametrize(
    "sql",
    ["select * from read_csv('/absent.csv')", "attach '/absent.duckdb' as other (read_only)"],
)
def test_an_error_of_the_query_is_not_taken_for_damage(
    master: Master, store: Path, monkeypatch: pytest.MonkeyPatch, sql: str
) -> None:
    """DuckDB raises an IO error for another file: the author sees it, and no byte is read."""
    publish(master.path, store)
    with ReplicaReader(store) as reader:
        assert reader.query(COUNT) == [(3,)]
        monkeypatch.setattr(swap, "check", lambda *_, **__: pytest.fail("the file was checked"))
        with pytest.raises(duckdb.IOException, match="absent"):
            reader.query(sql, default=[])
        assert reader.query(COUNT) == [(3,)]
        assert (reader.status().served_from, reader.status().last_error) == ("current", None)


def test_damage_of_another_file_is_raised_after_one_check(
    master: Master, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DuckDB does not name the damaged file, so the generation is read once, and found intact."""
    publish(master.path, store)
    other = tmp_path / "other.duckdb"
    other.write_bytes(master.path.read_bytes())
    damage(other, 100, b"\xff")
    checks: list[bool] = []

    def recorded(path: Path, manifest: Manifest, **options: bool) -> None:
        checks.append(options.get("read_all", False))
        integrity.check(path, manifest, **options)

    monkeypatch.setattr(swap, "check", recorded)
    with ReplicaReader(store, poll_s=600) as reader:
        with pytest.raises(duckdb.Error, match="Corrupt database file"):
            reader.query(f"attach '{other}' as other (read_only)", default=[])
        assert checks.count(True) == 1
        assert reader.query(COUNT) == [(3,)]
        assert (reader.status().served_from, reader.status().refused) == ("current", [])


@pytest.mark.parametrize(
    ("error", "concerns"),
    [
        (duckdb.IOException("IO Error: Corrupt database file: computed checksum 1"), True),
        (duckdb.Error("Corrupt database file: computed checksum 1"), True),  # DuckDB 2.0
        (duckdb.IOException("IO Error: Could not read from file /store/g.duckdb"), True),
        (duckdb.IOException("IO Error: Could not read from file /other.duckdb"), False),
        (duckdb.InvalidInputException("Corrupt database file: said by the query"), False),
        (duckdb.Error("/store/g.duckdb: anything else"), False),
        (duckdb.InternalException("INTERNAL Error: anything"), True),
    ],
)
def test_which_errors_concern_the_generation(error: duckdb.Error, concerns: bool) -> None:
    assert swap.concerns_generation(error, Path("/store/g.duckdb")) is concerns


WRITER = """
import duckdb, sys
held = duckdb.connect(sys.argv[1])
print("held", flush=True); sys.stdin.read()
"""


def test_a_generation_that_could_not_be_attached_is_tried_again(
    publish_next: Callable[..., Publication], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another client holds a write lock on the file for a while; the file does not change."""
    monkeypatch.setattr(swap, "RETRY_S", 0.05)
    publish_next()
    file = publish_next(4).file
    file.chmod(0o644)
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdin and writer.stdout and writer.stdout.readline()
        with ReplicaReader(store, poll_s=0.01) as reader:
            assert reader.query(COUNT) == [(4,)]
            assert reader.status().served_from == "previous"
            (refusal,) = reader.status().refused
            assert "Could not set lock" in refusal
            assert refusal.startswith("Generation 2 was refused at 20")
            writer.stdin.close()
            writer.wait()
            wait_until(lambda: reader.generation == 2)
            assert reader.query(COUNT) == [(5,)]
            assert (reader.status().served_from, reader.status().refused) == ("current", [])


def test_a_generation_is_tried_again_when_a_foreign_log_is_gone(
    publish_next: Callable[..., Publication], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swap, "RETRY_S", 0.05)
    publish_next()
    file = publish_next(4).file
    log = file.with_name(f"{file.name}.wal")
    log.write_bytes(b"another database's log")
    with ReplicaReader(store, poll_s=0.01) as reader:
        assert reader.query(COUNT) == [(4,)]
        log.unlink()
        wait_until(lambda: reader.generation == 2)


def test_a_deleted_store_is_not_called_current(
    publish_next: Callable[..., Publication], reader: ReplicaReader, store: Path
) -> None:
    publish_next()
    wait_until(lambda: bool(reader.query(COUNT, default=[]) and reader.status().ok))
    shutil.rmtree(store)
    reader._server.refresh()
    assert reader.query(COUNT) == [(4,)]  # the open file stays readable
    found = reader.status()
    assert (found.ok, found.served_from) == (False, "previous")
    assert "cannot be read" in found.sentence
    publish_next(4)
    wait_until(lambda: reader.query(COUNT) == [(5,)] and reader.status().ok)
