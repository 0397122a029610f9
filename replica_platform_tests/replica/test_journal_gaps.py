"""Gaps in the journal of checkpoints: each is noticed, and every block compared."""

import filecmp
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from replica_platform.replica import Master, Publication, publish
from replica_platform.replica.copy import free_list
from replica_platform_tests.replica.conftest import ELSEWHERE, append, write_elsewhere
from replica_platform_tests.replica.test_scrub import days, rot  # noqa: F401


def test_a_write_that_failed_is_journaled_too(
    master: Master, patching: Callable[[], Publication]
) -> None:
    """Its rows were written into free blocks before it failed."""
    with pytest.raises(RuntimeError), master.write() as connection:
        connection.execute("create table gone as select hash(range)::varchar s from range(2000000)")
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
        connection.execute("create table gone as select hash(range)::varchar s from range(2000000)")
        connection.execute("rollback")
        connection.execute("begin")
    publication = patching()
    assert (publication.how, publication.compared_all) == ("patch", "")


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
    assert filecmp.cmp(last.file, master.path, shallow=False)
    assert ELSEWHERE in last.compared_all


def test_a_duckdb_version_that_was_not_tested_is_not_trusted(
    master: Master, patching: Callable[[], Publication], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(free_list, "TESTED", ("9.9.",))
    append(master)
    assert "was not tested with DuckDB" in patching().compared_all
