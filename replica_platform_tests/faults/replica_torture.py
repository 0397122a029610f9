"""The programs that `test_replica_torture` runs: a publisher that is killed, and readers.

    python -m …faults.replica_torture publisher METHOD FOLDER KILLS ANSWERS SEED
    python -m …faults.replica_torture reader METHOD FOLDER

Each row of two tables holds the version of the data, so that one query tells a whole answer from
a torn one. METHOD is `ours`, or a common one that must fail.
"""

import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import duckdb

from replica_platform.replica import Master, ReplicaReader, publish
from replica_platform.replica.store.layout import Layout

ROWS = 3_000
STEPS = (
    "lock", "clear", "quiesce", "reserve", "copy", "patch", "fsync", "verify", "name",
    "lease", "rename", "manifest", "pointer", "forget", "retire",
)  # fmt: skip
TORN = f"""
    select max(v), min(v) = max(v) and count(*) = {ROWS} and min(v) = (select max(v) from b)
        and (select min(v) = max(v) and count(*) = {ROWS} from b)
        and bool_and(s = hash(i + v)::varchar)
    from a
"""


def write_version(connection: duckdb.DuckDBPyConnection) -> int:
    connection.execute(
        "create table if not exists pad as select hash(range)::varchar s from range(100000)"
    )
    tables = connection.execute("select count(*) from duckdb_tables() where table_name = 'a'")
    row = tables.fetchone()
    found = connection.execute("select max(v) from a").fetchone() if row and row[0] else None
    version = 1 + (found[0] if found else 0)
    connection.execute(
        f"create or replace table a as select {version}::bigint v, range i, "
        f"hash(range + {version})::varchar s from range({ROWS})"
    )
    connection.execute("create or replace table b as select * from a")
    return version


def batch(method: str, folder: Path, step: object) -> None:
    """Write the next version into the master and publish it."""
    master = Master(folder / "master.duckdb")
    with master.write() as connection:
        write_version(connection)
    if method == "ours":
        publish(master.path, folder / "store", keep=2, min_age_s=0, step=step)  # type: ignore[arg-type]
    elif method == "copy2 in place":
        shutil.copy2(master.path, folder / "replica.db")
    elif method == "copy2 and rename":
        shutil.copy2(master.path, folder / "replica.tmp")
        (folder / "replica.tmp").replace(folder / "replica.db")


def answered(folder: Path) -> int:
    """Return how many answers all readers have got so far."""
    return sum(int(path.read_text() or 0) for path in folder.glob("answers-*"))


def publisher(method: str, folder: Path, kills: int, answers: int, seed: int) -> None:
    """Kill batches at a step or at a random moment, until `kills` died; then let one finish.

    More of them are killed until the readers have got so many answers.
    """
    rng = random.Random(seed)
    at: Counter[str] = Counter()
    usual_s = 0.3
    number = 0
    most = 3 * kills if answers == 0 else 100 * kills
    while (at.total() - at["lived"] < kills or answered(folder) < answers) and number < most:
        number += 1
        by_step = STEPS[(number // 2) % len(STEPS)] if number % 2 else None
        # Some live, always the one before a kill while patching: it leaves a spare to patch.
        lives = number % 8 == 0 or STEPS[((number + 1) // 2) % len(STEPS)] == "patch"
        if by_step == "copy":
            # With a spare, nothing would be copied whole.
            shutil.rmtree(Layout(folder / "store").spares, ignore_errors=True)
        child = os.fork()
        if child == 0:
            batch(method, folder, lambda step, by=by_step: step == by and os.kill(os.getpid(), 9))
            os._exit(0)
        if by_step is None and not lives:
            time.sleep(rng.uniform(0, 2 * usual_s))
            os.kill(child, signal.SIGKILL)
        _, code = os.waitpid(child, 0)
        if os.WIFSIGNALED(code):
            at[by_step or "any moment"] += 1
        else:
            at["lived" if os.WEXITSTATUS(code) == 0 else "failed"] += 1
    started = time.monotonic()
    batch(method, folder, lambda _: None)
    with Master(folder / "master.duckdb").read() as connection:
        row = connection.execute("select max(v) from a").fetchone()
    took = time.monotonic() - started
    print(json.dumps({"at": at, "version": row[0] if row else 0, "recovery_s": round(took, 2)}))


class Plain:
    """The common reader: it watches the file's time, and opens the same path again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: object = None
        self.connection: duckdb.DuckDBPyConnection | None = None

    def query(self, sql: str) -> list[tuple[object, ...]]:
        found = self.path.stat()
        if (found.st_ino, found.st_mtime_ns) != self.seen:
            fresh = duckdb.connect(str(self.path), read_only=True)
            if self.connection:
                self.connection.close()
            self.connection, self.seen = fresh, (found.st_ino, found.st_mtime_ns)
        assert self.connection is not None
        return self.connection.execute(sql).fetchall()


def reader(method: str, folder: Path) -> None:
    """Query until SIGTERM; print how many answers were whole, torn or missing."""
    counts: Counter[str] = Counter()
    versions: set[int] = set()
    count = folder / f"answers-{os.getpid()}"
    pause_s = float(os.environ.get("REPLICA_PAUSE_S", "0.02"))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if method == "ours":
        source: object = ReplicaReader(folder / "store", poll_s=0.01)
    else:
        source = Plain(folder / "replica.db")

    def query_repeatedly() -> None:
        while not stop.is_set():
            try:
                version, whole = source.query(TORN)[0]  # type: ignore[attr-defined]
                counts["whole" if whole else "torn"] += 1
                versions.add(version)
            except Exception as error:
                counts["failed"] += 1
                counts[f"{type(error).__name__}: {str(error)[:60]}"] += 1
            time.sleep(pause_s)

    # The common reader has one connection, so it gets one thread.
    threads = [
        threading.Thread(target=query_repeatedly) for _ in range(2 if method == "ours" else 1)
    ]
    for thread in threads:
        thread.start()
    while not stop.wait(0.5):
        if method == "ours":
            count.write_text(str(counts["whole"]))
    for thread in threads:
        thread.join()
    print(json.dumps({"counts": counts, "last": max(versions), "versions": len(versions)}))


if __name__ == "__main__":
    program, method, folder, *rest = sys.argv[1:]
    if program == "publisher":
        publisher(method, Path(folder), int(rest[0]), int(rest[1]), int(rest[2]))
    else:
        reader(method, Path(folder))
