"""Reflinks on XFS and btrfs, on loop devices: a generation shares the blocks of the master."""

import filecmp
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from replica_platform.replica import Master, publish, verify
from replica_platform.replica.copy.file_format import BLOCK_BYTES

MAKE = {"xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"], "btrfs": ["mkfs.btrfs", "-q"]}
IMAGE_BYTES = 400 * 1024 * 1024


@pytest.fixture(params=MAKE)
def reflinks(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system that supports FICLONE; skipped where none can be mounted."""
    command = MAKE[request.param]
    if os.geteuid() != 0:
        pytest.skip("mounting a file system takes root")
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    image, folder = tmp_path / "image", tmp_path / "mounted"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run([*command, str(image)], check=True)
    mounting = subprocess.run(
        ["mount", "-o", "loop", str(image), str(folder)], capture_output=True, text=True
    )
    if mounting.returncode != 0:
        pytest.skip(f"{request.param} cannot be mounted here: {mounting.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def used(folder: Path) -> int:
    os.sync()
    return shutil.disk_usage(folder).used


def test_a_generation_shares_the_masters_blocks(reflinks: Path) -> None:
    master, store = Master(reflinks / "master.duckdb"), reflinks / "store"
    with master.write() as connection:
        connection.execute("create table t as select hash(range)::varchar s from range(2000000)")
    before = used(reflinks)
    first = publish(master.path, store)
    assert (first.how, first.blocks_written) == ("reflink", 0)
    assert first.bytes > 10_000_000
    assert used(reflinks) - before < first.bytes / 4
    assert filecmp.cmp(first.file, master.path, shallow=False)
    # Later writes go to new blocks of the master: the generation keeps its own.
    with master.write() as connection:
        connection.execute("update t set s = 'changed'")
    assert verify(store).ok
    second = publish(master.path, store)
    assert second.how == "reflink"
    assert filecmp.cmp(second.file, master.path, shallow=False)
    with duckdb.connect(str(first.file), read_only=True) as connection:
        row = connection.execute("select count(*) from t where s = 'changed'").fetchone()
    assert row == (0,)


def test_a_damaged_master_is_detected_although_nothing_is_copied(reflinks: Path) -> None:
    from replica_platform.replica.errors import MasterDamaged

    master, store = Master(reflinks / "master.duckdb"), reflinks / "store"
    with master.write() as connection:
        connection.execute("create table t as select hash(range)::varchar s from range(300000)")
    with master.path.open("r+b") as file:
        file.seek(12_288 + BLOCK_BYTES + 4096)
        file.write(os.urandom(4096))
    with pytest.raises(MasterDamaged):
        publish(master.path, store)
    assert list((store / "candidates").iterdir()) == []


def test_lock_holders_are_found_on_these_file_systems(reflinks: Path) -> None:
    """On btrfs, `stat` gives another device number than the kernel's list of locks."""
    from replica_platform.replica.errors import MasterOpenHere

    master = Master(reflinks / "master.duckdb")
    with master.write() as connection:
        connection.execute("create table t as select 1 i")
    with (
        duckdb.connect(str(master.path)),
        pytest.raises(MasterOpenHere, match="close that connection"),
    ):
        publish(master.path, reflinks / "store")
