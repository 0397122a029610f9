"""A publication reads only what may have changed, and everything where that is not known."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest

from replica_platform.replica import BlockStore, Master, Publication, publish, scrub, verify
from replica_platform.replica.copy import blocks, free_list
from replica_platform.replica.copy.blocks import block_range
from replica_platform.replica.copy.free_list import FreeListUnreadable, read_block_use
from replica_platform.replica.probe import program
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.spare import find_spare
from replica_platform_tests.replica.conftest import damage
from replica_platform_tests.replica.test_scrub import days, rot  # noqa: F401

ELSEWHERE = "a program other than Master.write"


def append(master: Master, rows: int = 100) -> None:
    with master.write() as connection:
        connection.execute(
            f"insert into pad select hash(range + {rows})::varchar from range(?)", [rows]
        )


def write_elsewhere(master: Master) -> None:
    """Write as any other program does, with several checkpoints."""
    with duckdb.connect(str(master.path)) as connection:
        for number in range(3):
            connection.execute(
                f"create or replace table other as select {number} n, range i from range(90000)"
            )
            connection.execute("checkpoint")


@pytest.fixture
def publish_now(master: Master, store: Path) -> Callable[[], Publication]:
    """A function that publishes, and compares the generation with the master."""

    def publish_it() -> Publication:
        publication = publish(master.path, store, keep=1, min_age_s=0)
        assert publication.file.read_bytes() == master.path.read_bytes()
        assert verify(store).ok
        return publication

    return publish_it


@pytest.fixture
def patching(master: Master, publish_now: Callable[[], Publication]) -> Callable[[], Publication]:
    """`publish_now`, of a store whose next publication patches."""
    for _ in range(3):
        append(master)
        publish_now()
    return publish_now


def test_only_blocks_that_may_have_changed_are_read(
    master: Master, patching: Callable[[], Publication]
) -> None:
    append(master)
    publication = patching()
    assert publication.how == "patch"
    assert publication.compared_all == ""
    assert publication.blocks_written <= publication.blocks_read
    assert publication.blocks_read < len(publication.manifest.block_digests)
    assert publication.sentence.endswith(" s.")


def test_a_write_that_failed_is_journaled_too(
    master: Master, patching: Callable[[], Publication]
) -> None:
    """Its rows were written into free blocks before it failed."""
    with pytest.raises(RuntimeError), master.write() as connection:
        connection.execute("create table gone as select hash(range)::varchar s from range(500000)")
        raise RuntimeError
    append(master)
    assert patching().compared_all == ""


def test_rows_that_were_rolled_back_after_a_commit_of_the_caller_are_copied(
    master: Master, patching: Callable[[], Publication]
) -> None:
    """They are in blocks that were not free before that commit."""
    with master.write() as connection:
        connection.execute("create or replace table pad as select 1 s from range(10)")
        connection.execute("commit")
        connection.execute("checkpoint")
        connection.execute("begin")
        connection.execute("create table gone as select hash(range)::varchar s from range(500000)")
        connection.execute("rollback")
        connection.execute("begin")
    publication = patching()
    assert (publication.how, publication.compared_all) == ("patch", "")


def test_another_program_is_noticed_and_every_block_compared(
    master: Master, patching: Callable[[], Publication]
) -> None:
    write_elsewhere(master)
    append(master)
    publication = patching()
    assert publication.how == "patch"
    assert publication.blocks_read == len(publication.manifest.block_digests)
    assert ELSEWHERE in publication.compared_all
    assert "Every block was compared, because" in publication.sentence
    # The next but one is patched from a generation that the journal knows.
    for _ in range(2):
        append(master)
        last = patching()
    assert last.compared_all == ""


def test_without_noticing_it_the_generation_would_differ(
    master: Master,
    patching: Callable[[], Publication],
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The control: the journal believes that no other program wrote."""
    from replica_platform.replica import journal

    monkeypatch.setattr(journal.State, "__eq__", lambda self, other: True)
    write_elsewhere(master)
    append(master)
    with pytest.raises(Exception):  # noqa: B017
        patching()


def test_several_checkpoints_in_one_write_are_noticed(
    master: Master, patching: Callable[[], Publication]
) -> None:
    with master.write() as connection:
        for number in range(3):
            connection.execute(
                f"create or replace table other as select {number} n from range(90000)"
            )
            connection.execute("commit")
            connection.execute("checkpoint")
            connection.execute("begin")
    assert "checkpoints in one write" in patching().compared_all


