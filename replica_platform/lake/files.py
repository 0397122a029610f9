"""The Parquet files at the place of a lake's data, whatever the catalog says."""

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import duckdb

from replica_platform.lake import extensions
from replica_platform.lake.definition import Lake, bucket_options
from replica_platform.lake.session import literal, make_secret, translated


def parquet_files(lake: Lake) -> dict[str, datetime]:
    """Return when each Parquet file below the place of the data was written, by its path.

    Raises:
        LakeUnavailable: The bucket does not answer.
    """
    if not lake.in_bucket:
        return dict(_local(Path(lake.data)))
    with duckdb.connect() as connection, translated(lake):
        extensions.load(connection, extensions.BUCKET)
        make_secret(connection, "bucket", "s3", bucket_options())
        pattern = literal(f"{lake.data}**/*.parquet")
        # Their content is not asked for, so that only the list is read.
        rows = connection.execute(
            f"select filename, epoch(last_modified) from read_blob({pattern})"
        ).fetchall()
    return {path: datetime.fromtimestamp(at, UTC) for path, at in rows}


def _local(folder: Path) -> Iterator[tuple[str, datetime]]:
    for path in folder.rglob("*.parquet"):
        # Maintenance may remove it meanwhile.
        with suppress(FileNotFoundError):
            yield str(path), datetime.fromtimestamp(path.stat().st_mtime, UTC)
