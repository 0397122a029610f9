"""Damaged files: each leads to the right fallback or a clear error, never to wrong rows.

The control, plain DuckDB in a child process, gives wrong answers for the same bytes, or dies.
"""

import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pytest

from replica_platform.replica import (
    Master,
    Publication,
    ReplicaReader,
    publish,
    rollback,
    status,
    verify,
)
from replica_platform.replica.copy.file_format import BLOCK_BYTES, HEADER_BYTES
from replica_platform.replica.errors import GenerationDamaged, MasterDamaged
from replica_platform.replica.probe import program
from replica_platform.replica.store.layout import Layout

SUMS = "select count(*), sum(i), bit_xor(hash(i, s)) from t"
PLAIN = f"""
import duckdb, json, sys
print(json.dumps(duckdb.connect(sys.argv[1], read_only=True).execute("{SUMS}").fetchall()))
"""

Damage = Callable[[bytearray, random.Random], None]


def flip_a_bit(raw: bytearray, rng: random.Random) -> None:
    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)


def swap_words(raw: bytearray, rng: random.Random) -> None:
    """Swap two words of one block: DuckDB's checksum ignores their order."""
    block = HEADER_BYTES + BLOCK_BYTES * rng.randrange((len(raw) - HEADER_BYTES) // BLOCK_BYTES)
    while True:
        a, b = (block + 8 * rng.randrange(1, BLOCK_BYTES // 8) for _ in range(2))
        if raw[a : a + 8] != raw[b : b + 8]:
            raw[a : a + 8], raw[b : b + 8] = raw[b : b + 8], raw[a : a + 8]
            return


def swap_blocks(raw: bytearray, rng: random.Random) -> None:
    while True:
        a, b = rng.sample(range(HEADER_BYTES, len(raw), BLOCK_BYTES), 2)
        if raw[a : a + BLOCK_BYTES] != raw[b : b + BLOCK_BYTES]:  # free ones may be alike
            first = raw[a : a + BLOCK_BYTES]
            raw[a : a + BLOCK_BYTES] = raw[b : b + BLOCK_BYTES]
            raw[b : b + BLOCK_BYTES] = first
            return


def truncate(raw: bytearray, rng: random.Random) -> None:
    del raw[rng.randrange(len(raw)) :]


def zero_a_page(raw: bytearray, rng: random.Random) -> None:
    while True:
        at = rng.randrange(0, len(raw) - 4096, 4096)
        if any(raw[at : at + 4096]):
            raw[at : at + 4096] = bytes(4096)
            return


DAMAGES: list[Damage] = [flip_a_bit, swap_words, swap_blocks, truncate, zero_a_page]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Publication], list[object]]:
    """A store of two generations, and the answer of each."""
    folder = tmp_path_factory.mktemp("zoo")
    master = Master(folder / "master.duckdb")
    publications, answers = [], []
    for version in (1, 2):
        with master.write() as connection:
            connection.execute(
                "create or replace table t as select range * ? i, hash(range)::varchar s "
                "from range(150000)",
                [version],
            )
        publications.append(publish(master.path, folder / "store", min_age_s=0))
        with master.read() as connection:
            answers.append(connection.execute(SUMS).fetchall())
    return folder, publications, answers


@pytest.fixture
def damaged(
    made: tuple[Path, list[Publication], list[object]],
) -> Iterator[Callable[[Damage, int], Path]]:
    """A function that damages the current generation's file; it is restored after the test."""
    path = made[1][1].file
    whole = path.read_bytes()
    path.chmod(0o644)

    def damage(how: Damage, seed: int) -> Path:
        raw = bytearray(whole)
        how(raw, random.Random(seed))
        path.write_bytes(raw)
        return path

    yield damage
    path.write_bytes(whole)
    path.chmod(0o444)


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_generation_is_replaced_by_the_previous_one(
    how: Damage,
    made: tuple[Path, list[Publication], list[object]],
    damaged: Callable[[Damage, int], Path],
    torture: bool,
) -> None:
    folder, _, (first, _) = made
    counts: Counter[str] = Counter()
    for seed in range(100 if torture else 8):
        damaged(how, seed)
        assert not verify(folder / "store").ok
        with ReplicaReader(folder / "store", poll_s=5) as reader:
            counts["right" if reader.query(SUMS) == first else "WRONG"] += 1
            assert reader.status().served_from == "previous"
    print(f"\n{how.__name__}: {dict(counts)}")
    assert set(counts) == {"right"}


def test_plain_duckdb_answers_wrongly(
    made: tuple[Path, list[Publication], list[object]],
    damaged: Callable[[Damage, int], Path],
    torture: bool,
) -> None:
    """The control: without our digests, swapped words and blocks give wrong answers."""
    right = json.dumps([list(row) for row in made[2][1]])  # type: ignore[attr-defined]
    counts: Counter[str] = Counter()
    for seed in range(40 if torture else 8):
        for how in (swap_words, swap_blocks):
            path = damaged(how, seed)
            child = subprocess.run([sys.executable, "-c", PLAIN, str(path)], capture_output=True)
            if child.returncode < 0:
                counts["died"] += 1
            elif child.returncode > 0:
                counts["noticed"] += 1
            else:
                counts["right" if child.stdout.decode().strip() == right else "WRONG"] += 1
    print(f"\nplain duckdb: {dict(counts)}")
    assert counts["WRONG"] + counts["died"] > 0


def test_a_generation_damaged_under_a_reader_is_dropped(
    made: tuple[Path, list[Publication], list[object]], damaged: Callable[[Damage, int], Path]
) -> None:
    folder, _, (first, second) = made
    with ReplicaReader(folder / "store", poll_s=60) as reader:
        assert reader.query(SUMS) == second
        damaged(swap_words, 1)
        reader._server.refresh()
        assert reader.query(SUMS) == first
        damaged(lambda raw, rng: None, 1)  # repaired
        reader._server.refresh()
        assert reader.query(SUMS) == second
        assert reader.status().served_from == "current"


def test_a_repaired_generation_is_accepted_although_its_seal_is_broken(
    made: tuple[Path, list[Publication], list[object]], damaged: Callable[[Damage, int], Path]
) -> None:
    folder, _, (_, second) = made
    damaged(lambda raw, rng: None, 0)
    assert verify(folder / "store").ok
    with ReplicaReader(folder / "store") as reader:
        assert reader.query(SUMS) == second


def test_a_damaged_generation_is_not_rolled_back_to(
    made: tuple[Path, list[Publication], list[object]], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(made[0] / "store", store, symlinks=True)
    first = store / "generations" / made[1][0].file.name
    first.chmod(0o644)
    first.write_bytes(first.read_bytes()[:-1])
    with pytest.raises(GenerationDamaged, match="readers stay on generation 2"):
        rollback(store)
    assert status(store).generation == 2


def test_a_damaged_pointer_leads_to_the_newest_generation(
    made: tuple[Path, list[Publication], list[object]], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(made[0] / "store", store, symlinks=True)
    pointer = Layout(store).pointer
    for broken in (b"", b"{", pointer.read_bytes().replace(b'"generation": 2', b'"generation": 9')):
        pointer.write_bytes(broken)
        with ReplicaReader(store) as reader:
            assert reader.query(SUMS) == made[2][1]
            assert reader.status().served_from == "previous"
        assert "pointer" in status(store).sentence
    assert publish(made[0] / "master.duckdb", store).how == "unchanged"
    assert status(store).ok


def test_a_foreign_log_beside_a_generation_is_not_replayed(
    made: tuple[Path, list[Publication], list[object]], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(made[0] / "store", store, symlinks=True)
    current = Layout(store).current()
    assert current is not None
    log = store / "generations" / f"{current.file}.wal"
    log.write_bytes(b"another database's log")
    with ReplicaReader(store) as reader:
        assert reader.query(SUMS) == made[2][0]
        assert "foreign log" in reader.status().refused[0]


def test_the_pinned_storage_refuses_a_foreign_log(tmp_path: Path) -> None:
    """In the old storage 7 rows become more, silently; so the master is pinned to v1.5.0."""
    found = {
        version: _rows_with_a_foreign_log(tmp_path, version) for version in ("v1.0.0", "v1.5.0")
    }
    print(f"\nrows of seven with a foreign log: {found}")
    assert found["v1.0.0"] > 7
    assert found["v1.5.0"] == -1
    master = Master(tmp_path / "master.duckdb")
    with master.write() as connection:
        connection.execute("create table t (i integer)")
    assert publish(master.path, tmp_path / "store").manifest.storage >= 67


def _rows_with_a_foreign_log(folder: Path, version: str) -> int:
    """Count the rows of a file of seven with another database's log beside it; -1 if refused."""
    log_maker = folder / f"logger-{version}.duckdb"
    replica = folder / f"replica-{version}.duckdb"
    for path in (log_maker, replica):
        with duckdb.connect() as connection:
            connection.execute(f"attach '{path}' as m (storage_version '{version}')")
            connection.execute("create table m.t as select range i from range(7)")
            connection.execute("detach m")
    program = (
        "import duckdb, os, sys\n"
        "connection = duckdb.connect(sys.argv[1])\n"
        "connection.execute('insert into t select range from range(500)')\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(log_maker)], check=False)
    shutil.copy(f"{log_maker}.wal", f"{replica}.wal")
    try:
        with duckdb.connect(str(replica), read_only=True) as connection:
            row = connection.execute("select count(*) from t").fetchone()
    except duckdb.Error:
        return -1
    return int(row[0]) if row else -1


@pytest.mark.parametrize("how", [flip_a_bit, truncate, zero_a_page])
def test_a_damaged_master_is_not_published(
    how: Damage, made: tuple[Path, list[Publication], list[object]], tmp_path: Path, torture: bool
) -> None:
    master, store = tmp_path / "master.duckdb", tmp_path / "store"
    whole = (made[0] / "master.duckdb").read_bytes()
    refused = 0
    for seed in range(30 if torture else 6):
        raw = bytearray(whole)
        how(raw, random.Random(seed))
        master.write_bytes(raw)
        try:
            publication = publish(master, store)
        except MasterDamaged as error:
            refused += 1
            assert "readers" in str(error)
            continue
        # Only damage to a block that no table uses may pass: every row is right.
        with duckdb.connect(str(publication.file), read_only=True) as connection:
            assert connection.execute(SUMS).fetchall() == made[2][1]
        shutil.rmtree(store)
    print(f"\n{how.__name__}: refused {refused}")
    assert refused > 0
    assert not (store / "current.json").exists()


def test_swapped_blocks_are_found_by_reading_every_row(
    made: tuple[Path, list[Publication], list[object]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Swapped blocks pass DuckDB's checksums; the control reads fewer rows and finds fewer."""
    whole = (made[0] / "master.duckdb").read_bytes()

    def refused(read_to_the_end_bytes: int) -> int:
        monkeypatch.setattr(program, "READ_TO_THE_END_BYTES", read_to_the_end_bytes)
        found = 0
        for seed in range(10):
            raw = bytearray(whole)
            swap_blocks(raw, random.Random(seed))
            master, store = tmp_path / "master.duckdb", tmp_path / "store"
            master.write_bytes(raw)
            try:
                publish(master, store)
            except MasterDamaged:
                found += 1
            shutil.rmtree(store, ignore_errors=True)
        return found

    all_rows, first_rows = refused(1 << 30), refused(0)
    print(f"\nrefused of 10: reading all rows {all_rows}, the first rows {first_rows}")
    assert all_rows > first_rows
