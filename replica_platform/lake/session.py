"""Connections of DuckDB to a lake: attached with secrets that no message shows, and its errors."""

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import duckdb
from psycopg.conninfo import make_conninfo

from replica_platform.core.postgres import CONNECT_TIMEOUT_S
from replica_platform.lake import extensions
from replica_platform.lake.definition import NAME, Lake, bucket_options
from replica_platform.lake.errors import LakeMissing, LakeUnavailable, SnapshotGone, WrongLake

# The parameters of a connection that DuckDB takes from a secret; the others are not secret.
IN_SECRET = ("host", "port", "user", "password", "dbname")


@contextmanager
def opened(
    lake: Lake, *, read_only: bool = True, at: int | None = None, make: bool = False
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield a connection whose default database is the lake.

    Args:
        lake: The lake.
        read_only: Whether writing is refused.
        at: The snapshot to read; the newest of each transaction if left out.
        make: Whether the lake is made if there is none.

    Raises:
        ExtensionsMissing: The wheels of the extensions are not installed.
        LakeMissing: There is no lake.
        LakeUnavailable: The catalog or the data does not answer.
        SnapshotGone: There is no such snapshot.
        WrongLake: The lake's data is elsewhere.
    """
    connection = duckdb.connect(
        config={"autoload_known_extensions": False, "autoinstall_known_extensions": False}
    )
    try:
        connection.execute("set enable_progress_bar = false")
        attach(connection, lake, NAME, read_only=read_only, at=at, make=make)
        connection.execute(f"use {NAME}")
        yield connection
    except duckdb.Error as error:
        raise unmasked(error, lake) from None
    finally:
        connection.close()


def attach(
    connection: duckdb.DuckDBPyConnection,
    lake: Lake,
    name: str,
    *,
    read_only: bool = True,
    at: int | None = None,
    make: bool = False,
) -> None:
    """Attach a lake to the DuckDB instance of a connection.

    Args:
        connection: A connection without a transaction.
        lake: The lake.
        name: The name of the attached database.
        read_only: Whether writing is refused.
        at: The snapshot to read; the newest of each transaction if left out.
        make: Whether the lake is made if there is none.

    Raises:
        PlatformError: As for `opened`.
    """
    extensions.load(connection, extensions.CATALOG + (extensions.BUCKET if lake.in_bucket else ()))
    unique = secrets.token_hex(4)
    given = lake.parameters
    login = {name: given[name] for name in IN_SECRET if name in given}
    rest = {name: value for name, value in given.items() if name not in IN_SECRET}
    rest.setdefault("connect_timeout", str(CONNECT_TIMEOUT_S))
    rest.setdefault("application_name", "replica_platform")
    options = [f"create_if_not_exists {str(make).lower()}"]
    if read_only:
        options.append("read_only")
    else:
        # Rows in the catalog would be one more place where rows can be.
        options.append("data_inlining_row_limit 0")
    if at is not None:
        options.append(f"snapshot_version {int(at)}")
    with translated(lake, at):
        make_secret(connection, f"catalog_{unique}", "postgres", login)
        if lake.in_bucket:
            make_secret(
                connection, f"bucket_{unique}", "s3", {**bucket_options(), "scope": lake.data}
            )
        connection.execute(
            f"create temporary secret lake_{unique} (type ducklake, "
            f"metadata_path {literal(make_conninfo('', **rest))}, "
            f"data_path {literal(lake.data)}, metadata_schema {literal(lake.schema)}, "
            f"metadata_parameters map {{'TYPE': 'postgres', 'SECRET': 'catalog_{unique}'}})"
        )
        connection.execute(
            f"attach 'ducklake:lake_{unique}' as {identifier(name)} "
            f"(data_path {literal(lake.data)}, {', '.join(options)})"
        )


def make_secret(
    connection: duckdb.DuckDBPyConnection, name: str, kind: str, values: dict[str, str]
) -> None:
    """Make a secret for the life of the connection's instance."""
    options = "".join(f", {key} {literal(value)}" for key, value in values.items())
    connection.execute(f"create temporary secret {name} (type {kind}{options})")


def literal(text: str) -> str:
    """Return a text as a literal of DuckDB's SQL."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """Return a name as a quoted identifier of DuckDB's SQL."""
    return '"' + name.replace('"', '""') + '"'


@contextmanager
def translated(lake: Lake, at: int | None = None) -> Iterator[None]:
    """Turn DuckDB's errors about attaching or reading a lake into the lake's, without secrets.

    Raises:
        PlatformError: LakeMissing, LakeUnavailable, SnapshotGone or WrongLake.
    """
    try:
        yield
    except duckdb.Error as error:
        text = lake.masked(" ".join(str(error).split())).rstrip(".")
        if "creating a new DuckLake is explicitly disabled" in text:
            raise LakeMissing(
                f"There is no lake in the schema {lake.schema} of the catalog yet; its first "
                "write makes it (`LakeWriter`), or correct the name."
            ) from None
        if "No snapshot found" in text:
            raise SnapshotGone(
                f"The lake {lake.schema} has no snapshot {at}; it expired or never existed, "
                "`replica lake status` tells how many there are."
            ) from None
        if "does not match existing data path" in text:
            place = re.search(r'in the catalog "([^"]*)"', text)
            raise WrongLake(
                f"The lake {lake.schema} has its data in {place[1] if place else 'another place'}, "
                f"not in {lake.data}; give that place as its data, or make another lake in another "
                "schema."
            ) from None
        raise LakeUnavailable(
            f"The lake {lake.schema} cannot be used: {text}. Check the catalog's server and the "
            f"place of the data, {lake.data}."
        ) from None


def unmasked(error: duckdb.Error, lake: Lake) -> duckdb.Error:
    """Return an error of DuckDB's of the same class, without the secrets of the lake."""
    text = lake.masked(str(error))
    return error if text == str(error) else type(error)(text)
