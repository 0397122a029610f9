"""The method `scp`: copy the bytes of a snapshot on the other host, and its digest."""

from contextlib import closing
from pathlib import Path
from typing import TypedDict

from replica_platform.backup.remote.connection import RemoteAgent
from replica_platform.backup.remote.openssh import Login, start_transfer
from replica_platform.core.reports import Progress

# Requests from time to time keep the agent's connection alive beside the transfer.
REQUEST_EVERY_S = 5.0


class Snapshot(TypedDict):
    """A snapshot on the other host: its size and its path there."""

    bytes: int
    path: str


def copy_file(
    agent: RemoteAgent, login: Login, snapshot: Snapshot, copy: Path, progress: Progress
) -> str:
    """Copy a snapshot of the remote database to `copy`; return the snapshot's SHA-256.

    The caller compares it with that of the copy, which its check computes anyway.
    """
    size = snapshot["bytes"]
    digest: str | None = None
    if transfer := start_transfer(login, snapshot["path"], copy, size):
        with closing(transfer):
            digest = agent.ask("digest_snapshot")  # while the bytes move
            while not transfer.wait(REQUEST_EVERY_S, progress):
                agent.ask("describe_file")
            if transfer.has_arrived:
                progress(size, size, "bytes")
                agent.count_received(size)
                return digest
    _receive(agent, copy, size, progress)
    return digest or str(agent.ask("digest_snapshot"))


def _receive(agent: RemoteAgent, copy: Path, size: int, progress: Progress) -> None:
    """Let the agent send the bytes."""
    done = 0
    with copy.open("wb") as file:

        def write(block: bytes) -> None:
            nonlocal done
            file.write(block)
            done += len(block)
            progress(done, size, "bytes")

        agent.receive("send_snapshot", size, write)
