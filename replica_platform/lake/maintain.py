"""The upkeep of a lake: small files merged, old snapshots expired, files without a use removed."""

from dataclasses import dataclass
from typing import Any

import duckdb

from replica_platform.core.reports import ReportFields
from replica_platform.lake.catalog import Catalog
from replica_platform.lake.definition import NAME, Lake
from replica_platform.lake.errors import LakeConflict, LakeMissing, WrongLake
from replica_platform.lake.session import opened, translated
from replica_platform.lake.status import ORPHAN_AGE_S
from replica_platform.lake.write import LakeWriter

KEEP_S = 7 * 86_400
MERGE_ATTEMPTS = 5


@dataclass(frozen=True)
class Maintenance(ReportFields):
    """What was done.

    Attributes:
        lake: The schema of the lake's catalog.
        merged: How many files were merged.
        expired: How many snapshots were removed.
        removed: How many files of expired snapshots were removed.
        orphans: How many files that no snapshot names were removed.
        merge_error: Why files were not merged; empty where they were.
    """

    lake: str
    merged: int
    expired: int
    removed: int
    orphans: int
    merge_error: str = ""

    @property
    def ok(self) -> bool:
        """Whether everything was done."""
        return not self.merge_error

    @property
    def sentence(self) -> str:
        """What was done."""
        done = (
            f"Lake {self.lake}: {self.merged:,} files merged, {self.expired:,} snapshots expired, "
            f"{self.removed:,} of their files and {self.orphans:,} orphans removed."
        )
        return f"{done} Files were not merged: {self.merge_error}" if self.merge_error else done


def maintain(
    lake: Lake, *, keep_s: float = KEEP_S, orphan_age_s: float = ORPHAN_AGE_S
) -> Maintenance:
    """Merge small files, expire old snapshots and remove files that nothing needs.

    Args:
        lake: The lake.
        keep_s: The age in seconds to which snapshots are kept; the newest one always is.
        orphan_age_s: The age in seconds from which files are removed that no kept snapshot names.
            It has to exceed the longest write and the longest read: a younger file may be one of
            a write that is not committed yet.

    Returns:
        What was done.

    Raises:
        CannotConnect: The catalog's server does not answer.
        LakeMissing: There is no lake.
        LakeUnavailable: The catalog or the data does not answer.
        WrongLake: The data of another lake is in the same place.
    """
    with Catalog(lake) as catalog:
        if not catalog.exists():
            raise LakeMissing(
                f"There is no lake in the schema {lake.schema} of the catalog; correct its name."
            )
        _assert_data_apart(lake, catalog)
    merged, merge_error = 0, ""
    try:
        merged = _merge(lake)
    except LakeConflict as error:
        merge_error = str(error)
    with opened(lake, read_only=False) as connection, translated(lake):
        expired = _call(connection, "ducklake_expire_snapshots", _before(keep_s))
        removed = _call(connection, "ducklake_cleanup_old_files", _before(orphan_age_s))
        orphans = _call(connection, "ducklake_delete_orphaned_files", _before(orphan_age_s))
    return Maintenance(lake.schema, merged, len(expired), len(removed), len(orphans), merge_error)


def _merge(lake: Lake) -> int:
    """Merge small files, and rewrite those of which most rows are deleted; return how many."""
    merged = 0

    def work(connection: duckdb.DuckDBPyConnection) -> None:
        nonlocal merged
        rows = _call(connection, "ducklake_merge_adjacent_files")
        merged = sum(row[2] for row in rows)

    def rewrite(connection: duckdb.DuckDBPyConnection) -> None:
        _call(connection, "ducklake_rewrite_data_files")

    with LakeWriter(lake) as writer:
        writer.write(rewrite, attempts=MERGE_ATTEMPTS)
        writer.write(work, attempts=MERGE_ATTEMPTS)
    return merged


def _before(age_s: float) -> str:
    return f", older_than => now() - to_microseconds({round(age_s * 1e6)})"


def _call(connection: duckdb.DuckDBPyConnection, function: str, options: str = "") -> list[Any]:
    return connection.execute(f"call {function}('{NAME}'{options})").fetchall()


def _assert_data_apart(lake: Lake, catalog: Catalog) -> None:
    """Refuse a lake whose data has another lake's in it: its files would count as orphans."""
    own = catalog.data_path()
    for schema, other in catalog.others_data().items():
        if other.startswith(own) or own.startswith(other):
            raise WrongLake(
                f"The lakes {lake.schema} and {schema} both have their data in {own}, so that one "
                "would remove the other's files; give one of them a place of its own."
            )
