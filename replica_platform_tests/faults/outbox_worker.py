"""A worker with many tasks in flight, to be stopped.

Arguments: MODE FILE DSN LOG TASKS. Each task has a conversation and writes its id to LOG; with
MODE `outbox` it is saved first, with `direct` (the negative control) only sent to Postgres.
All then wait for a Postgres that does not answer.
"""

import os
import sys
import threading
import uuid

import psycopg

from replica_platform.outbox import Outbox


def main() -> None:
    mode, path, dsn, log_path, tasks = sys.argv[1:]
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    box = Outbox(path) if mode == "outbox" else None

    def task(number: int) -> None:
        id = str(uuid.uuid4())
        message = f"message {number}"
        if box is not None:
            box.append("conversation", {"id": id, "user_id": number, "message": message}, id=id)
        os.write(log, f"{id}\n".encode())
        with psycopg.connect(dsn) as connection:  # waits: the network is silent
            connection.execute("insert into conversations values (%s, %s)", (id, message))

    for number in range(int(tasks)):
        threading.Thread(target=task, args=(number,), daemon=True).start()
    threading.Event().wait()


if __name__ == "__main__":
    main()
