"""DuckDB changes only blocks that its free list allows, and the journal notices every gap.

Random writes; the control, several checkpoints taken for one, must change other blocks.
"""

import filecmp
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import duckdb
import pytest

from replica_platform.replica import publish
from replica_platform.replica.copy.blocks import digest_blocks
from replica_platform.replica.copy.free_list import BlockUse, read_block_use
from replica_platform_tests.faults import replica_writes


def block_use(path: Path) -> BlockUse:
    fd = os.open(path, os.O_RDONLY)
    try:
        return read_block_use(fd)
    finally:
        os.close(fd)


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("checkpoints", [1, 3])
def test_only_blocks_that_may_differ_do(tmp_path: Path, torture: bool, checkpoints: int) -> None:
    path = tmp_path / "master.duckdb"
    replica_writes.make(path)
    counts: Counter[str] = Counter()
    rng = random.Random(11)
    use, digests = block_use(path), digest_blocks(path)
    for _ in range(400 // checkpoints if torture else 40):
        if torture:  # some hundred random writes make DuckDB 1.5.5 abort now and then
            aborted = start_write("plain", path, rng.randrange(10**9), checkpoints).wait() != 0
            counts["writers that DuckDB aborted"] += aborted
        else:
            replica_writes.write_plain(path, rng, checkpoints)
        later, found = block_use(path), digest_blocks(path)
        changed = {at for at, one in enumerate(found) if at >= len(digests) or one != digests[at]}
        may_differ = use.may_differ(later)
        steps = later.header.iteration - use.header.iteration
        counts["one checkpoint" if steps <= 1 else "several"] += 1
        counts["outside after one" if steps <= 1 else "outside after several"] += bool(
            changed - may_differ
        )
        counts["changed blocks"] += len(changed)
        counts["blocks that might have"] += len(may_differ)
        counts["blocks"] += len(found)
        use, digests = later, found
    print(f"\nDuckDB {duckdb.__version__}, {checkpoints} checkpoints a write: {dict(counts)}")
    assert counts["outside after one"] == 0
    if checkpoints == 1:
        assert counts["one checkpoint"] > counts["several"]
    else:
        assert counts["outside after several"] > 0


@pytest.mark.timeout(3000)
def test_publications_equal_the_master_whoever_wrote_it_and_was_killed(
    tmp_path: Path, torture: bool
) -> None:
    """A gap in the journal is noticed every time, and every block compared."""
    path, store = tmp_path / "master.duckdb", tmp_path / "store"
    master = replica_writes.make(path)
    rng = random.Random(12)
    counts: Counter[str] = Counter()
    since_gap = 0
    for number in range(150 if torture else 40):
        way = rng.choice(["ours", "ours", "ours", "plain", "ours, killed", "plain, killed"])
        before = master.path.stat().st_ctime_ns
        if "killed" not in way and torture:
            start_write(way, path, number, rng.choice([1, 3])).wait()
        elif way == "ours":
            replica_writes.write_ours(master, rng)
        elif way == "plain":
            replica_writes.write_plain(path, rng, rng.choice([1, 3]))
        else:
            kill_a_write(way.split(",")[0], path, number, rng)
        wrote_elsewhere = way != "ours" and master.path.stat().st_ctime_ns != before
        journal = master.journal_path.stat().st_mtime_ns
        ended = way == "ours, killed" and journal >= master.path.stat().st_ctime_ns
        publication = publish(path, store, keep=1, min_age_s=0)
        if publication.how == "unchanged":  # beside what an unfinished write left in free blocks
            assert sums(publication.file) == sums(path), (number, way)
        else:
            assert filecmp.cmp(publication.file, path, shallow=False), (number, way)
        counts[way] += 1
        counts[publication.how] += 1
        if publication.how == "patch":
            counts["patches that compared every block"] += bool(publication.compared_all)
            if wrote_elsewhere and not ended:
                counts["gaps"] += 1
                assert publication.compared_all, (number, way)
        since_gap = 0 if publication.compared_all else since_gap + 1
    print(f"\nDuckDB {duckdb.__version__}: {dict(counts)}")
    assert counts["gaps"] > 0
    assert counts["patch"] > counts["patches that compared every block"]


def sums(path: Path) -> dict[str, object]:
    """Return a digest of the rows of each table."""
    with duckdb.connect(str(path), read_only=True) as connection:
        tables = connection.execute("select table_name from duckdb_tables() order by 1").fetchall()
        return {
            name: connection.execute(f"select count(*), sum(hash(t)) from {name} t").fetchone()
            for (name,) in tables
        }


def kill_a_write(way: str, path: Path, seed: int, rng: random.Random) -> None:
    """Let a process write, and kill it at a random moment, mostly during its checkpoint."""
    child = start_write(way, path, seed, 3)
    time.sleep(rng.uniform(0, 0.4))
    child.send_signal(signal.SIGKILL)
    child.wait()


def start_write(way: str, path: Path, seed: int, checkpoints: int) -> subprocess.Popen[bytes]:
    """Return a process that has begun to write."""
    module = "replica_platform_tests.faults.replica_writes"
    child = subprocess.Popen(
        [sys.executable, "-m", module, way, str(path), str(seed), str(checkpoints)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert child.stdout is not None
    child.stdout.readline()
    child.stdout.close()
    return child
