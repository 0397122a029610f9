"""The circuit breaker of a file: when to try again after failures, stored in the file itself.

A drain lasts minutes at most, so the state must outlive its process. Each failure in a row makes
the wait longer, with full jitter, so that a hundred nodes do not return at once. A failure that
needs a person is reported once.
"""

import json
import random
import time
from dataclasses import asdict, dataclass, fields
from typing import Literal

from replica_platform.core.errors import PlatformError, TransientError
from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import file

FIRST_WAIT_S = 0.5
# Below the schedule's five minutes, so that no scheduled drain is skipped.
LONGEST_WAIT_S = 60.0


@dataclass(frozen=True)
class Breaker:
    """The state of a file's deliveries.

    Attributes:
        state: "closed" to drain, "waiting" after transient failures, "stopped" after a failure
            that a person must fix.
        failures: How many drains failed in a row.
        open_until: When to try again, in seconds since 1970.
        since: When the first of these failures happened, in seconds since 1970.
        sqlstate: Postgres's code of the last failure.
        why: The last failure.
    """

    state: Literal["closed", "waiting", "stopped"] = "closed"
    failures: int = 0
    open_until: float = 0.0
    since: float = 0.0
    sqlstate: str | None = None
    why: str | None = None

    def wait_s(self, now: float | None = None) -> float:
        """Return the seconds to wait before the next drain, at most `LONGEST_WAIT_S`.

        A longer wait comes from a clock that was set back, and is ignored.
        """
        left = self.open_until - (time.time() if now is None else now)
        return left if 0 < left <= LONGEST_WAIT_S else 0.0

    def after(self, error: PlatformError) -> "Breaker":
        """Return the breaker after a drain that failed with `error`."""
        now = time.time()
        failures = self.failures + 1
        longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(failures, 20))
        return Breaker(
            state="waiting" if isinstance(error, TransientError) else "stopped",
            failures=failures,
            open_until=now + random.uniform(0, longest),
            since=self.since or now,
            sqlstate=getattr(error, "sqlstate", None),
            why=str(error),
        )

    def is_news(self, before: "Breaker") -> bool:
        """Return whether this is a stop that was not reported yet."""
        reported = (before.state, before.sqlstate)
        return self.state == "stopped" and reported != (self.state, self.sqlstate)


def read(connection: sqlite3.Connection) -> Breaker:
    """Return the breaker stored in the file; a closed one if it cannot be read.

    Keys of another version are ignored. A drain that does not wait is harmless, one that never
    runs is not.
    """
    try:
        stored = json.loads(file.get_meta(connection, "breaker") or "{}")
    except ValueError:
        return Breaker()
    if not isinstance(stored, dict):
        return Breaker()
    known = {field.name for field in fields(Breaker)}
    return Breaker(**{name: value for name, value in stored.items() if name in known})


def store(connection: sqlite3.Connection, breaker: Breaker) -> None:
    """Store the breaker in the file."""
    with file.writing(connection):
        file.set_meta(connection, "breaker", json.dumps(asdict(breaker)))
