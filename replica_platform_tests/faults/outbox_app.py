"""Web applications that answer a request once its record is saved; several servers run them.

Settings: OUTBOX_DIR; OUTBOX_HOW: `preloaded` opens one outbox before the server forks, `claimed`
one in each process, and `later`, the naive way for comparison, answers before it saves.
"""

import os
import threading
import time
import uuid
from collections import deque
from functools import cache
from pathlib import Path
from typing import Any

from replica_platform.outbox import Outbox

FOLDER, HOW = Path(os.environ["OUTBOX_DIR"]), os.environ["OUTBOX_HOW"]
PRELOADED = Outbox(FOLDER / "shared.db") if HOW == "preloaded" else None
RECORD = {"question": "q" * 200}
waiting: deque[str] = deque()


@cache
def outbox() -> Outbox:
    """Return the outbox of this process."""
    if HOW == "later":
        threading.Thread(target=save_later, daemon=True).start()
    return PRELOADED or Outbox.claim(FOLDER)


def save_later() -> None:
    """Save what was answered already, a few times a second."""
    while True:
        time.sleep(0.3)
        while waiting:
            outbox().append("request", RECORD, id=waiting.popleft())


def wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Save a record and answer with its id."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    if HOW == "later":
        waiting.append(str(uuid.uuid4()))
        outbox()
        return [waiting[-1].encode()]
    return [outbox().append("request", RECORD).encode()]


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Do the same without holding up the event loop."""
    await receive()
    if HOW == "later":
        waiting.append(saved := str(uuid.uuid4()))
        outbox()
    else:
        saved = await outbox().aappend("request", RECORD)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": saved.encode()})
