"""Bring a database of another machine home, over SSH, and prove that it is the same.

`query` moves rows, and only those that differ from the copy of last time; `scp` takes a snapshot
over there and moves the file. Both are safe while the program over there writes, both end in
the same verification, and the target is the old file until that has passed.
"""

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from replica_platform.backup.child.contents import Newest, count_tables, ranges
from replica_platform.backup.child.process import in_child
from replica_platform.backup.destination import clear_killed, must_be_idle, remove_empty_sidecars
from replica_platform.backup.errors import Busy, Damaged, NoRoom
from replica_platform.backup.remote.rows import (
    bounds_of,
    bring_level,
    drop_triggers,
    make_tables,
    make_the_rest,
    same_schema,
    set_marks,
)
from replica_platform.backup.remote.ssh import FarSide, far_side, parse
from replica_platform.core.errors import TerminalError
from replica_platform.core.files import replacing
from replica_platform.core.reports import Progress
from replica_platform.core.sqlite import sqlite3

# How often a file without WAL may change under our reading before we give up.
ROUNDS = 5
SPARE_BYTES = 1 << 20


@dataclass(frozen=True)
class Pulled:
    """What a pull saw over there, and what it brought home."""

    url: str
    file: Path | None
    """None when only information was asked for."""
    method: str
    far_bytes: int
    far_wal_bytes: int
    far_journal_mode: str
    far_python: str
    far_sqlite: str
    tables: dict[str, int | None]
    newest: dict[str, str | int | float]
    verified: bool
    """Rows of each table, newest values and every range's digest are the same on both sides."""
    ranges: int
    """How many ranges of keys were compared by their digests."""
    rows_moved: int
    bytes_moved: int
    bytes: int
    sha256: str | None
    seconds: float
    sentence: str

    @property
    def ok(self) -> bool:
        """Verified, or nothing was asked to be brought; a pull that is not whole raises."""
        return self.verified or self.file is None

    def as_dict(self) -> dict[str, Any]:
        """The same in plain JSON types."""
        return {**asdict(self), "file": str(self.file) if self.file else None}


@dataclass
class _Proof:
    """What the verification compared, while both sides held still."""

    tables: dict[str, int | None]
    newest: Newest
    ranges: int
    differing: list[str]


def pull(
    url: str,
    to: Path,
    *,
    method: Literal["query", "scp"],
    known_hosts: Path | None = None,
    client_keys: Sequence[Path] | None = None,
    info_only: bool = False,
    progress: Progress | None = None,
) -> Pulled:
    """Make `to` the same as the database at `ssh://user@host:port/path.db`, verified.

    Over there nothing but `python3` is needed. `known_hosts` and `client_keys` are those of
    ~/.ssh when left out; an unknown host is refused. `progress` is told (rows, rows in all)
    by `query` and (bytes, bytes in all) by `scp`. With `info_only` nothing is brought.

    Raises `HostUnknown`, `NotAllowed`, `Unreachable`, `Unreadable`, `NoRoom`, `Busy`,
    `Unsaved` or `Damaged`; then `to` is as it was.
    """
    began = time.perf_counter()
    to = to.absolute()
    where = parse(url)
    if method not in ("query", "scp"):
        raise TerminalError(f"There is no method {method!r}; choose query or scp.")
    tell = progress or (lambda done, total, unit: None)
    with far_side(where, known_hosts, client_keys) as far:
        info = far.ask("info")
        if info_only:
            tables, newest = far.ask("count")
            proof, facts, moved = _Proof(tables, newest, 0, []), None, 0
        else:
            to.parent.mkdir(parents=True, exist_ok=True)
            clear_killed(to)
            must_be_idle(to, readers=True)
            _must_fit(info, to)
            with replacing(to, _mode(to)) as part:
                bring = _by_query if method == "query" else _by_scp
                proof, moved = bring(far, info, to, part, tell)
                facts = in_child("examine", file=str(part), drop_cache=False)
                if facts["integrity"] != "ok":
                    raise Damaged(
                        f"What came from {where} is not sound ({facts['integrity']}); "
                        f"{to} is as it was. Check the database over there."
                    )
                must_be_idle(to, readers=True)
                remove_empty_sidecars(to)
    seconds = round(time.perf_counter() - began, 4)
    rows = sum(count or 0 for count in proof.tables.values())
    what = f"{len(proof.tables)} tables, {rows:,} rows"
    return Pulled(
        url=str(where),
        file=to if facts else None,
        method=method,
        far_bytes=info["bytes"],
        far_wal_bytes=info["wal_bytes"],
        far_journal_mode=info["journal_mode"],
        far_python=info["python"],
        far_sqlite=info["sqlite"],
        tables=proof.tables,
        newest=proof.newest,
        verified=facts is not None,
        ranges=proof.ranges,
        rows_moved=moved,
        bytes_moved=far.bytes_received,
        bytes=facts["bytes"] if facts else 0,
        sha256=facts["sha256"] if facts else None,
        seconds=seconds,
        sentence=(
            f"{to} is the same as {where}: {what}, {proof.ranges} ranges compared; "
            f"{far.bytes_received:,} bytes moved in {seconds:.1f} s."
            if facts
            else f"{where} holds {what} in {info['bytes']:,} bytes."
        ),
    )


