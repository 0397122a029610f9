"""The time of a publication and of `cp` with fsync of the same file, alternating in one run.

    python benchmarks/replica_publish.py [--mb 1000] [--rounds 5] [--folder DIR] [--json]

A master of about that size; full publications into fresh stores against `cp` + fsync; then one
per cent of rows appended and published where a retired generation can be patched. Verification
(own digests, DuckDB's checksums, the child's probe) runs while the file is copied and written
out, so a full publication has the budget of both: 1.25 times the peer, and 0.3 s a gigabyte.
"""

import os
import shutil
import statistics
import subprocess
import time
from pathlib import Path

from replicas import measure

from replica_platform.replica import Master, Publication, publish

ROWS_PER_MB = 40_000


def make_master(path: Path, mb: int) -> Master:
    """Make a master with ticks of six columns, about `mb` megabytes, and a small table."""
    master = Master(path)
    with master.write() as connection:
        connection.execute(
            "create table ticks as select i id, (hash(i) % 100000)::int customer, "
            "(hash(i + 1) % 1000000) / 100.0 amount, "
            "timestamp '2026-01-01' + to_seconds(i) moment, 'merchant-' || (hash(i + 2) % 5000) m, "
            "md5(i::varchar) reference from range(?) r(i)",
            [mb * ROWS_PER_MB],
        )
        connection.execute(
            "create table watchlist as select 'C' || i id, i % 5 as grade from range(20000) r(i)"
        )
    return master


def append(master: Master, share: float) -> int:
    with master.write() as connection:
        row = connection.execute("select count(*) from ticks").fetchone()
        rows = int((row[0] if row else 0) * share)
        connection.execute(
            "insert into ticks select id + (select max(id) + 1 from ticks), customer, amount, "
            "moment, m, reference from (from ticks limit ?)",
            [rows],
        )
    return rows


def cp_and_fsync(source: Path, target: Path) -> float:
    started = time.perf_counter()
    subprocess.run(["cp", "--reflink=never", source, target], check=True)
    fd = os.open(target, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    took = time.perf_counter() - started
    target.unlink()
    return took


def timed(master: Master, store: Path) -> tuple[float, Publication]:
    started = time.perf_counter()
    publication = publish(master.path, store, keep=1, min_age_s=0)
    return time.perf_counter() - started, publication


def rounded(steps: dict[str, float]) -> dict[str, float]:
    return {name: round(took, 3) for name, took in steps.items() if took > 0.002}


def run(folder: Path, mb: int, rounds: int) -> dict[str, object]:
    master = make_master(folder / "master.duckdb", mb)
    gigabytes = master.path.stat().st_size / 1e9
    peers, fulls = [], []
    for number in range(rounds):
        os.sync()
        peers.append(cp_and_fsync(master.path, folder / "peer.duckdb"))
        os.sync()
        store = folder / f"store-{number}"
        took, publication = timed(master, store)
        assert publication.how in ("copy", "reflink"), publication.how
        fulls.append(took)
        shutil.rmtree(store)
    store = folder / "store"
    patches, written = [], []
    for number in range(rounds + 2):
        append(master, 0.01)
        os.sync()
        took, patched = timed(master, store)
        if number >= 2:
            assert patched.how == "patch", patched.how
            patches.append(took)
            written.append(patched.blocks_written)
    peer, full = statistics.median(peers), statistics.median(fulls)
    return {
        "gigabytes": round(gigabytes, 3),
        "cp_fsync_s": [round(s, 2) for s in peers],
        "full_s": [round(s, 2) for s in fulls],
        "patch_s": [round(s, 2) for s in patches],
        "patch_blocks": written,
        "full_to_cp": round(full / peer, 2),
        "full_to_budget": round(full / (1.25 * peer + 0.3 * gigabytes), 2),
        "last_full_steps": rounded(publication.steps),
        "last_patch_steps": rounded(patched.steps),
        "patch_to_full": round(statistics.median(patches) / full, 2),
        "targets": {"full_to_cp": 1.1, "full_to_budget": 1.0, "patch_to_full": 0.25},
    }


if __name__ == "__main__":
    measure(__doc__, run, rounds=5)
