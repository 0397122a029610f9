"""The time of a verified backup of a large file, against `cp` with an fsync, in one run.

    python benchmarks/backup_one_step.py [--megabytes 464] [--rounds 5]

Each round does both on the same file, in turn; the medians are printed. The source stays in
the page cache for both. The verification (SHA-256, integrity_check, counts) and the child process
are measured separately. Then the same file is kept as blocks in a folder, twice, with 1 % of its
rows changed in between (one range of keys), and the bytes that each sent. The last line is the same
backup under a writer that commits 200 times a second, with that writer's slowest commit.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from replica_platform.backup import backup
from replica_platform.core.sqlite import sqlite3

WRITER = """
import sys, time
from replica_platform.core.sqlite import sqlite3
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
db.execute("pragma synchronous=normal")
slowest, commits, until = 0.0, 0, time.monotonic() + float(sys.argv[2])
print("on", flush=True)
while time.monotonic() < until:
    began = time.monotonic()
    db.execute("insert into t (k, v) values (randomblob(8), randomblob(300))")
    slowest, commits = max(slowest, time.monotonic() - began), commits + 1
    time.sleep(max(0.0, 0.005 - (time.monotonic() - began)))
print(f"{commits} commits, the slowest {slowest * 1000:.0f} ms", flush=True)
"""


def make(file: Path, megabytes: int) -> None:
    """Make a table of random rows with an index, of about the given size, in WAL mode."""
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("pragma journal_mode=wal")
        db.execute("pragma synchronous=off")
        db.execute("create table t (id integer primary key, k blob, v blob, made_at text)")
        fill = (
            "with recursive n (i) as (select 1 union all select i + 1 from n where i < 20000) "
            "insert into t (k, v, made_at) select randomblob(8), randomblob(400), '2026-01-01' "
            "from n"
        )
        while file.stat().st_size < megabytes * 950_000:
            db.execute(fill)
            db.execute("pragma wal_checkpoint(truncate)")
        db.execute("create index t_by_k on t (k)")


def cp_and_fsync(source: Path, to: Path) -> float:
    """Return the seconds of `cp` with an fsync of the copy."""
    began = time.perf_counter()
    subprocess.run(["cp", source, to], check=True)
    fd = os.open(to, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    return time.perf_counter() - began


def show(what: str, seconds: list[float], size: int) -> None:
    """Print the median, its rate, the range."""
    middle = statistics.median(seconds)
    print(
        f"{what:44} {middle:6.2f} s {size / middle / 1e6:7.0f} MB/s"
        f"   ({min(seconds):.2f} to {max(seconds):.2f})"
    )


def as_blocks(live: Path, folder: Path, peer: float) -> None:
    """Keep the file as blocks twice, 1 % of its rows changed in between; print both."""
    for what in ("as blocks, the first time", "as blocks, after 1 % changed"):
        began = time.perf_counter()
        taken = backup(live, folder / "blocks", blocks=folder / "store")
        whole = time.perf_counter() - began
        rest = whole - taken.copy_s - taken.check_s
        print(
            f"{what:44} {whole:6.2f} s: {taken.copy_s:.2f} copying, {taken.check_s:.2f} checking, "
            f"{rest:.2f} digests and sending {taken.used_bytes / 1e6:.1f} MB; "
            f"{whole / peer:.2f} x cp"
        )
        with closing(sqlite3.connect(live, isolation_level=None)) as db:
            (rows,) = db.execute("select max(id) from t").fetchone()
            db.execute(
                "update t set v = randomblob(400) where id between ? and ?",
                (rows // 2, rows // 2 + rows // 100),
            )


def main() -> None:
    """Make the file, run the rounds, print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--megabytes", type=int, default=464)
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as name:
        folder = Path(name)
        live = folder / "large.db"
        make(live, given.megabytes)
        size = live.stat().st_size
        print(f"{size / 1e6:.0f} MB, SQLite {sqlite3.sqlite_version}, {given.rounds} rounds")
        figures: dict[str, list[float]] = {"cp": [], "copy": [], "check": [], "all": []}
        moment = datetime(2026, 1, 1, tzinfo=UTC)
        for number in range(given.rounds + 1):
            cp = cp_and_fsync(live, folder / "cp.db")
            (folder / "cp.db").unlink()
            began = time.perf_counter()
            taken = backup(live, folder / "b", now=moment + timedelta(seconds=number))
            whole = time.perf_counter() - began
            taken.file.unlink()
            taken.manifest.unlink()
            if number:  # the first round warms the caches
                found = (("cp", cp), ("copy", taken.copy_s), ("check", taken.check_s))
                for key, value in (*found, ("all", whole)):
                    figures[key].append(value)
        show("cp + fsync", figures["cp"], size)
        show("copy + fsync (inside the backup)", figures["copy"], size)
        show("verification (digest, check, counts)", figures["check"], size)
        show("the whole backup, child and manifest too", figures["all"], size)
        peer, copied, whole = (statistics.median(figures[key]) for key in ("cp", "copy", "all"))
        print(f"copy / cp: {copied / peer:.2f}, whole / cp: {whole / peer:.2f}")
        as_blocks(live, folder, peer)
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, live, "6"], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout and writer.stdout.readline()
            began = time.perf_counter()
            taken = backup(live, folder / "b", now=moment)
            whole = time.perf_counter() - began
            writer_report = writer.stdout.readline().strip()
        print(
            f"under a writer: {whole:.2f} s, of which {taken.copy_s:.2f} s copying; {writer_report}"
        )


if __name__ == "__main__":
    main()
