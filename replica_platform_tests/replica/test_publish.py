"""Publication: what a generation contains, what is copied, and which masters are refused."""

import filecmp
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest

from replica_platform.replica import (
    Master,
    Publication,
    ReplicaReader,
    publish,
    rollback,
    scrub,
    status,
    verify,
)
from replica_platform.replica.copy import blocks
from replica_platform.replica.errors import (
    CandidateDamaged,
    MasterDamaged,
    MasterMissing,
    MasterOpenHere,
    WrongLineage,
)
from replica_platform.replica.probe.process import Probe
from replica_platform.replica.store.layout import Layout
from replica_platform_tests.replica.conftest import damage


def test_a_generation_is_the_master_byte_for_byte(master: Master, store: Path) -> None:
    publication = publish(master.path, store)
    assert publication.generation == 1
    assert filecmp.cmp(publication.file, master.path, shallow=False)
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


def test_a_retired_generation_is_patched_to_the_master_byte_for_byte(
    publish_next: Callable[..., Publication], master: Master, store: Path
) -> None:
    publications = [publish_next(day, keep=1) for day in range(3)]
    assert [publication.how for publication in publications] == ["copy", "copy", "patch"]
    last = publications[-1]
    assert 0 < last.blocks_written < len(last.manifest.block_digests)
    assert filecmp.cmp(last.file, master.path, shallow=False)
    assert verify(store).ok


def test_every_publication_leaves_half_of_the_cores_to_readers(
    publish_next: Callable[..., Publication], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, int] = {}
    digest = blocks.digest

    def recorded(content: bytes) -> str:
        if len(content) == blocks.BLOCK_BYTES:
            seen[threading.current_thread().name.split("_")[0]] = len(os.sched_getaffinity(0))
        return digest(content)

    monkeypatch.setattr(blocks, "digest", recorded)
    before = os.sched_getaffinity(0)
    for day, how in ((3, "copy"), (4, "copy"), (5, "patch")):
        assert publish_next(day, keep=1).how == how
        assert seen == {"scan": (len(before) + 1) // 2}
        assert os.sched_getaffinity(0) == before


def test_a_log_left_by_a_crash_is_checkpointed(master: Master, store: Path, tmp_path: Path) -> None:
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


def test_a_master_open_in_this_process_is_refused(master: Master, store: Path) -> None:
    with (
        duckdb.connect(str(master.path)),
        pytest.raises(MasterOpenHere, match="close that connection"),
    ):
        publish(master.path, store)


def test_a_missing_master_is_named(tmp_path: Path, store: Path) -> None:
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda master, before: master.path.write_bytes(before), "is older than"),
        (
            lambda master, before: (master.path.write_bytes(before), one_more(master, 77)),
            "has parted from",
        ),
    ],
)
def test_an_older_or_diverged_master_is_refused(
    publish_next: Callable[..., Publication],
    master: Master,
    store: Path,
    change: Callable[[Master, bytes], object],
    message: str,
) -> None:
    """The master was restored from a backup, or restored and then written."""
    publish_next()
    before = master.path.read_bytes()
    publish_next(4)
    change(master, before)
    with pytest.raises(WrongLineage, match=message):
        publish(master.path, store)
    assert status(store).generation == 2
    assert publish(master.path, store, new_lineage=True).generation == 3


def one_more(master: Master, day: int) -> None:
    with master.write() as connection:
        connection.execute("insert into bars values ('AAPL', ?, 11)", [day])


def test_the_steps_are_in_order_and_the_pointer_moves_last(
    publish_next: Callable[..., Publication], master: Master, store: Path
) -> None:
    publish_next()
    one_more(master, 4)
    seen: dict[str, int | None] = {}
    second = publish(
        master.path, store, step=lambda name: seen.update({name: status(store).generation})
    )
    assert " ".join(seen) == (
        "lock clear quiesce reserve copy fsync verify name "
        "lease rename manifest pointer forget retire"
    )
    assert [name for name, generation in seen.items() if generation == 2] == ["forget", "retire"]
    assert second.generation == 2


