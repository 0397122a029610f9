"""The spare: damage in it fails no publication, and rot that is not read is found."""

import filecmp
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from replica_platform.replica import BlockStore, Master, Publication, publish, scrub, verify
from replica_platform.replica.copy import blocks
from replica_platform.replica.copy.blocks import block_range
from replica_platform.replica.probe import program
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.spare import find_spare
from replica_platform_tests.replica.conftest import append, damage
from replica_platform_tests.replica.test_scrub import days, rot  # noqa: F401


def rot_spare(store: Path, block: int) -> None:
    """Change the spare's bytes without breaking its seal, as a disk does."""
    from dataclasses import replace

    from replica_platform.replica.store.manifest import Seal

    manifest = find_spare(Layout(store))
    assert manifest is not None
    path = store / "spare" / manifest.file
    damage(path, block_range(block, manifest.bytes)[0] + 99, os.urandom(9))
    path.with_suffix(".json").write_bytes(replace(manifest, seal=Seal.of(path)).to_json())


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
        assert filecmp.cmp(pulled.file, master.path, shallow=False)
    assert 0 < sum(read) < len(pulled.manifest.block_digests)
    rot_spare(here, 4)
    append(master)
    publish(master.path, store, keep=1, min_age_s=0)
    block_store.push(store)
    pulled = block_store.pull(here, keep=1, min_age_s=0)
    assert filecmp.cmp(pulled.file, master.path, shallow=False)
