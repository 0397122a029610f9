"""A drain to be killed: watches a folder until SIGTERM. Arguments: FOLDER DSN."""

import signal
import sys
import threading
from pathlib import Path

from replica_platform.outbox import watch


def main() -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    watch(
        [Path(sys.argv[1])],
        sys.argv[2],
        stop=stop,
        interval_s=0.5,
        look_s=0.02,
        deadline_s=2.0,
        batch_rows=200,
        force=True,
    )


if __name__ == "__main__":
    main()
