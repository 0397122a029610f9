"""DuckDB's extensions for a lake: loaded from installed wheels, never from the network."""

import importlib.util
from collections.abc import Iterable
from pathlib import Path

import duckdb

from replica_platform.lake.errors import ExtensionsMissing

# The extensions of every lake, and the one of a lake in a bucket.
CATALOG = ("ducklake", "postgres_scanner")
BUCKET = ("httpfs",)


def load(connection: duckdb.DuckDBPyConnection, names: Iterable[str]) -> None:
    """Load extensions into the DuckDB instance of a connection.

    Args:
        connection: Any connection of the instance.
        names: The extensions' names.

    Raises:
        ExtensionsMissing: A wheel is not installed, or is for another version of DuckDB.
    """
    for name in names:
        path = str(extension_file(name)).replace("'", "''")
        connection.execute(f"load '{path}'")


def extension_file(name: str) -> Path:
    """Return the file of an extension in its wheel.

    Raises:
        ExtensionsMissing: The wheel is not installed, or is for another version of DuckDB.
    """
    package = f"duckdb-extension-{name.replace('_', '-')}"
    found = importlib.util.find_spec(f"duckdb_extension_{name}")
    if found is None or found.origin is None:
        raise ExtensionsMissing(
            f"A lake needs DuckDB's extension {name}; install replica-platform[lake], or "
            f"{package}=={duckdb.__version__}."
        )
    folder = Path(found.origin).parent / "extensions"
    file = folder / f"v{duckdb.__version__}" / f"{name}.duckdb_extension"
    if not file.is_file():
        there = ", ".join(sorted(path.name for path in folder.glob("v*"))) or "no version"
        raise ExtensionsMissing(
            f"The installed {package} is for DuckDB {there}, and DuckDB is {duckdb.__version__}; "
            f"install {package}=={duckdb.__version__}."
        )
    return file