def _by_scp(
    far: FarSide, info: dict[str, Any], to: Path, part: Path, tell: Progress
) -> tuple[_Proof, int]:
    """A snapshot taken and hashed over there, the file brought, hashed here, compared."""
    taken = far.ask("snapshot")
    digest, done = hashlib.sha256(), 0
    far.ask("send")
    with part.open("wb") as file:

        def write(block: bytes) -> None:
            nonlocal done
            file.write(block)
            digest.update(block)
            done += len(block)
            tell(done, taken["bytes"], "bytes")

        far.receive(taken["bytes"], write)
    if digest.hexdigest() != taken["sha256"]:
        raise Damaged("The file changed on its way (SHA-256 differs); nothing was kept. Try again.")
    with closing(sqlite3.connect(part)) as db:
        proof = _compare(far, db, far.ask("schema"))
    _must_agree(proof)
    return proof, 0


def _by_query(
    far: FarSide, info: dict[str, Any], to: Path, part: Path, tell: Progress
) -> tuple[_Proof, int]:
    """Rows twice: the bulk in short reads, then what changed meanwhile, in one moment.

    The moment is one read transaction over there; it keeps the WAL from being reset, so it
    is kept short: only what changed during the bulk is moved in it.
    """
    moved, total = 0, sum(count or 0 for count in far.ask("count")[0].values())

    def count(rows: int) -> None:
        nonlocal moved
        moved += rows
        tell(min(moved, total), total, "bytes")

    schema = far.ask("schema")
    with _local_copy(to, part, schema) as db:
        for table in schema["tables"]:
            bring_level(db, far, table, count)
        for _ in range(ROUNDS):
            with _moment(far, info["journal_mode"]) as still:
                if far.ask("schema") != schema:
                    raise Busy("The tables over there were changed during the pull; try again.")
                proof = _compare(far, db, schema)
                if proof.differing:
                    for table in schema["tables"]:
                        bring_level(db, far, table, count)
                    proof = _compare(far, db, schema)
                if still():
                    _must_agree(proof)
                    break
        else:
            raise Busy(
                "The database over there is not in WAL mode and changes faster than it can be "
                "read; use --method scp."
            )
        make_the_rest(db, schema)
    tell(total, total, "bytes")
    return proof, moved


@contextmanager
def _local_copy(to: Path, part: Path, schema: dict[str, Any]) -> Iterator[sqlite3.Connection]:
    """The copy of last time under a temporary name, or a new one, in one transaction."""
    if to.exists():
        in_child("snapshot", source=str(to.resolve()), to=str(part), checkpoint=True)
        with closing(sqlite3.connect(part)) as db:
            fits = same_schema(db, schema)
        if not fits:
            part.unlink()
    with closing(sqlite3.connect(part, isolation_level=None)) as db:
        # The file is thrown away when anything fails, so it needs no journal.
        for setting in ("journal_mode=off", "synchronous=off", "ignore_check_constraints=on"):
            db.execute(f"pragma {setting}")
        if not db.execute("select count(*) from sqlite_master").fetchone()[0]:
            make_tables(db, schema)
        set_marks(db, schema)
        db.execute("begin")
        drop_triggers(db)
        yield db
        db.execute("commit")
        db.execute("pragma journal_mode=delete")


@contextmanager
def _moment(far: FarSide, journal_mode: str) -> Iterator[Callable[[], bool]]:
    """One state of the other side to read from; yields a function that tells whether it was.

    In WAL mode a read transaction holds it and nobody waits. Without WAL that would lock the
    writer out, so there every read is short and a commit in between is noticed.
    """
    if journal_mode == "wal":
        far.ask("begin")
        yield lambda: True
        far.ask("end")
    else:
        before = far.ask("version")
        yield lambda: bool(far.ask("version") == before)


def _compare(far: FarSide, db: sqlite3.Connection, schema: dict[str, Any]) -> _Proof:
    """Rows of each table, newest values, and the digest of every range, here and there."""
    here, there = list(count_tables(db)), far.ask("count")
    compared, differing = 0, [] if here == there else ["rows or newest values"]
    for table in schema["tables"]:
        bounds = bounds_of(db, table)
        if ranges(db, table, bounds) != far.ask("ranges", table=table, bounds=bounds):
            differing.append(f"the rows of {table['name']}")
        compared += len(bounds) + 1
    return _Proof(there[0], there[1], compared, differing)


def _must_agree(proof: _Proof) -> None:
    if proof.differing:
        raise Damaged(
            f"What came is not what is over there: {', '.join(proof.differing)} differ; "
            "nothing was kept. Try again, or by the other method."
        )


def _must_fit(info: dict[str, Any], to: Path) -> None:
    needed = info["bytes"] + info["wal_bytes"] + SPARE_BYTES
    free = shutil.disk_usage(to.parent).free
    if free < needed:
        raise NoRoom(
            f"The copy needs {needed:,} bytes and {to.parent} has {free:,} free; make room there."
        )


def _mode(to: Path) -> int:
    # What comes from elsewhere is nobody else's, unless somebody has decided otherwise.
    return to.stat().st_mode & 0o664 if to.exists() else 0o600
