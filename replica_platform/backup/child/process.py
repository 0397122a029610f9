"""The caller's side of the child process: start it, pass on its progress, return its answer.

The child is a program, not multiprocessing's spawn: spawn imports the caller's main module again
(Dagster's, or a script without a guard). It takes 0.06 s of processor to start.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from replica_platform.backup.child.messages import (
    Advance,
    Answers,
    BlockDigests,
    Copied,
    Failure,
    FileCheck,
    Message,
    RestoredCopy,
    Snapshot,
    decode,
)
from replica_platform.backup.errors import OF_THE_CHILD, ChildFailed
from replica_platform.core.reports import Progress

Expected = TypeVar("Expected", FileCheck, Snapshot, RestoredCopy, Answers, BlockDigests)
# The engine's package without its `__init__`, whose imports no child needs: they would take another
# 0.03 s. Python takes what is in `sys.modules` for imported.
STARTER = (
    "import sys, types; "
    "engine = types.ModuleType('replica_platform.backup'); "
    "engine.__path__ = [sys.argv.pop(1)]; "
    "sys.modules.setdefault('replica_platform.backup', engine); "
    "import replica_platform.backup.child.__main__"
)


def take_snapshot(
    source: Path,
    copy: Path,
    *,
    checkpoint: bool,
    is_kept: bool = True,
    with_md5: bool = False,
    when_copied: Callable[[], object] | None = None,
    progress: Progress | None = None,
) -> Snapshot:
    """Copy the live file `source` to `copy`, with everything in its WAL, and check the copy.

    Args:
        source: A database that a program may be writing to.
        copy: The file to make.
        checkpoint: Whether to shorten the source's WAL first.
        is_kept: Whether the copy stays: then it is made durable.
        with_md5: Compute MD5 too.
        when_copied: Called when the copy is complete; the child has begun to check it.
        progress: Called with the bytes copied plus the bytes checked.

    Raises:
        Unreadable: The source is not a database, or cannot be read.
        Busy: The source stayed locked.
        NoRoom: The disk of the copy is full.
        ChildFailed: The child ended without an answer.
    """
    return _run(
        Snapshot,
        "copy",
        progress,
        when_copied,
        source=str(source),
        copy=str(copy),
        checkpoint=checkpoint,
        is_kept=is_kept,
        with_md5=with_md5,
    )


def check_file(
    file: Path,
    *,
    drop_cache: bool,
    make_durable: bool = False,
    progress: Progress | None = None,
) -> FileCheck:
    """Hash a quiet file, check its integrity, count its tables; change nothing.

    Args:
        file: A database that no program writes to.
        drop_cache: Read from the disk, not from the kernel's page cache.
        make_durable: Bring the file to the disk meanwhile.
        progress: Called with the bytes that were read.

    Raises:
        Unreadable: The file is not a database, or cannot be read.
        ChildFailed: The child ended without an answer.
    """
    return _run(
        FileCheck,
        "check",
        progress,
        file=str(file),
        drop_cache=drop_cache,
        make_durable=make_durable,
    )


def make_restored_copy(
    backup: Path,
    copy: Path,
    *,
    previous: Path,
    sha256: str,
    journal_mode: str,
    progress: Progress | None = None,
) -> RestoredCopy:
    """Copy a verified backup to `copy` with its journal mode, and check the copy.

    Raises:
        Damaged: The backup changed since it was verified, or the copy is not sound.
        Unreadable: The backup cannot be read.
        NoRoom: The disk of the copy is full.
        ChildFailed: The child ended without an answer.
    """
    return _run(
        RestoredCopy,
        "restore",
        progress,
        backup=str(backup),
        copy=str(copy),
        previous=str(previous),
        sha256=sha256,
        journal_mode=journal_mode,
    )


def ask_queries(file: Path, queries: list[str]) -> Answers:
    """Ask a database that no program writes to some queries, each for one value.

    Raises:
        Unreadable: The file is not a database, or cannot be read.
        ChildFailed: The child ended without an answer.
    """
    return _run(Answers, "query", None, file=str(file), queries=queries)


def clone(previous: Path, copy: Path, size: int) -> list[str]:
    """Copy a file that no program writes to; return the digest of each block of `size` bytes.

    Raises:
        Unreadable: The file cannot be read.
        NoRoom: The disk of the copy is full.
        ChildFailed: The child ended without an answer.
    """
    cloned = _run(BlockDigests, "clone", None, previous=str(previous), copy=str(copy), size=size)
    return cloned.digests


def _run(
    expected: type[Expected],
    task: str,
    progress: Progress | None,
    when_copied: Callable[[], object] | None = None,
    **arguments: Any,
) -> Expected:
    """Run a task in a child and return its answer; raise the child's error here.

    The child ends by itself when this process dies: its standard input is then at its end.
    """
    last: Message | None = None
    with subprocess.Popen(
        command(task, **arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        text=True,
    ) as child:
        assert child.stdout and child.stderr and child.stdin
        try:
            for line in child.stdout:
                last = decode(line)
                if progress and isinstance(last, Advance):
                    progress(last.done, last.total, last.unit)
                if when_copied and isinstance(last, Copied):
                    when_copied()
            complaints = child.stderr.read()
        except BaseException:
            child.kill()
            raise
    if isinstance(last, Failure):
        raise OF_THE_CHILD[last.error](last.sentence)
    if not isinstance(last, expected):
        reason = complaints.strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
        raise ChildFailed(
            f"The process that should {task} the file ended without an answer ({reason[0]}); "
            "nothing was kept of it. Try again."
        )
    return last


def command(task: str, **arguments: Any) -> list[str]:
    """Return the command that runs a task in a child."""
    engine = str(Path(__file__).parent.parent)
    return [sys.executable, "-P", "-c", STARTER, engine, task, json.dumps(arguments)]


def environment() -> dict[str, str]:
    """Let the child find the same modules, wherever this process was started."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
