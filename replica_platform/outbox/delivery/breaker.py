"""The breaker of a file: after a failure, when to try again, kept in the file itself.

A drain is a process of minutes; what it learnt must outlive it. Each failure in a row makes
the wait longer, with full jitter so that a hundred nodes do not come back at once; a systemic
failure is said once.
"""

import json
import random
import time
from dataclasses import asdict, dataclass
from typing import Literal

from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import file
from replica_platform.outbox.delivery.failures import Failure, FailureClass

FIRST_WAIT_S = 0.5
# Below the schedule's five minutes: a breaker must never swallow a scheduled drain.
LONGEST_WAIT_S = 60.0


@dataclass(frozen=True)
class Breaker:
    """`closed`: drain; `waiting`: after transient failures; `stopped`: somebody must mend it."""

    state: Literal["closed", "waiting", "stopped"] = "closed"
    failures: int = 0  # in a row
    open_until: float = 0.0  # seconds since 1970
    since: float = 0.0
    sqlstate: str | None = None
    why: str | None = None

    def wait_s(self, now: float | None = None) -> float:
        """How long a drain should still keep away; never longer than it may, whatever the clock."""
        left = self.open_until - (time.time() if now is None else now)
        return left if 0 < left <= LONGEST_WAIT_S else 0.0

    def after(self, failure: Failure) -> "Breaker":
        """The breaker once `failure` has happened."""
        now = time.time()
        failures = self.failures + 1
        longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(failures, 20))
        return Breaker(
            state="waiting" if failure.kind is FailureClass.TRANSIENT else "stopped",
            failures=failures,
            open_until=now + random.uniform(0, longest),
            since=self.since or now,
            sqlstate=failure.sqlstate,
            why=failure.sentence,
        )

    def is_news(self, before: "Breaker") -> bool:
        """Whether this is worth an alert: a stop that was not said yet."""
        said = (before.state, before.sqlstate)
        return self.state == "stopped" and said != (self.state, self.sqlstate)


def read(connection: sqlite3.Connection) -> Breaker:
    """The breaker as it stands in the file."""
    kept = file.get_meta(connection, "breaker")
    return Breaker() if kept is None else Breaker(**json.loads(kept))


def keep(connection: sqlite3.Connection, breaker: Breaker) -> None:
    """Put the breaker into the file."""
    with file.writing(connection):
        file.set_meta(connection, "breaker", json.dumps(asdict(breaker)))
