"""The ledger: one row of the target proves which batches of a file it has.

Each batch's digest is chained to the one before, chain_n = SHA-256(chain_{n-1} || batch_n), in the
batch's own transaction. The file notes the chain of each batch whose rows it still has. A target
that was restored to a point in time has an earlier chain, which the file knows: what was
delivered after it is lost. Reading and advancing the chain and comparing it with the file belong
here; what follows from it does not (see `reconcile`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import file, queue
from replica_platform.outbox.delivery.target import begin
from replica_platform.outbox.file import Row
from replica_platform.outbox.queue import LedgerEntry, batch_digest

HEADS = """
select file_uuid::text, number, chain, previous, last_seq, landed,
    extract(epoch from moved_at)::float8
from outbox.chain where file_uuid = any(%s::uuid[])
"""

START = """
insert into outbox.chain (file_uuid, number, chain, previous, last_seq, landed)
values (%s, %s, %s, %s, %s, %s) on conflict (file_uuid) do nothing
"""

# The lock lets a second drain of the file wait, until it sees the head that the first one leaves.
HOLD = "select number, chain from outbox.chain where file_uuid = %s for update"

ADVANCE = """
update outbox.chain set number = number + 1, previous = chain, chain = sha256(chain || %(digest)s),
    last_seq = greatest(last_seq, %(last)s), landed = landed + %(landed)s, moved_at = now()
where file_uuid = %(file_uuid)s
returning number, chain, extract(epoch from now())::float8
"""

# The former ledger had a row for each batch. It is read once for each file, and then emptied.
FORMER = """
select number, digest from outbox.batch where file_uuid = %s order by number desc limit 2
"""
FORMER_TOTALS = """
select max(last_seq), sum(landed)::int8, extract(epoch from max(landed_at))::float8
from outbox.batch where file_uuid = %s
"""
FORMER_PAGE = """
select number, digest from outbox.batch where file_uuid = %s and number between %s and %s
"""
FORGET_FORMER = """
delete from outbox.batch where file_uuid = %s
and number <= (select min(number) + %s from outbox.batch where file_uuid = %s)
"""
BATCHES_PER_PAGE = 20_000


class HeadMoved(Exception):
    """The target's chain is not where the file last saw it; compare again before delivering."""

    def __init__(self, uuid: str) -> None:
        super().__init__(
            f"The target's ledger of file {uuid} changes during each attempt; find what else "
            "writes to outbox.chain."
        )


@dataclass(frozen=True)
class Head:
    """The target's ledger row of a file.

    Attributes:
        number: How many batches were delivered.
        chain: The digest of all of them.
        previous: The digest of all but the last.
        last_seq: The highest `seq` among them.
        landed: How many rows were new.
        landed_at: When the last was delivered, by the target's clock, in seconds since 1970.
        is_former: Whether the target has only the former ledger's rows.
    """

    number: int = 0
    chain: bytes = b""
    previous: bytes = b""
    last_seq: int = 0
    landed: int = 0
    landed_at: float = 0.0
    is_former: bool = False


@dataclass(frozen=True)
class Comparison:
    """What the target proves of the batches that a file notes as delivered.

    Attributes:
        file_uuid: The identity under which they were delivered.
        head: The target's ledger row.
        known: The last batch of the file that the target has; those above it are lost.
        unnoted: Whether the target has one batch more, which a crash kept the file from noting.
        is_other: Whether the target's chain has another history than the file.
    """

    file_uuid: str
    head: Head
    known: int
    unnoted: bool = False
    is_other: bool = False


def heads(connection: psycopg.Connection, uuids: Sequence[str]) -> dict[str, Head]:
    """Return the ledger rows of these identities; of the former ledger where no other exists."""
    found = {
        uuid: Head(number, bytes(chain), bytes(previous), *rest)
        for uuid, number, chain, previous, *rest in connection.execute(HEADS, (list(uuids),))
    }
    if len(found) < len(uuids) and _has_former_ledger(connection):
        found |= {
            uuid: head
            for uuid in uuids
            if uuid not in found and (head := _former_head(connection, uuid)) is not None
        }
    return found


def _has_former_ledger(connection: psycopg.Connection) -> bool:
    return connection.execute("select to_regclass('outbox.batch')").fetchone() != (None,)