CRASH = """
import os, sys
from replica_platform.replica import Master
with Master(sys.argv[1]).write() as connection:
    connection.execute("set debug_checkpoint_abort = '" + sys.argv[2] + "'")
    connection.execute("create or replace table other as select hash(range) s from range(300000)")
    connection.execute("delete from pad where s like '1%'")
    try:
        connection.execute("commit")
        connection.execute("checkpoint")
    finally:
        os._exit(9)
"""


@pytest.mark.skipif(duckdb.__version__ >= "2", reason="DuckDB 2.0 has no such setting")
@pytest.mark.parametrize("moment", ["before_header", "after_free_list_write", "before_truncate"])
def test_a_crash_in_the_middle_of_a_checkpoint_is_noticed(
    master: Master, patching: Callable[[], Publication], moment: str
) -> None:
    before = master.path.read_bytes()
    crashed = subprocess.run([sys.executable, "-c", CRASH, str(master.path), moment], check=False)
    assert crashed.returncode == 9
    assert master.path.read_bytes() != before
    assert ELSEWHERE in patching().compared_all


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"format": 1, "entries": [[1]]}'])
def test_a_journal_that_is_lost_or_damaged_is_a_gap(
    master: Master, patching: Callable[[], Publication], content: bytes | None
) -> None:
    if content is None:
        master.journal_path.unlink()
    else:
        master.journal_path.write_bytes(content)
    append(master)
    assert "no journal" in patching().compared_all


def test_a_folder_that_refuses_the_journal_refuses_no_write(
    master: Master, patching: Callable[[], Publication]
) -> None:
    master.journal_path.unlink()
    master.journal_path.mkdir()
    append(master)
    assert patching().compared_all


def test_a_restored_master_with_an_equal_header_is_not_taken_for_the_other_history(
    master: Master, store: Path, tmp_path: Path
) -> None:
    """Two histories of one length, one of them written after a restore, can have equal headers."""
    backup = tmp_path / "backup.duckdb"
    append(master)
    publish(master.path, store, keep=1, min_age_s=0)
    shutil.copy2(master.path, backup)
    with master.write() as connection:
        connection.execute("update pad set s = '1' || s[2:]")
    publish(master.path, store, keep=1, min_age_s=0)
    shutil.copy2(backup, master.path)
    with master.write() as connection:
        connection.execute("update pad set s = '2' || s[2:]")
    append(master)
    publish(master.path, store, keep=1, min_age_s=0)
    append(master)
    last = publish(master.path, store, keep=1, min_age_s=0)
    assert last.file.read_bytes() == master.path.read_bytes()
    assert ELSEWHERE in last.compared_all