def test_a_copy_that_changed_before_it_was_verified_is_deleted(
    master: Master, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte changes after it was written, as a bad disk or another process would change it."""
    read_tables = Probe.read_tables

    def damage_first(self: Probe, path: Path, catalog: str, scan: list[str]) -> object:
        damage(path, 400_000, b"\xff\x00\xff\x00")
        return read_tables(self, path, catalog, scan)

    monkeypatch.setattr(Probe, "read_tables", damage_first)
    with pytest.raises((CandidateDamaged, MasterDamaged), match="readers"):
        publish(master.path, store)
    assert status(store).generation is None
    assert list((store / "candidates").iterdir()) == []


def test_a_generation_stays_for_its_minimum_age(
    publish_next: Callable[..., Publication], master: Master, store: Path
) -> None:
    publish_next()
    for day in (4, 5):
        one_more(master, day)
        publish(master.path, store, keep=1, min_age_s=60)
    assert status(store).kept == [3, 2, 1]
    one_more(master, 6)
    publish(master.path, store, keep=1, min_age_s=0)
    assert status(store).kept == [4]


def test_a_generation_whose_file_was_deleted_is_no_longer_kept(
    publish_next: Callable[..., Publication], master: Master, store: Path
) -> None:
    deleted = publish_next()
    deleted.file.unlink()
    assert publish(master.path, store).generation == 2
    assert status(store).kept == [2]
    assert scrub(store).ok


def test_a_bulk_load_that_bypassed_the_log_is_published(master: Master, store: Path) -> None:
    """The control, a copy of the file without its small log, lacks all rows."""
    program = (
        "import duckdb, os, sys\n"
        "connection = duckdb.connect(sys.argv[1])\n"
        "connection.execute('pragma disable_checkpoint_on_shutdown')\n"
        "connection.execute(\"set checkpoint_threshold = '1TB'\")\n"
        "connection.execute('create table bulk as select range i from range(1000000)')\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(master.path)], check=False)
    (log,) = master.sidecars
    assert log.stat().st_size < 100_000
    copy = store.with_name("copy.duckdb")
    shutil.copy2(master.path, copy)
    with duckdb.connect(str(copy), read_only=True) as connection, pytest.raises(duckdb.Error):
        connection.execute("select count(*) from bulk")
    assert publish(master.path, store).manifest.tables["bulk"].rows == 1_000_000


def test_a_log_that_stays_after_a_checkpoint_is_refused(master: Master, store: Path) -> None:
    stray = master.path.with_name(f"{master.path.name}.wal.recovery")
    stray.write_bytes(b"left by a crash during recovery")
    with pytest.raises(MasterDamaged):
        publish(master.path, store)
    assert status(store).generation is None


def test_status_compares_by_lineage(
    publish_next: Callable[..., Publication], master: Master, store: Path
) -> None:
    assert not status(store, master.path).ok
    publish_next()
    assert status(store, master.path).in_sync
    with master.write() as connection:
        connection.execute("update bars set close = 99 where day = 3")
    found = status(store, master.path)
    assert not found.ok
    assert found.in_sync is False
    assert "publish it" in found.sentence


def test_no_temporary_file_remains(publish_next: Callable[..., Publication], store: Path) -> None:
    publish_next()
    publish_next(4)
    layout = Layout(store)
    assert list(layout.candidates.iterdir()) == []
    assert [path for path in store.rglob("*") if ".tmp" in path.name] == []


def test_a_hard_link_is_never_patched(
    publish_next: Callable[..., Publication], store: Path
) -> None:
    publish_next(3, keep=1)
    publish_next(4, keep=1)
    spare = next((store / "spare").glob("*.duckdb"))
    other_name = store / "another-name.duckdb"
    other_name.hardlink_to(spare)
    before = other_name.read_bytes()
    assert publish_next(5, keep=1).how == "copy"
    assert other_name.read_bytes() == before


def test_generations_are_numbered_not_dated(
    publish_next: Callable[..., Publication], store: Path
) -> None:
    assert [publish_next(day).generation for day in (3, 4)] == [1, 2]
    assert rollback(store).generation == 1
    third = publish_next(5)
    assert (third.generation, third.manifest.parent) == (3, 1)


def test_a_state_that_was_rolled_back_is_not_published_again(
    publish_next: Callable[..., Publication], master: Master, store: Path
) -> None:
    publish_next(3)
    publish_next(4)
    rollback(store)
    assert publish(master.path, store).how == "unchanged"
    assert status(store, master.path).generation == 1
    assert publish_next(5).generation == 3


def test_a_required_table_must_exist(master: Master, store: Path) -> None:
    with pytest.raises(MasterDamaged, match="required table absent"):
        publish(master.path, store, required=("absent",))
    assert publish(master.path, store, required=("bars",)).generation == 1


def test_reports_are_plain_json(
    publish_next: Callable[..., Publication], master: Master, store: Path
) -> None:
    import json

    publication = publish_next()
    with ReplicaReader(store) as reader:
        reader_status = reader.status()
    for report in (publication, reader_status, status(store, master.path), verify(store)):
        fields = report.as_dict()
        assert json.loads(json.dumps(fields)) == fields
        assert (report.ok, fields["ok"], fields["sentence"]) == (True, True, report.sentence)
    assert reader_status.rung == reader_status.served_from == "current"
