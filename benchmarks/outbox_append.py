"""The speed of `append`: beside a bare INSERT and two queues, alone and in 32 threads.

    python benchmarks/outbox_append.py [--folder DIR] [--rows N] [--peers PYTHON]

All run on one file system, in one run and in turns, so that changes of the disk's speed affect all
of them. PYTHON is an interpreter that has persist-queue and litequeue (by default this one);
without them, their lines say so. Every commit is at synchronous=FULL.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import Outbox

RECORD = {
    "id": str(uuid.uuid4()),
    "user_id": 7,
    "message": "How do I sync one table? " * 10,
    "response": "You ask for what changed. " * 10,
}
TURN_ROWS = 100
THREADS = 32

PEERS = """
import json, sys, time, uuid
name, folder, rows, record = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
if name == "persist-queue":
    import persistqueue
    queue = persistqueue.SQLiteAckQueue(folder, auto_commit=True)
    queue._conn.execute("pragma synchronous=full")
    queue._putter.execute("pragma synchronous=full")
    assert queue._putter.execute("pragma synchronous").fetchone()[0] == 2
    put = queue.put
else:
    import litequeue
    queue = litequeue.LiteQueue(folder + "/lite.db")
    queue.conn.execute("pragma synchronous=full")
    assert queue.conn.execute("pragma synchronous").fetchone()[0] == 2
    put = lambda record: queue.put(json.dumps(record))
took = []
for _ in range(rows):
    started = time.perf_counter()
    put(record)
    took.append(time.perf_counter() - started)
print(json.dumps(took))
"""


def bare(path: Path) -> Callable[[], None]:
    """Return a function that commits one INSERT into a minimal table at FULL."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("pragma journal_mode = wal")
    connection.execute("pragma synchronous = full")
    connection.execute("create table t (id text primary key, payload text) without rowid")
    payload = json.dumps(RECORD)

    def put() -> None:
        connection.execute("insert into t values (?, ?)", (str(uuid.uuid4()), payload))

    return put


def timed(put: Callable[[], object], rows: int) -> list[float]:
    took = []
    for _ in range(rows):
        started = time.perf_counter()
        put()
        took.append(time.perf_counter() - started)
    return took


def line(name: str, took: list[float]) -> float:
    took = sorted(took)
    p50, p99 = took[len(took) // 2], took[len(took) * 99 // 100]
    rate = len(took) / sum(took)
    print(f"{name:34} p50 {p50 * 1e6:7.0f} us   p99 {p99 * 1e6:7.0f} us   {rate:8.0f} rows/s")
    return p50


def threads(box: Outbox, rows_each: int) -> float:
    def work() -> None:
        for _ in range(rows_each):
            box.append("conversation", RECORD)

    workers = [threading.Thread(target=work) for _ in range(THREADS)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return THREADS * rows_each / (time.perf_counter() - started)


SLOT = """
import json, sys, time
from replica_platform.outbox import file
from replica_platform.outbox.file import INSERT
from pathlib import Path
connection = file.create_or_open(Path(sys.argv[1]))
row = ("id", "conversation", sys.argv[3], b"x" * 32, 0.0)
print("ready", flush=True); sys.stdin.readline()
took = []
for _ in range(int(sys.argv[2])):
    started = time.perf_counter()
    connection.execute(INSERT, row)
    took.append(time.perf_counter() - started)
print(json.dumps(took))
"""


def processes(paths: list[Path], rows: int) -> list[float]:
    """Append from one process for each path, all at once; without slot locks, to share a file."""
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", SLOT, str(path), str(rows), json.dumps(RECORD)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for path in paths
    ]  # fmt: skip
    for one in writers:
        assert one.stdout is not None and one.stdout.readline() == "ready\n"
    for one in writers:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    return [took for one in writers for took in json.loads(one.communicate()[0])]


def import_ms() -> float:
    program = (
        "import time; s = time.perf_counter()\n"
        "from replica_platform.outbox import Outbox\n"
        "print((time.perf_counter() - s) * 1000)"
    )
    runs = [
        float(subprocess.check_output([sys.executable, "-c", program], text=True)) for _ in range(9)
    ]
    return statistics.median(runs)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--folder", default=None, help="where the files go")
    arguments.add_argument("--rows", type=int, default=3000)
    arguments.add_argument("--peers", default=sys.executable, help="a Python with the peers")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        print(f"import of Outbox, median of 9: {import_ms():.1f} ms")
        box = Outbox(folder / "outbox.db")
        put = bare(folder / "bare.db")
        append = lambda: box.append("conversation", RECORD)  # noqa: E731
        took: dict[str, list[float]] = {
            "bare": [],
            "append": [],
            "persist-queue": [],
            "litequeue": [],
        }
        timed(put, 200), timed(append, 200)
        missing = {}
        for turn in range(max(1, given.rows // TURN_ROWS)):
            took["bare"] += timed(put, TURN_ROWS)
            took["append"] += timed(append, TURN_ROWS)
            for peer in ("persist-queue", "litequeue"):
                if turn % 5 or peer in missing:
                    continue
                (folder / peer).mkdir(exist_ok=True)
                answer = subprocess.run(
                    [given.peers, "-c", PEERS, peer, str(folder / peer), str(TURN_ROWS * 5),
                     json.dumps(RECORD)],
                    capture_output=True, text=True,
                )  # fmt: skip
                if answer.returncode:
                    missing[peer] = (answer.stderr.strip().splitlines() or ["?"])[-1]
                else:
                    took[peer] += json.loads(answer.stdout)
        p50_bare = line("bare INSERT + commit", took["bare"])
        p50 = line("Outbox.append", took["append"])
        print(f"append's p50 is {p50 / p50_bare:.2f} times the bare one's (target: at most 1.15)")
        for peer in ("persist-queue", "litequeue"):
            if peer in missing:
                print(f"{peer:34} not measured: {missing[peer]} (pip install {peer}, --peers)")
            else:
                line(peer, took[peer])
        single = len(took["append"]) / sum(took["append"])
        together = statistics.median(threads(box, given.rows // 10) for _ in range(3))
        goal = min(12_000, 4 * single)
        print(
            f"{THREADS} threads: {together:.0f} rows/s, {together / single:.1f} times one thread's "
            f"{single:.0f} (target: {goal:.0f})"
        )
        started = time.perf_counter()
        box.append_many("conversation", [RECORD] * 10_000)
        print(f"append_many of 10,000: {10_000 / (time.perf_counter() - started):.0f} rows/s")
        box.close()
        for name, paths in (
            ("8 processes, one file", [folder / "shared.db"] * 8),
            ("8 processes, a file each", [folder / f"slot-{n}.db" for n in range(8)]),
        ):
            waits = sorted(processes(paths, 500))
            p50, p99 = waits[len(waits) // 2], waits[len(waits) * 99 // 100]
            print(
                f"{name:34} p50 {p50 * 1e6:7.0f} us   p99 {p99 * 1e6:7.0f} us   "
                f"worst {waits[-1] * 1e3:6.0f} ms"
            )


if __name__ == "__main__":
    main()