def test_a_duckdb_version_that_was_not_tested_is_not_trusted(
    master: Master, patching: Callable[[], Publication], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(free_list, "TESTED", ("9.9.",))
    append(master)
    assert "was not tested with DuckDB" in patching().compared_all


def test_a_connection_elsewhere_in_the_process_keeps_its_lock(master: Master) -> None:
    """Reading the file here would drop DuckDB's lock on it; the write is then not journaled."""
    before = master.journal_path.read_bytes()
    with duckdb.connect(str(master.path)):
        append(master)
        other = subprocess.run(
            [sys.executable, "-c", f"import duckdb; duckdb.connect({str(master.path)!r})"],
            capture_output=True,
        )
    assert b"Could not set lock" in other.stderr
    assert master.journal_path.read_bytes() == before


def test_a_damaged_free_list_is_not_believed(master: Master) -> None:
    fd = os.open(master.path, os.O_RDONLY)
    use = read_block_use(fd)
    os.close(fd)
    size = use.header.block_bytes
    block = use.header.free_list & ((1 << 56) - 1)
    damage(master.path, 12288 + block * size + size // 2, b"\xff\x01\x02")
    fd = os.open(master.path, os.O_RDONLY)
    with pytest.raises(FreeListUnreadable, match="checksum"):
        read_block_use(fd)
    os.close(fd)


def test_a_spare_that_was_written_to_is_not_patched(
    master: Master, patching: Callable[[], Publication], store: Path
) -> None:
    damage(next((store / "spare").glob("*.duckdb")), 1_000_000, b"\xff\x00\xff\x00")
    append(master)
    assert patching().how == "copy"


def test_a_generation_that_was_written_to_does_not_become_a_spare(
    master: Master, patching: Callable[[], Publication], store: Path
) -> None:
    append(master)
    damage(patching().file, 1_000_000, b"\xff\x00\xff\x00")
    append(master)
    publish(master.path, store, keep=1, min_age_s=0)
    assert find_spare(Layout(store)) is None


def rot_spare(store: Path, block: int) -> None:
    """Change the spare's bytes without breaking its seal, as a disk does."""
    from dataclasses import replace

    from replica_platform.replica.store.manifest import Seal

    manifest = find_spare(Layout(store))
    assert manifest is not None
    path = store / "spare" / manifest.file
    damage(path, block_range(block, manifest.bytes)[0] + 99, os.urandom(9))
    path.with_suffix(".json").write_bytes(replace(manifest, seal=Seal.of(path)).to_json())


@pytest.mark.parametrize("compared", ["every block", "what may have changed"])
def test_a_rotten_spare_fails_no_publication(
    master: Master, patching: Callable[[], Publication], store: Path, compared: str
) -> None:
    """The comparison finds it, or the child that reads the tables; the master is well."""
    rot_spare(store, 4)
    if compared == "every block":
        master.journal_path.unlink()
    append(master)
    publication = patching()
    assert publication.how == "copy"


def test_rot_in_what_publications_do_not_read_is_found_by_the_scrub_of_the_file(
    master: Master,
    patching: Callable[[], Publication],
    store: Path,
    days: Callable[[float], None],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A new generation twice a day, patched into one of the same two files on the disk."""
    # As with a larger file, of which only the first rows are read.
    monkeypatch.setattr(program, "READ_TO_THE_END_BYTES", 0)
    with master.write() as connection:
        connection.execute("create table old as select hash(range)::varchar s from range(500000)")
    digests = []
    for _ in range(4):
        append(master, 3)
        digests.append(patching().manifest.block_digests)
    stable = [at for at, same in enumerate(zip(*digests, strict=False)) if len({*same}) == 1]
    rot_spare(store, stable[-1])
    found: list[int] = []
    for _ in range(18):
        append(master, 3)
        publication = publish(master.path, store, keep=1, min_age_s=0)
        assert publication.compared_all == ""
        days(0.5)
        found += scrub(store, within_s=7 * 86_400, master=master.path).damaged
        if found:
            break
    assert found
    assert verify(store).ok


def test_after_a_week_without_a_scrub_every_block_is_compared(
    master: Master,
    patching: Callable[[], Publication],
    store: Path,
    days: Callable[[float], None],  # noqa: F811
) -> None:
    days(8)
    append(master)
    assert "not all read for a week" in patching().compared_all
    # A scrub in time makes that needless.
    for _ in range(2):
        append(master)
        patching()
    days(5)
    scrub(store, within_s=0)
    days(5)
    append(master)
    patching()
    append(master)
    assert patching().compared_all == ""


def test_the_state_of_former_versions_is_read(
    master: Master, patching: Callable[[], Publication], store: Path
) -> None:
    import json

    layout = Layout(store)
    current = layout.current()
    assert current is not None
    since = datetime.now(UTC) + timedelta(seconds=1)
    state = {current.file: {"next_block": 7, "since": since.isoformat()}}
    layout.scrub_state.write_text(json.dumps({"last": since.isoformat(), "generations": state}))
    from replica_platform.replica.store.scrub_state import ScrubState

    inode = layout.data(current).stat().st_ino
    assert ScrubState.load(layout).round_of(current, inode).next_block == 7


def test_a_pull_reads_and_fetches_only_what_it_lacks(
    master: Master, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a rotten spare fails no pull."""
    here = tmp_path / "here"
    block_store = BlockStore(tmp_path / "blocks")
    read = []
    scan = blocks.scan

    def counting(*arguments: object, **keywords: object) -> blocks.Scan:
        found = scan(*arguments, **keywords)  # type: ignore[arg-type]
        read.append(found.read)
        return found

    for _ in range(4):
        append(master)
        publish(master.path, store, keep=1, min_age_s=0)
        block_store.push(store)
        monkeypatch.setattr(blocks, "scan", counting)
        read.clear()
        pulled = block_store.pull(here, keep=1, min_age_s=0)
        monkeypatch.setattr(blocks, "scan", scan)
        assert pulled.file.read_bytes() == master.path.read_bytes()
    assert 0 < sum(read) < len(pulled.manifest.block_digests)
    rot_spare(here, 4)
    append(master)
    publish(master.path, store, keep=1, min_age_s=0)
    block_store.push(store)
    pulled = block_store.pull(here, keep=1, min_age_s=0)
    assert pulled.file.read_bytes() == master.path.read_bytes()
