"""`doctor`: checks of everything that the outbox's durability depends on.

Each check measures or reads the real state and answers in one sentence; nothing is changed here.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from replica_platform.core import postgres
from replica_platform.core.disk_space import free_bytes
from replica_platform.core.errors import PlatformError
from replica_platform.core.reports import format_bytes
from replica_platform.core.sqlite import WAL_RESET_FIXED_IN, sqlite3
from replica_platform.outbox import file
from replica_platform.outbox.delivery.failures import translate_errors
from replica_platform.outbox.errors import translate_errors as translate_sqlite_errors
from replica_platform.outbox.reports import Finding
from replica_platform.outbox.slots import (
    NETWORK_FILE_SYSTEMS,
    VOLATILE_FILE_SYSTEMS,
    file_system_of,
    outbox_files,
)

MIN_FREE_BYTES = 512 * 1024**2
SLOW_FSYNC_S = 0.02
CLOCK_SKEW_S = 2.0
FSYNCS = 20


def doctor(paths: Sequence[Path], target: str | None = None) -> list[Finding]:
    """Check the SQLite libraries, the folders and files of `paths`, and the target.

    Args:
        paths: Outbox files, or folders of `*.db`.
        target: The connection string of the target; it is not checked if left out.

    Returns:
        One finding for each check; what cannot be checked is a finding too.
    """
    files = outbox_files(paths)
    findings = [
        sqlite_version(sqlite3.sqlite_version_info),
        sqlite_libraries(loaded_libraries(), _open_here(files)),
    ]
    folders = sorted({path if path.is_dir() else path.parent for path in map(Path, paths)})
    for folder in folders:
        findings += _findings(f"folder {folder}", _folder, folder)
    for path in files:
        findings += _findings(f"outbox {path.name}", _file, path)
    if target is not None:
        findings += _findings("target", _target, target)
    return findings


def sqlite_version(version: tuple[int, ...]) -> Finding:
    """Check for the WAL-reset bug: before 3.51.3, two processes can corrupt a shared WAL file."""
    text = ".".join(map(str, version))
    if version >= WAL_RESET_FIXED_IN:
        return Finding("SQLite version", True, f"SQLite {text} has no WAL-reset bug.")
    return Finding(
        "SQLite version",
        False,
        f"SQLite {text} can corrupt a file that two processes share (the WAL-reset bug); "
        "install the pysqlite3 wheel.",
    )


def sqlite_libraries(loaded: set[str], open_here: Sequence[Path]) -> Finding:
    """Check for a second SQLite library: on one file, two drop each other's locks.

    `open_here` are the outboxes that this process has open.
    """
    name = "SQLite libraries"
    if len(loaded) < 2:
        return Finding(name, True, f"One SQLite library in this process: {', '.join(loaded)}.")
    several = f"{len(loaded)} SQLite libraries in this process ({', '.join(sorted(loaded))})"
    if not open_here:
        return Finding(name, True, f"{several}, and no outbox is open in it.")
    return Finding(
        name,
        False,
        f"{several}, and {open_here[0]} is open; "
        "open it through replica_platform.core.sqlite only.",
    )


def loaded_libraries(maps: Path = Path("/proc/self/maps")) -> set[str]:
    """Return the SQLite libraries in this process's memory; by its modules if no map exists."""
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


def _open_here(files: Sequence[Path]) -> list[Path]:
    """Return those of the files that this process has open."""
    try:
        descriptors = {os.path.realpath(entry) for entry in Path("/proc/self/fd").iterdir()}
    except OSError:
        return []
    return [path for path in files if os.path.realpath(path) in descriptors]


def _findings(name: str, check: Callable[[Any], Iterator[Finding]], subject: Any) -> list[Finding]:
    """Return what a check finds; an error becomes a finding too."""
    findings: list[Finding] = []
    try:
        findings.extend(check(subject))
    except (OSError, PlatformError) as error:
        findings.append(Finding(name, False, f"Cannot check it: {error}"))
    return findings


def _folder(folder: Path) -> Iterator[Finding]:
    yield file_system(folder, file_system_of(folder))
    yield disk_reserve(folder, free_bytes(folder))
    yield fsync_latency(folder, _fsync_s(folder))


