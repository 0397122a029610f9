"""A publication reads only what may have changed, and everything where that is not known."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from replica_platform.replica import Master, Publication, publish
from replica_platform.replica.copy.free_list import FreeListUnreadable, read_block_use
from replica_platform_tests.replica.conftest import ELSEWHERE, append, damage, write_elsewhere
from replica_platform_tests.replica.test_scrub import days, rot  # noqa: F401


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


@pytest.mark.parametrize("end", ["rolled back", "killed", "rolled back elsewhere"])
def test_a_write_that_changed_nothing_needs_no_publication(
    master: Master, patching: Callable[[], Publication], store: Path, end: str
) -> None:
    """It left bytes in free blocks, under the header that was published."""
    append(master)
    published = patching()
    before = master.path.read_bytes()
    sql = "create table gone as select hash(range)::varchar s from range(2000000)"
    if end == "rolled back":
        with pytest.raises(RuntimeError), master.write() as connection:
            connection.execute(sql)
            raise RuntimeError
    elif end == "killed":
        program = f"import duckdb, os; c = duckdb.connect({str(master.path)!r})\n"
        program += f"c.execute('begin'); c.execute({sql!r}); os._exit(9)"
        subprocess.run([sys.executable, "-c", program], check=False)
    else:
        with duckdb.connect(str(master.path)) as connection:
            connection.execute("begin")
            connection.execute(sql)
            connection.execute("rollback")
    assert master.path.read_bytes() != before
    again = publish(master.path, store, keep=1, min_age_s=0)
    assert (again.how, again.generation) == ("unchanged", published.generation)
    append(master)
    assert patching().generation == published.generation + 1
    append(master)
    assert bool(patching().compared_all) == (end != "rolled back")
