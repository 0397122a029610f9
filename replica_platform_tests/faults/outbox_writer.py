"""A worker to be killed: appends until it ends, and logs each id after its append.

Arguments: FILE ACKNOWLEDGED PAUSE_S. Each line of ACKNOWLEDGED is an id and its content, written
only after `append` returned. SIGTERM ends it after the record in hand.
"""

import json
import os
import signal
import sys
import time
import uuid

from replica_platform.outbox import Outbox


def main() -> None:
    path, acknowledged, pause_s = sys.argv[1], sys.argv[2], float(sys.argv[3])
    log = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    name = uuid.uuid4().hex  # process ids repeat in a long run
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    with Outbox(path) as box:
        n = 0
        while not stopping:
            n += 1
            records = [{"n": n, "part": part, "by": name} for part in range(n % 3 + 1)]
            ids = [str(uuid.uuid4()) for _ in records]
            if len(records) == 1:
                box.append("conversation", records[0], id=ids[0])
            else:
                box.append_many("conversation", records, ids=ids)
            os.write(
                log,
                b"".join(
                    f"{id} {json.dumps(record, sort_keys=True)}\n".encode()
                    for id, record in zip(ids, records, strict=True)
                ),
            )
            time.sleep(pause_s)


if __name__ == "__main__":
    main()
