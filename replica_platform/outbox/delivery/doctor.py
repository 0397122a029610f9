"""`doctor`: what would make an outbox break its promise, looked at one by one.

Each check measures or asks the real thing and answers in one sentence; nothing is mended here.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg

from replica_platform.core import postgres
from replica_platform.core.errors import PlatformError
from replica_platform.core.sqlite import WAL_RESET_FIXED_IN, sqlite3
from replica_platform.outbox import file
from replica_platform.outbox.reports import Finding
from replica_platform.outbox.slots import (
    NETWORK_FILE_SYSTEMS,
    VOLATILE_FILE_SYSTEMS,
    file_system_of,
    outbox_files,
)

RESERVE_BYTES = 512 * 1024**2
SLOW_FSYNC_S = 0.02
CLOCK_SKEW_S = 2.0
FSYNCS = 20


def doctor(paths: Sequence[Path], target: str | None = None) -> list[Finding]:
    """Look at the libraries, at each folder and file of `paths`, and at the target where given."""
    files = outbox_files(paths)
    findings = [
        sqlite_version(sqlite3.sqlite_version_info),
        sqlite_libraries(loaded_libraries(), _held(files)),
    ]
    folders = sorted({path if path.is_dir() else path.parent for path in map(Path, paths)})
    for folder in folders:
        findings += _look(f"folder {folder}", _folder, folder)
    for path in files:
        findings += _look(f"outbox {path.name}", _file, path)
    if target is not None:
        findings += _look("target", _target, target)
    return findings


def sqlite_version(version: tuple[int, ...]) -> Finding:
    """Before 3.51.3 two processes on one WAL file can corrupt it."""
    said = ".".join(map(str, version))
    if version >= WAL_RESET_FIXED_IN:
        return Finding("SQLite version", True, f"SQLite {said} has no WAL-reset bug.")
    return Finding(
        "SQLite version",
        False,
        f"SQLite {said} can corrupt a file that two processes share (the WAL-reset bug); "
        "install the pysqlite3 wheel.",
    )


def sqlite_libraries(loaded: set[str], held: Sequence[Path]) -> Finding:
    """Two SQLite libraries on one file in one process drop each other's locks.

    `held` are the outboxes that this very process has open.
    """
    name = "SQLite libraries"
    if len(loaded) < 2:
        return Finding(name, True, f"One SQLite library in this process: {', '.join(loaded)}.")
    said = f"{len(loaded)} SQLite libraries in this process ({', '.join(sorted(loaded))})"
    if not held:
        return Finding(name, True, f"{said}, and no outbox is open in it.")
    return Finding(
        name,
        False,
        f"{said} and {held[0]} open; make sure that replica_platform.core.sqlite alone opens it.",
    )


def loaded_libraries(maps: Path = Path("/proc/self/maps")) -> set[str]:
    """The SQLite libraries in this process's memory; by its modules where no map is kept."""
    try:
        mapped = set(maps.read_text().split())
    except OSError:
        return {name for name in ("sqlite3", "pysqlite3", "apsw") if name in sys.modules}
    libraries = {"pysqlite3/": "pysqlite3", "/apsw/": "apsw", "/libsqlite3.": "libsqlite3"}
    return {
        library
        for part, library in libraries.items()
        if any(part in name and ".so" in name for name in mapped)
    }


def _held(files: Sequence[Path]) -> list[Path]:
    try:
        open_here = {os.path.realpath(entry) for entry in Path("/proc/self/fd").iterdir()}
    except OSError:
        return []
    return [path for path in files if os.path.realpath(path) in open_here]


def _look(name: str, check: Callable[[Any], Iterator[Finding]], subject: Any) -> list[Finding]:
    findings: list[Finding] = []
    try:
        findings.extend(check(subject))
    except (OSError, PlatformError, psycopg.Error) as error:
        said = " ".join(str(error).split())
        findings.append(Finding(name, False, f"Cannot look at it: {said}"))
    return findings


def _folder(folder: Path) -> Iterator[Finding]:
    yield file_system(folder, file_system_of(folder))
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    yield disk_reserve(folder, free)
    yield fsync_latency(folder, _fsync_s(folder))


