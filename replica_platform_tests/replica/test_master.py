"""The master: one transaction at a time, committed or rolled back, and no log left beside it."""

import struct
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from replica_platform.replica import Master, status
from replica_platform.replica.copy.file_format import (
    BLOCK_BYTES,
    HEADER_BYTES,
    SECTOR,
    parse_header,
)
from replica_platform.replica.errors import MasterBusy, MasterDamaged, MasterOpenHere


def test_the_storage_version_is_pinned(master: Master) -> None:
    header = parse_header(master.path.read_bytes())
    assert header.storage == 68
    assert header.has_identity


def test_an_error_rolls_everything_back(master: Master) -> None:
    before = parse_header(master.path.read_bytes())
    with pytest.raises(ZeroDivisionError), master.write() as connection:
        connection.execute("delete from bars")
        raise ZeroDivisionError
    with master.read() as connection:
        assert connection.execute("select count(*) from bars").fetchone() == (3,)
    assert parse_header(master.path.read_bytes()) == before
    assert master.sidecars == []


def test_each_batch_raises_the_checkpoint_count(master: Master) -> None:
    before = parse_header(master.path.read_bytes())
    with master.write() as connection:
        connection.execute("delete from bars where day = 2")
    after = parse_header(master.path.read_bytes())
    assert after.db_id == before.db_id
    assert after.iteration > before.iteration


def test_reading_is_read_only(master: Master) -> None:
    with master.read() as connection, pytest.raises(duckdb.Error, match="read-only"):
        connection.execute("delete from bars")


def test_a_file_that_is_not_a_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "master.duckdb"
    path.write_bytes(b"no database" * 2000)
    with (
        pytest.raises(MasterDamaged, match="Restore it from a backup"),
        Master(path, patience_s=0).write(),
    ):
        pass


@pytest.mark.parametrize("name", ["stock_data.duckdb", "Could not set lock on file.duckdb"])
def test_damaged_metadata_is_not_taken_for_a_lock(tmp_path: Path, name: str) -> None:
    master = Master(tmp_path / name, patience_s=0)
    with master.write() as connection:
        connection.execute("create table t as select range i from range(1000)")
    (meta,) = struct.unpack_from("<Q", newest_header(master.path), 16)
    with master.path.open("r+b") as file:  # DuckDB's message names the "block"
        file.seek(HEADER_BYTES + (meta & ((1 << 56) - 1)) * BLOCK_BYTES + 100)
        file.write(b"damage")
    for use in (master.write, master.read):
        with pytest.raises(MasterDamaged, match="in block at location"), use():
            pass


def newest_header(path: Path) -> bytes:
    """Return the newer of the two database headers."""
    raw = path.read_bytes()
    return max(
        (raw[at : at + SECTOR] for at in (SECTOR, 2 * SECTOR)),
        key=lambda header: int(struct.unpack_from("<Q", header, 8)[0]),
    )


@pytest.mark.parametrize("read_only", [False, True])
def test_a_lock_of_another_process_is_reported(master: Master, read_only: bool) -> None:
    program = (
        "import duckdb, sys\n"
        "held = duckdb.connect(sys.argv[1])\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(master.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdin and other.stdout and other.stdout.readline() == "held\n"
        use = master.read if read_only else master.write
        with pytest.raises(MasterBusy, match=f"PID {other.pid}"), use():
            pass
        other.stdin.close()


def test_a_master_open_here_with_other_settings_is_refused(master: Master) -> None:
    with (
        duckdb.connect(str(master.path), config={"threads": 1}),
        pytest.raises(MasterOpenHere),
        master.write(),
    ):
        pass


def test_status_keeps_the_lock_of_an_open_master(master: Master, store: Path) -> None:
    """Reading the file in the process that has it open would drop DuckDB's lock."""
    from replica_platform.core.locks import holders

    with duckdb.connect(str(master.path)) as connection:
        connection.execute("select 1")
        before = holders(master.path)
        status(store, master.path)
        assert before != []
        assert holders(master.path) == before


@pytest.fixture
def encrypted(tmp_path: Path) -> Master:
    """A master that DuckDB encrypts."""
    master = Master(tmp_path / "secret.duckdb")
    with duckdb.connect() as connection:
        # The cipher that writes securely is an extension, which is not on every machine.
        connection.execute("set force_mbedtls_unsafe = true")
        connection.execute(
            f"attach '{master.path}' as secret (encryption_key 'k', storage_version 'v1.5.0')"
        )
        connection.execute("create table secret.bars as select 1 symbol")
        connection.execute("detach secret")
    return master


def test_an_encrypted_master_is_refused_by_name(encrypted: Master, tmp_path: Path) -> None:
    from replica_platform.replica import MasterEncrypted, publish, status

    store = tmp_path / "store"
    plain = Master(tmp_path / "plain.duckdb")
    with plain.write() as connection:
        connection.execute("create table bars as select 1 symbol")
    publish(plain.path, store)
    with pytest.raises(MasterEncrypted, match="is encrypted"):
        publish(encrypted.path, store)
    for opened in (encrypted.read(), encrypted.write()):
        with pytest.raises(MasterEncrypted, match="COPY FROM DATABASE"), opened:
            pass
    found = status(store, encrypted.path)
    assert "is encrypted" in found.sentence
    assert "damaged" not in found.sentence


def test_the_remedy_for_an_encrypted_master(encrypted: Master, tmp_path: Path) -> None:
    from replica_platform.replica import publish

    plain = tmp_path / "plain.duckdb"
    with duckdb.connect() as connection:
        connection.execute("set force_mbedtls_unsafe = true")
        connection.execute(f"attach '{encrypted.path}' as secret (encryption_key 'k')")
        connection.execute(f"attach '{plain}' as plain (storage_version 'v1.5.0')")
        connection.execute("copy from database secret to plain")
    assert publish(plain, tmp_path / "store").manifest.tables["bars"].rows == 1
