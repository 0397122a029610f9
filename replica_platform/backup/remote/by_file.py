"""The method `scp`: take a snapshot on the other host, copy its bytes, compare both sides."""

import hashlib
from contextlib import closing
from pathlib import Path

from replica_platform.backup.errors import Damaged
from replica_platform.backup.remote.compare import Comparison, compare
from replica_platform.backup.remote.connection import RemoteAgent
from replica_platform.backup.remote.schema import read_schema
from replica_platform.core.reports import Progress
from replica_platform.core.sqlite import sqlite3


def copy_file(agent: RemoteAgent, copy: Path, progress: Progress) -> Comparison:
    """Copy a snapshot of the remote database to `copy` and compare both.

    Raises:
        Damaged: The bytes changed on the way, or the sides differ.
    """
    snapshot = agent.ask("take_snapshot")
    digest, done = hashlib.sha256(), 0
    with copy.open("wb") as file:

        def write(block: bytes) -> None:
            nonlocal done
            file.write(block)
            digest.update(block)
            done += len(block)
            progress(done, snapshot["bytes"], "bytes")

        agent.receive("send_snapshot", snapshot["bytes"], write)
    if digest.hexdigest() != snapshot["sha256"]:
        raise Damaged("The file changed on its way (SHA-256 differs); nothing was kept. Try again.")
    with closing(sqlite3.connect(copy)) as db:
        comparison = compare(agent, db, read_schema(agent))
    comparison.require_equal()
    return comparison
