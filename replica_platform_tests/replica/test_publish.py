"""Publication: what a generation holds, what it costs, and what is left beside it."""

import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest

from replica_platform.replica import Master, Publication, publish, status, verify
from replica_platform.replica.errors import MasterMissing, MasterOpenHere, WrongLineage
from replica_platform.replica.layout import Layout


def test_a_generation_is_the_master_byte_for_byte(master: Master, store: Path) -> None:
    publication = publish(master.path, store)
    assert publication.generation == 1
    assert publication.file.read_bytes() == master.path.read_bytes()
    assert publication.file.parent == store / "generations"
    assert stat.S_IMODE(publication.file.stat().st_mode) == 0o444
    assert publication.manifest.tables["bars"].rows == 3


def test_any_duckdb_client_reads_the_link(master: Master, store: Path) -> None:
    publish(master.path, store)
    with duckdb.connect(str(store / "stock_data_replica.db"), read_only=True) as connection:
        assert connection.execute("select count(*) from bars").fetchone() == (3,)


def test_an_unchanged_master_is_confirmed_not_copied(master: Master, store: Path) -> None:
    first = publish(master.path, store)
    second = publish(master.path, store, data_as_of=datetime(2026, 1, 2, tzinfo=UTC))
    assert (second.how, second.generation, second.blocks_written) == ("unchanged", 1, 0)
    assert second.manifest.confirmed_at > first.manifest.confirmed_at
    assert second.manifest.data_as_of == datetime(2026, 1, 2, tzinfo=UTC)
    assert len(list((store / "generations").glob("*.duckdb"))) == 1


def test_a_retired_generation_is_patched(again: Callable[..., Publication], store: Path) -> None:
    hows = [again(day, keep=2).how for day in range(5)]
    assert hows == ["copy", "copy", "copy", "patch", "patch"]
    assert verify(store).ok


def test_a_patched_generation_is_the_master_byte_for_byte(
    again: Callable[..., Publication], master: Master
) -> None:
    for day in range(6):
        publication = again(day, keep=1)
    assert publication.how == "patch"
    assert 0 < publication.blocks_written < len(publication.manifest.blocks)
    assert publication.file.read_bytes() == master.path.read_bytes()


def test_a_log_left_by_a_crash_is_taken_in(master: Master, store: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    program = (
        "import duckdb, os, sys\n"
        "connection = duckdb.connect(sys.argv[1])\n"
        "connection.execute(\"insert into bars values ('GOOG', 9, 9)\")\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(master.path)], check=False)
    assert master.sidecars != []
    publication = publish(master.path, store)
    assert publication.manifest.tables["bars"].rows == 4
    assert master.sidecars == []


def test_a_master_open_in_this_process_is_not_touched(master: Master, store: Path) -> None:
    with (
        duckdb.connect(str(master.path)),
        pytest.raises(MasterOpenHere, match="close that connection"),
    ):
        publish(master.path, store)


def test_no_master_is_named(tmp_path: Path, store: Path) -> None:
    with pytest.raises(MasterMissing, match="no master at"):
        publish(tmp_path / "absent.duckdb", store)
    assert not (tmp_path / "absent.duckdb").exists()


def test_another_database_is_refused(master: Master, store: Path, tmp_path: Path) -> None:
    publish(master.path, store)
    other = Master(tmp_path / "other.duckdb")
    with other.write() as connection:
        connection.execute("create table bars (i integer)")
    with pytest.raises(WrongLineage, match="another database"):
        publish(other.path, store)
    assert publish(other.path, store, new_lineage=True).generation == 2


def test_status_knows_by_lineage_whether_it_is_in_sync(
    again: Callable[..., Publication], master: Master, store: Path
) -> None:
    assert not status(store, master.path).ok
    again()
    assert status(store, master.path).in_sync
    with master.write() as connection:
        connection.execute("update bars set close = 99 where day = 3")
    found = status(store, master.path)
    assert not found.ok
    assert found.in_sync is False
    assert "publish it" in found.sentence


def test_nothing_temporary_stays(again: Callable[..., Publication], store: Path) -> None:
    again()
    again(4)
    layout = Layout(store)
    assert list(layout.candidates.iterdir()) == []
    assert [path for path in store.rglob("*") if ".tmp" in path.name] == []