def file_system(folder: Path, kind: str | None) -> Finding:
    """Whether a commit there survives a power cut."""
    name = f"file system of {folder}"
    if kind in NETWORK_FILE_SYSTEMS:
        return Finding(name, False, f"{kind} is a network file system; use a local disk.")
    if kind in VOLATILE_FILE_SYSTEMS:
        return Finding(name, False, f"{kind} lives in memory and is gone after a power cut.")
    return Finding(name, True, f"It is {kind or 'of a kind this system does not name'}.")


def disk_reserve(folder: Path, free_bytes: int) -> Finding:
    """Whether an outage's backlog finds room."""
    ok = free_bytes >= RESERVE_BYTES
    return Finding(
        f"disk reserve of {folder}",
        ok,
        f"{free_bytes / 1024**2:.0f} MB are free"
        + ("." if ok else ", too few for an outage; free some or move it."),
    )


def fsync_latency(folder: Path, seconds: float) -> Finding:
    """What each `append` must wait for."""
    ok = seconds <= SLOW_FSYNC_S
    return Finding(
        f"fsync latency of {folder}",
        ok,
        f"An fsync takes {seconds * 1000:.2f} ms (median of {FSYNCS})"
        + ("." if ok else "; each append waits for one, so use append_many or a faster disk."),
    )


def _fsync_s(folder: Path) -> float:
    # A file of its own: opening the outbox itself here would drop SQLite's locks on it.
    probe = folder / f".doctor-{os.getpid()}"
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        took = []
        for _ in range(FSYNCS):
            os.write(descriptor, b"x" * 4096)
            started = time.perf_counter()
            os.fsync(descriptor)
            took.append(time.perf_counter() - started)
    finally:
        os.close(descriptor)
        probe.unlink()
    return sorted(took)[FSYNCS // 2]


def _file(path: Path) -> Iterator[Finding]:
    with closing(file.open_existing(path)) as local, file.sentences(path, "look at it"):
        (synchronous,) = local.execute("pragma synchronous").fetchone()
        (journal,) = local.execute("pragma journal_mode").fetchone()
        yield Finding(
            f"durability of {path.name}",
            synchronous >= 2 and journal == "wal",
            f"journal_mode={journal}, synchronous={synchronous} (2 is FULL), read back.",
        )
        (answer,) = local.execute("pragma quick_check(1)").fetchone()
        yield Finding(f"structure of {path.name}", answer == "ok", f"quick_check says {answer}.")
        (ahead,) = local.execute("select max(created_at) from record").fetchone()
        late = 0.0 if ahead is None else ahead - time.time()
        yield Finding(
            f"clock of {path.name}",
            late <= CLOCK_SKEW_S,
            "No record is from the future."
            if late <= CLOCK_SKEW_S
            else f"A record is {late:.0f} s from the future: a clock was set back; order is kept.",
        )


def _target(dsn: str) -> Iterator[Finding]:
    with (
        closing(postgres.connect(dsn, autocommit=True)) as connection,
        postgres.deadline(connection, 10),
    ):
        settings: dict[str, str] = dict(
            connection.execute(
                "select name, setting from pg_settings where name = any(%s)",
                (["synchronous_commit", "fsync", "full_page_writes"],),
            ).fetchall()
        )
        yield synchronous_commit(settings["synchronous_commit"])
        kept = settings["fsync"] == settings["full_page_writes"] == "on"
        yield Finding(
            "target's fsync",
            kept,
            f"fsync={settings['fsync']}, full_page_writes={settings['full_page_writes']}"
            + ("." if kept else ": a power cut there loses or corrupts what was delivered."),
        )
        before = time.time()
        row = connection.execute("select extract(epoch from clock_timestamp())::float8").fetchone()
        middle = (before + time.time()) / 2
        yield clock_skew(0.0 if row is None else row[0] - middle)


def synchronous_commit(setting: str) -> Finding:
    """With `off` a perfect outbox lost 313 rows; the drain sets it on for itself."""
    ok = setting not in ("off", "local")
    return Finding(
        "target's synchronous_commit",
        ok,
        f"It is {setting}"
        + ("." if ok else "; the drain sets it on for its own session, others may lose rows."),
    )


def clock_skew(seconds: float) -> Finding:
    """Order never depends on a clock; ages and freshness do."""
    ok = abs(seconds) <= CLOCK_SKEW_S
    return Finding(
        "clock skew",
        ok,
        f"The target's clock is {seconds:+.3f} s from ours"
        + ("." if ok else "; set both by NTP, or ages will be wrong (order is not)."),
    )
