"""A writer whose appends are interrupted by a signal handler that raises; it then kills itself.

Arguments: FILE ACKNOWLEDGED CALL MOMENTS SEED ORDER. CALL is `append`, `append_many` or `group`
(threads append beside the interrupted one). ACKNOWLEDGED gets each id after its append returned.
ORDER `begin-first` is the negative control: the transaction as it was opened before, outside of
the `try`; it ends as soon as one is left open. Prints how many calls were interrupted.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import Outbox
from replica_platform.outbox.group import INSERT, ROWS_PER_STATEMENT

# Holds the lock for short times, so that many signals arrive during a wait for it.
HOLDER = """
import os, random, sys, time
from replica_platform.core.sqlite import sqlite3
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
parent = os.getppid()
print("ready", flush=True)
while os.getppid() == parent:
    connection.execute("begin immediate")
    time.sleep(random.uniform(0, 0.004))
    connection.execute("rollback")
    time.sleep(random.uniform(0, 0.016))
"""


class Stop(Exception):
    """What the signal handler raises, as Celery's soft time limit does."""


def stop(*_: object) -> None:
    raise Stop


def begin_first(box: Outbox) -> None:
    """Make `box` open its transactions outside of the `try`, and trust each statement."""
    connection = box._connection
    assert connection is not None
    connection.execute("pragma busy_timeout = 10000")

    def write(rows: Sequence[tuple[Any, ...]], *_: object) -> None:
        if len(rows) <= ROWS_PER_STATEMENT:
            values = [value for row in rows for value in row]
            connection.execute(INSERT + ", (?, ?, ?, ?, ?)" * (len(rows) - 1), values)
            return
        connection.execute("begin immediate")
        try:
            connection.executemany(INSERT, rows)
            connection.execute("commit")
        except BaseException:
            if connection.in_transaction:
                connection.execute("rollback")
            raise

    box._write = write  # type: ignore[method-assign, assignment]


def main() -> None:
    path, acknowledged, call, moments, seed, order = sys.argv[1:]
    log = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    # Written data survives a kill -9, so NORMAL is enough and allows more interruptions.
    box = Outbox(path, durability="normal")
    box.append("note", {"n": 0})
    connection = box._connection
    assert connection is not None
    # After an interruption the next append must succeed; only the control may refuse some.
    tolerated = (sqlite3.Error,) if order else ()
    if order == "begin-first":
        begin_first(box)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"ready\n"
    ended = threading.Event()
    chance = random.Random(int(seed))

    def note(ids: list[str]) -> None:
        os.write(log, "".join(f"{id}\n" for id in ids).encode())

    def append() -> None:
        note([box.append("note", {"n": 1})])

    def append_many(rows: int) -> None:
        note(box.append_many("note", [{"n": n} for n in range(rows)]))

    def beside() -> None:
        while not ended.is_set():
            with suppress(*tolerated):
                append_many(40)
            time.sleep(0.002)

    calls: dict[str, Callable[[], None]] = {
        "append": append,
        "append_many": lambda: append_many(ROWS_PER_STATEMENT + 1),
        "group": lambda: append_many(chance.choice((1, 40, ROWS_PER_STATEMENT + 1))),
    }
    others = [threading.Thread(target=beside) for _ in range(3 if call == "group" else 0)]
    for other in others:
        other.start()
    signal.signal(signal.SIGALRM, stop)
    interrupted = 0
    for _ in range(int(moments)):
        try:
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, 4e-3))
            while True:
                with suppress(*tolerated):
                    calls[call]()
        except Stop:
            interrupted += 1
        # The worker continues with more tasks, whose records are acknowledged.
        with suppress(*tolerated):
            append()
        if order:
            with box._write_lock:
                if connection.in_transaction:
                    break
    for _ in range(20):
        with suppress(*tolerated):
            append()
    ended.set()
    for other in others:
        other.join()
    holder.kill()
    holder.wait()
    print(interrupted, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
