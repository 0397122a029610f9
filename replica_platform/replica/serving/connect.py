"""A DuckDB connection to the current generation, for connection pools."""

import weakref
from pathlib import Path
from typing import Any

import duckdb

from replica_platform.replica.errors import ReplicaUnavailable
from replica_platform.replica.serving.swap import GenerationServer
from replica_platform.replica.store.layout import Layout


def connect(
    store: Path | str, *, config: dict[str, Any] | None = None
) -> duckdb.DuckDBPyConnection:
    """Return a new read-only connection to the current generation.

    The connection stays on that generation, which is leased until the connection is deleted: let
    the pool ask for a new one.

    Args:
        store: The store's folder.
        config: Settings of DuckDB, such as `memory_limit`.

    Returns:
        The connection; tables have the names that they have in the master.

    Raises:
        ReplicaUnavailable: No generation can be read.
    """
    server = GenerationServer(Layout(store), config or {})
    attached = server.begin_query()
    if attached is None:
        raise ReplicaUnavailable(
            f"No generation in {server.layout.root} can be read "
            f"({server.error or 'nothing is published yet'}); publish again."
        )
    # As the main database, so that its cursors find the tables too.
    path = server.layout.data(attached.manifest)
    connection = duckdb.connect(str(path), read_only=True, config=config or {})
    attached.instance.close()
    weakref.finalize(connection, attached.lease.release)
    return connection
