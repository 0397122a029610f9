"""What an error of Postgres means for the rows: wait, stop, or look for the bad row.

The classes are data, by SQLSTATE; the longest prefix wins. What to do about each belongs to
`draining` and `isolating`.
"""

from dataclasses import dataclass
from enum import StrEnum

import psycopg

from replica_platform.core import postgres
from replica_platform.core.errors import TransientError


class FailureClass(StrEnum):
    """What is done about an error."""

    TRANSIENT = "transient"  # rows untouched, again after a while
    SYSTEMIC = "systemic"  # rows untouched, stop and say so: a person or a deployment mends it
    ROW = "row"  # some row is bad: find it, set it aside, deliver the others


SQLSTATES: dict[str, FailureClass] = {
    "08": FailureClass.TRANSIENT,  # connection
    "25006": FailureClass.TRANSIENT,  # read-only: a failover is under way
    "40": FailureClass.TRANSIENT,  # serialisation, deadlock
    "53": FailureClass.TRANSIENT,  # out of connections, memory, disk
    "55": FailureClass.TRANSIENT,  # locked, not yet in the right state
    "57": FailureClass.TRANSIENT,  # cancelled, shut down, starting up
    "58": FailureClass.TRANSIENT,  # I/O
    "21": FailureClass.ROW,  # the same row twice in one command
    "22": FailureClass.ROW,  # data
    "23": FailureClass.ROW,  # constraint
    "44": FailureClass.ROW,  # WITH CHECK OPTION
    "54": FailureClass.ROW,  # too deep, too long, too many
    "P0001": FailureClass.ROW,  # a trigger's RAISE EXCEPTION, about the row it saw
    "": FailureClass.SYSTEMIC,  # 28, 3D, 3F, 42, 0A, XX and all others: nobody knows, so stop
}

# A refused login has no SQLSTATE on the client's side, only words; in another language it is
# taken for transient, which leaves the rows alone as well.
REFUSED_LOGIN = {
    "password authentication failed": "28P01",
    "no pg_hba.conf entry": "28000",
    'role "': "28000",
    'database "': "3D000",
}


@dataclass(frozen=True)
class Failure:
    """An error, judged."""

    kind: FailureClass
    sqlstate: str | None
    sentence: str


def classify(error: BaseException) -> Failure:
    """Judge an error; what nobody knows is systemic, so that no row is blamed for it."""
    sentence = " ".join(str(error).split()) or type(error).__name__
    sqlstate = getattr(error, "sqlstate", None)
    if isinstance(error, postgres.CannotConnect):
        sqlstate = next((code for words, code in REFUSED_LOGIN.items() if words in sentence), None)
    if sqlstate is not None:
        length = next(n for n in range(len(sqlstate), -1, -1) if sqlstate[:n] in SQLSTATES)
        return Failure(SQLSTATES[sqlstate[:length]], sqlstate, sentence)
    if isinstance(error, psycopg.DataError):  # found by the client: a NUL in a text
        return Failure(FailureClass.ROW, None, sentence)
    if isinstance(error, (TransientError, psycopg.OperationalError, psycopg.InterfaceError)):
        return Failure(FailureClass.TRANSIENT, None, sentence)
    return Failure(FailureClass.SYSTEMIC, None, sentence)
