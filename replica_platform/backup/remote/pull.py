"""Pull a database from another host over SSH, and prove that the copy is equal.

`query` moves only the rows that differ from the copy of the last pull, `pages` the blocks that
differ, `scp` the file. All are safe while a program there writes. The copy is compared, by rows, by
blocks or by the file's SHA-256, and the target is the old file until that has passed.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from replica_platform.backup.child.messages import FileCheck
from replica_platform.backup.child.process import check_file
from replica_platform.backup.destination import (
    prepare,
    remove_empty_sidecars,
    replacing_database,
    require_idle,
    resolve,
)
from replica_platform.backup.errors import Damaged, NoRoom, translate_errors
from replica_platform.backup.remote.address import parse_address
from replica_platform.backup.remote.by_file import copy_file
from replica_platform.backup.remote.by_pages import copy_pages
from replica_platform.backup.remote.by_rows import copy_rows
from replica_platform.backup.remote.compare import Comparison
from replica_platform.backup.remote.connection import RemoteAgent, connect
from replica_platform.backup.remote.openssh import Login
from replica_platform.backup.remote.schema import read_schema
from replica_platform.core.disk_space import shortage
from replica_platform.core.errors import TerminalError
from replica_platform.core.reports import Progress, ReportFields, Unit

SPARE_BYTES = 1 << 20
# A new copy is private; a mode set later is kept.
NEW_MODE = 0o600

Method = Literal["query", "pages", "scp"]


@dataclass(frozen=True)
class Pulled(ReportFields):
    """What a pull found on the other host, and what it brought here.

    Attributes:
        url: The address that was pulled.
        file: The local copy; None when only information was asked for.
        method: `query`, `pages` or `scp`: how it was moved, which may differ from what was asked
            for.
        remote_bytes: Size of the remote file.
        remote_wal_bytes: Size of its WAL.
        remote_journal_mode: Its journal mode.
        remote_python: The version of python3 on the other host.
        remote_sqlite: The version of SQLite on the other host.
        tables: Rows of each remote table.
        newest: The newest value of each column that holds a time: `{"table.column": value}`.
        verified: Whether both sides are equal: by `query` rows, newest values and the digest of
            every range, by `pages` the digest of every block, by `scp` the SHA-256 of the file.
        ranges: How many ranges of keys, or blocks, were compared by their digests.
        rows_moved: Rows that were moved by `query`.
        bytes_moved: Bytes that were received.
        bytes: Size of the local copy.
        sha256: Hexadecimal digest of its bytes; None when only information was asked for.
        seconds: How long the pull took.
        sentence: What was pulled, or found.
    """

    url: str
    file: Path | None
    method: str
    remote_bytes: int
    remote_wal_bytes: int
    remote_journal_mode: str
    remote_python: str
    remote_sqlite: str
    tables: dict[str, int | None]
    newest: dict[str, str | int | float]
    verified: bool
    ranges: int
    rows_moved: int
    bytes_moved: int
    bytes: int
    sha256: str | None
    seconds: float
    sentence: str

    @property
    def ok(self) -> bool:
        """Whether the copy is verified, or none was asked for; a pull that fails raises."""
        return self.verified or self.file is None


@dataclass(frozen=True)
class _RemoteFile:
    """What the agent says of the file and of what reads it."""

    bytes: int
    wal_bytes: int
    journal_mode: str
    sqlite: str
    python: str


@dataclass(frozen=True)
class _Copy:
    """A copy that was put in place: what was compared, what its check found, how much moved."""

    method: Method
    comparison: Comparison
    check: FileCheck
    rows_moved: int = 0


def pull(
    url: str,
    to: Path,
    *,
    method: Method,
    known_hosts: Path | None = None,
    client_keys: Sequence[Path] | None = None,
    info_only: bool = False,
    progress: Progress | None = None,
) -> Pulled:
    """Make `to` equal to the database at `ssh://user@host:port/path.db`, verified.

    The other host needs an SSH server and python3 (3.7 or newer). When the pull fails, `to` is as
    it was. Owner and mode are those of the file that was there; behind a symbolic link, the file
    that it names is replaced.

    Args:
        url: The address; a path that begins with `/~/` is relative to the home folder.
        to: The local file to make or replace.
        method: `query` moves the rows that differ, `pages` the blocks that differ, `scp` the file.
            A file with virtual tables, or with a table without a key, is moved by `pages` instead
            of `query`; where there is no previous copy, or little of it is left, `pages` moves the
            file.
        known_hosts: The file of trusted host keys; ~/.ssh/known_hosts if left out.
        client_keys: Private keys; those of ~/.ssh and its agent if left out.
        info_only: Move nothing; say what is there.
        progress: Called with the rows moved by `query`, with the bytes moved otherwise.

    Returns:
        What is on the other host, and what was moved.

    Raises:
        HostUnknown: The host's key is not known.
        NotAllowed: The host refuses the login.
        Unreachable: The host cannot be reached, or the connection ended.
        Unreadable: The remote file cannot be read by this method, or the previous owner cannot
            be kept.
        Damaged: The copy is not equal to the remote database, or not sound.
        NoRoom: The local disk has no space for the copy.
        Busy: A program here has the target open to write, or `query` found no space for a copy on
            the other host and no moment without a commit.
        Unsaved: A WAL or journal beside the target holds changes.
        TerminalError: The address or the method is wrong, or python3 or asyncssh is missing.
    """
    began = time.perf_counter()
    target, address = resolve(to), parse_address(url)
    if method not in ("query", "pages", "scp"):
        raise TerminalError(f"There is no method {method!r}; choose query, pages or scp.")
    copied = None
    with (
        translate_errors("pull", target, target),
        connect(address, known_hosts, client_keys) as agent,
    ):
        remote = _RemoteFile(**agent.ask("describe_file"))
        if info_only:
            tables, newest = agent.ask("count_tables")
            comparison = Comparison(tables, newest, ranges=0, differing=[])
        else:
            login = Login(address, known_hosts, client_keys)
            copied = _replace(target, agent, login, remote, method, progress or _no_progress)
            comparison, method = copied.comparison, copied.method
    seconds = round(time.perf_counter() - began, 4)
    rows = sum(count or 0 for count in comparison.tables.values())
    contents = f"{len(comparison.tables)} tables, {rows:,} rows"
    proof = {
        "query": f"{comparison.ranges} ranges compared",
        "pages": f"{comparison.ranges:,} blocks compared",
        "scp": "SHA-256 is equal",
    }[method]
    return Pulled(
        url=str(address),
        file=target if copied else None,
        method=method,
        remote_bytes=remote.bytes,
        remote_wal_bytes=remote.wal_bytes,
        remote_journal_mode=remote.journal_mode,
        remote_python=remote.python,
        remote_sqlite=remote.sqlite,
        tables=comparison.tables,
        newest=comparison.newest,
        verified=copied is not None,
        ranges=comparison.ranges,
        rows_moved=copied.rows_moved if copied else 0,
        bytes_moved=agent.bytes_received,
        bytes=copied.check.bytes if copied else 0,
        sha256=copied.check.sha256 if copied else None,
        seconds=seconds,
        sentence=(
            f"{target} is the same as {address}: {contents}, {proof}; "
            f"{agent.bytes_received:,} bytes moved in {seconds:.1f} s."
            if copied
            else f"{address} holds {contents} in {remote.bytes:,} bytes."
        ),
    )


def _replace(
    target: Path,
    agent: RemoteAgent,
    login: Login,
    remote: _RemoteFile,
    method: Method,
    progress: Progress,
) -> _Copy:
    """Copy the remote database under a temporary name, check it, put it in place of `target`."""
    prepare(target, allow_readers=True)
    _require_space(remote, target)
    with replacing_database(target, NEW_MODE) as copy:
        if method == "query" and not read_schema(agent).has_only_keyed_rows:
            method = "pages"
        if method == "query":
            copied = _copied_by_rows(agent, target, copy, progress)
        else:
            copied = _copied_by_bytes(agent, login, target, copy, method == "pages", progress)
        if not copied.check.is_sound:
            raise Damaged(
                f"The copy of {login.address} is not sound ({copied.check.integrity}); "
                f"{target} is as it was. Check the remote database."
            )
        require_idle(target, allow_readers=True)
        remove_empty_sidecars(target)
    return copied


def _copied_by_rows(agent: RemoteAgent, target: Path, copy: Path, progress: Progress) -> _Copy:
    comparison, rows_moved = copy_rows(agent, target, copy, progress)
    return _Copy("query", comparison, _checked(copy), rows_moved)


def _copied_by_bytes(
    agent: RemoteAgent, login: Login, target: Path, copy: Path, by_pages: bool, progress: Progress
) -> _Copy:
    """Move the blocks that differ, if that is asked for and there are few; else the file."""
    snapshot = agent.ask("take_snapshot")
    blocks = copy_pages(agent, snapshot, target, copy, progress) if by_pages else None
    sha256 = None if blocks else copy_file(agent, login, snapshot, copy, progress)
    check = _checked(copy)
    if sha256 and check.sha256 != sha256:
        raise Damaged("The file changed on its way (SHA-256 differs); nothing was kept. Try again.")
    comparison = Comparison(check.tables, check.newest, blocks or 0, [])
    return _Copy("pages" if blocks else "scp", comparison, check)


def _checked(copy: Path) -> FileCheck:
    return check_file(copy, drop_cache=False, make_durable=True)


def _require_space(remote: _RemoteFile, target: Path) -> None:
    needed = remote.bytes + remote.wal_bytes + SPARE_BYTES
    if missing := shortage(target.parent, needed):
        raise NoRoom(f"Nothing was pulled: {missing}; make room there.")


def _no_progress(done: int, total: int, unit: Unit) -> None:
    pass