def file_system(folder: Path, kind: str | None) -> Finding:
    """Check whether a commit on this file system survives a power cut."""
    name = f"file system of {folder}"
    if kind in NETWORK_FILE_SYSTEMS:
        return Finding(name, False, f"{kind} is a network file system; use a local disk.")
    if kind in VOLATILE_FILE_SYSTEMS:
        return Finding(name, False, f"{kind} is in memory and lost at a power cut; use a disk.")
    return Finding(name, True, f"It is {kind or 'of an unknown kind'}.")


def disk_reserve(folder: Path, free: int) -> Finding:
    """Check whether an outage's backlog has enough free disk, in bytes."""
    ok = free >= MIN_FREE_BYTES
    return Finding(
        f"disk reserve of {folder}",
        ok,
        f"{format_bytes(free)} are free"
        + ("." if ok else ", too little for an outage; free some or move the folder."),
    )


def fsync_latency(folder: Path, seconds: float) -> Finding:
    """Check how long an fsync takes, since each `append` waits for one."""
    ok = seconds <= SLOW_FSYNC_S
    return Finding(
        f"fsync latency of {folder}",
        ok,
        f"An fsync takes {seconds * 1000:.2f} ms (median of {FSYNCS})"
        + ("." if ok else "; each append waits for one, so use append_many or a faster disk."),
    )


def _fsync_s(folder: Path) -> float:
    # A separate file: opening the outbox itself here would drop SQLite's locks on it.
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
    with (
        closing(file.open_existing(path, read_only=True)) as local,
        translate_sqlite_errors(path, "check it"),
    ):
        (journal,) = local.execute("pragma journal_mode").fetchone()
        yield durability(path, journal, file.get_meta(local, "durability"))
        (answer,) = local.execute("pragma quick_check(1)").fetchone()
        yield Finding(f"structure of {path.name}", answer == "ok", f"quick_check says {answer}.")
        (newest,) = local.execute("select max(created_at) from record").fetchone()
        ahead_s = 0.0 if newest is None else newest - time.time()
        yield Finding(
            f"clock of {path.name}",
            ahead_s <= CLOCK_SKEW_S,
            "No record is from the future."
            if ahead_s <= CLOCK_SKEW_S
            else f"A record is {ahead_s:.0f} s in the future: a clock was set back; "
            "the order of records is right.",
        )


def durability(path: Path, journal: str, synchronous: str | None) -> Finding:
    """Check what the worker noted about its own connection when it opened the file last."""
    if synchronous is None:
        advice = ": unknown until its worker opens it with this version."
    elif synchronous != "full":
        advice = ": a power cut loses the last records; open it with durability='full'."
    else:
        advice = "."
    return Finding(
        f"durability of {path.name}",
        synchronous in ("full", None) and journal == "wal",
        f"journal_mode={journal}, the worker's synchronous={(synchronous or '?').upper()}{advice}",
    )


def _target(dsn: str) -> Iterator[Finding]:
    with (
        translate_errors(),
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
        durable = settings["fsync"] == settings["full_page_writes"] == "on"
        yield Finding(
            "target's fsync",
            durable,
            f"fsync={settings['fsync']}, full_page_writes={settings['full_page_writes']}"
            + ("." if durable else ": a power cut there loses or corrupts what was delivered."),
        )
        before = time.time()
        row = connection.execute("select extract(epoch from clock_timestamp())::float8").fetchone()
        middle = (before + time.time()) / 2
        yield clock_skew(0.0 if row is None else row[0] - middle)


def synchronous_commit(setting: str) -> Finding:
    """Check the default: with `off` a correct outbox lost 313 rows; a drain sets it to on."""
    ok = setting not in ("off", "local")
    return Finding(
        "target's synchronous_commit",
        ok,
        f"It is {setting}"
        + ("." if ok else "; a drain sets it to on for its session, other sessions may lose rows."),
    )


def clock_skew(seconds: float) -> Finding:
    """Check the clocks, on which ages and freshness depend; the order of rows does not."""
    ok = abs(seconds) <= CLOCK_SKEW_S
    return Finding(
        "clock skew",
        ok,
        f"The target's clock differs by {seconds:+.3f} s"
        + ("." if ok else "; set both by NTP, or ages are wrong (the order is right)."),
    )