def _former_head(connection: psycopg.Connection, uuid: str) -> Head | None:
    """Return where the chain starts after the former ledger: at its last batch's own digest."""
    batches = connection.execute(FORMER, (uuid,)).fetchall()
    if not batches:
        return None
    number, digest = batches[0]
    previous = bytes(batches[1][1]) if len(batches) > 1 else b""
    totals = connection.execute(FORMER_TOTALS, (uuid,)).fetchone() or (0, 0, 0.0)
    last_seq, landed, landed_at = totals
    return Head(number, bytes(digest), previous, last_seq, landed, landed_at, is_former=True)


def compare(
    local: sqlite3.Connection, connection: psycopg.Connection, deadline_s: float
) -> list[Comparison]:
    """Compare the file with the target's ledger, for each identity of the file; change nothing."""
    uuids = file.identities(local)
    with begin(connection, deadline_s):
        there = heads(connection, uuids)
    return [
        _compare_identity(local, connection, uuid, there.get(uuid, Head()), deadline_s)
        for uuid in uuids
    ]


def _compare_identity(
    local: sqlite3.Connection,
    connection: psycopg.Connection,
    uuid: str,
    head: Head,
    deadline_s: float,
) -> Comparison:
    here = queue.last_entry(local, uuid)
    if head.is_former:
        known = _known_by_former(local, connection, uuid, deadline_s)
        return Comparison(uuid, head, known, unnoted=known == here.number < head.number)
    if queue.chain_at(local, uuid, head.number) == head.chain:
        return Comparison(uuid, head, head.number)
    if (head.number, head.previous) == (here.number + 1, here.chain):
        return Comparison(uuid, head, here.number, unnoted=True)
    return Comparison(uuid, head, 0, is_other=True)


def _known_by_former(
    local: sqlite3.Connection, connection: psycopg.Connection, uuid: str, deadline_s: float
) -> int:
    """Return the last batch up to which the former ledger has all batches of the file."""
    known = 0
    while page := queue.chains(local, uuid, known, BATCHES_PER_PAGE):
        with begin(connection, deadline_s):
            numbers = (uuid, page[0][0], page[-1][0])
            there = {n: bytes(digest) for n, digest in connection.execute(FORMER_PAGE, numbers)}
        for number, digest in page:
            if there.get(number) != digest:
                return known
            known = number
    return known


def start(connection: psycopg.Connection, uuid: str, head: Head, deadline_s: float) -> None:
    """Create the ledger row of an identity; take it over from the former ledger if there is one.

    The former rows are deleted page by page, as there may be millions.
    """
    with begin(connection, deadline_s):
        connection.execute(
            START, (uuid, head.number, head.chain, head.previous, head.last_seq, head.landed)
        )
    deleted = head.is_former
    while deleted:
        with begin(connection, deadline_s):
            page = (uuid, BATCHES_PER_PAGE, uuid)
            deleted = connection.execute(FORGET_FORMER, page).rowcount > 0


def hold(connection: psycopg.Connection, uuid: str, expected: LedgerEntry) -> None:
    """Lock the file's ledger row for the caller's transaction.

    Raises:
        HeadMoved: Another drain delivered, or the target was restored, since the file was read.
    """
    row = connection.execute(HOLD, (uuid,)).fetchone()
    if row is None or (row[0], bytes(row[1])) != (expected.number, expected.chain):
        raise HeadMoved(uuid)


def advance(
    connection: psycopg.Connection, uuid: str, rows: Sequence[Row], new: int
) -> LedgerEntry:
    """Chain a batch to the file's ledger row inside the caller's transaction.

    `new` is how many of the rows were new.
    """
    values = {
        "file_uuid": uuid,
        "digest": batch_digest(rows),
        "last": rows[-1].seq,
        "landed": new,
    }
    row = connection.execute(ADVANCE, values).fetchone()
    if row is None:
        raise HeadMoved(uuid)
    number, chain, landed_at = row
    return LedgerEntry(number, bytes(chain), landed_at)


def landed_by_former(connection: psycopg.Connection) -> dict[str, int]:
    """Return the rows delivered by files that the former ledger still lists."""
    if not _has_former_ledger(connection):
        return {}
    found = connection.execute(
        "select file_uuid::text, sum(landed)::int8 from outbox.batch group by file_uuid"
    )
    return dict(found.fetchall())
