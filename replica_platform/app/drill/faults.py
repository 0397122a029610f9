"""The damages of a drill: what is done, what notices it, and when it is healed."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import psycopg
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from psycopg import sql

from replica_platform import replica
from replica_platform.app.drill.sandbox import LOOKS_EVERY_S, Sandbox, append
from replica_platform.backup import backups, verify
from replica_platform.core.errors import PlatformError
from replica_platform.core.postgres import connect, one_row, one_value

Noticing = Callable[[dg.DagsterInstance, float], float | None]
_EVERY = f"every {LOOKS_EVERY_S} s"


@dataclass(frozen=True)
class Fault:
    """A damage.

    Attributes:
        name: What `replica drill` calls it.
        what: What is done, in a few words.
        noticed_by: The sensor, schedule or check that notices it, and how often it looks.
        damage: Does it.
        noticed_at: Returns when it was noticed, in seconds since 1970, after the given moment.
        is_whole: Whether everything is as before the damage, by reading all of it.
    """

    name: str
    what: str
    noticed_by: str
    damage: Callable[[Sandbox], None]
    noticed_at: Noticing
    is_whole: Callable[[Sandbox], bool]

    def is_healed(self, box: Sandbox) -> bool:
        """Whether everything is as before; what cannot be read now is not."""
        try:
            return self.is_whole(box)
        except (PlatformError, psycopg.Error, OSError):
            return False


def _requested_by(kind: str, name: str) -> Noticing:
    """Return when a sensor or schedule has requested its first run since a moment."""

    def noticed_at(instance: dg.DagsterInstance, since: float) -> float | None:
        runs = instance.get_run_records(
            dg.RunsFilter(
                tags={f"dagster/{kind}_name": name},
                created_after=datetime.fromtimestamp(since, UTC),
            )
        )
        return min((one.create_timestamp.timestamp() for one in runs), default=None)

    return noticed_at


def _red(asset: str, check: str) -> Noticing:
    """Return when a check was first red since a moment."""
    key = dg.AssetCheckKey(dg.AssetKey(asset), check)

    def noticed_at(instance: dg.DagsterInstance, since: float) -> float | None:
        found = instance.event_log_storage.get_asset_check_execution_history(key, limit=100)
        failed = AssetCheckExecutionRecordStatus.FAILED
        # A record is made when the check is planned, and its event when it was evaluated.
        moments = [one.event.timestamp for one in found if one.event and one.status is failed]
        return min((one for one in moments if one > since), default=None)

    return noticed_at


def _store(box: Sandbox, name: str) -> Path:
    return box.data / "replica" / name


def _delete_generation(box: Sandbox) -> None:
    (_store(box, "deleted") / "deleted.db").resolve().unlink()


def _corrupt_generation(box: Sandbox) -> None:
    _overwrite((_store(box, "corrupted") / "corrupted.db").resolve(), middle=b"damage" * 100)


def _truncate_backup(box: Sandbox) -> None:
    _overwrite(backups(box.data / "backups", "app")[0].file, middle=None)


def _overwrite(path: Path, middle: bytes | None) -> None:
    """Write something into the middle of a file, or cut it off there."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        if middle is None:
            file.truncate()
        else:
            file.write(middle)


def _delete_records(box: Sandbox) -> None:
    with connect(box.dsn("target")) as target:
        target.execute("delete from outbox.record where seq % 2 = 0")
    append(box, "orders", 1)  # workers go on


def _restore_target(box: Sandbox) -> None:
    """Put the earlier copy of the target in its place, once."""
    with connect(box.dsn("postgres"), autocommit=True) as admin:
        names = [sql.Identifier(name) for name in ("yesterday", "restored")]
        there = "select count(*) from pg_database where datname = 'yesterday'"
        if one_value(admin.execute(there)):
            admin.execute(sql.SQL("drop database {} with (force)").format(names[1]))
            admin.execute(sql.SQL("alter database {} rename to {}").format(*names))
    append(box, "visits", 1)  # workers go on


def _replica_is_whole(name: str) -> Callable[[Sandbox], bool]:
    def is_whole(box: Sandbox) -> bool:
        store = _store(box, name)
        found = replica.status(store, box.data / f"{name}.duckdb")
        return found.ok and replica.verify(store).ok

    return is_whole


def _records_are_whole(outbox: str, database: str) -> Callable[[Sandbox], bool]:
    def is_whole(box: Sandbox) -> bool:
        with connect(box.dsn(database)) as target:
            counts = target.execute("select count(*), count(distinct seq) from outbox.record")
            return one_row(counts) == (box.appended[outbox],) * 2

    return is_whole


def _table_is_whole(box: Sandbox) -> bool:
    rows = "select id, n from {} order by id"
    found = []
    for database, table in (("source", ("public", "item")), ("restored", ("shop", "item"))):
        with connect(box.dsn(database)) as connection:
            query = sql.SQL(rows).format(sql.Identifier(*table))
            found.append(connection.execute(query).fetchall())
    return found[0] == found[1]


def _backup_is_whole(box: Sandbox) -> bool:
    newest = backups(box.data / "backups", "app")[0]
    # A verification notes what it finds, which would be noticing by the drill itself.
    return newest.ok and verify(newest.file).ok


FAULTS = {
    one.name: one
    for one in (
        Fault(
            "replica-deleted",
            "the file of a replica's generation is deleted",
            f"deleted_repair ({_EVERY})",
            _delete_generation,
            _requested_by("sensor", "deleted_repair"),
            _replica_is_whole("deleted"),
        ),
        Fault(
            "replica-corrupted",
            "bytes of a replica's generation are overwritten",
            f"corrupted_repair ({_EVERY})",
            _corrupt_generation,
            _requested_by("sensor", "corrupted_repair"),
            _replica_is_whole("corrupted"),
        ),
        Fault(
            "records-deleted",
            "every second record is deleted from the target",
            "check nothing_is_missing (each delivery)",
            _delete_records,
            _red("orders", "nothing_is_missing"),
            _records_are_whole("orders", "target"),
        ),
        Fault(
            "records-restored",
            "the target of an outbox is restored from an earlier copy",
            f"visits_backlog ({_EVERY})",
            _restore_target,
            _requested_by("sensor", "visits_backlog"),
            _records_are_whole("visits", "restored"),
        ),
        Fault(
            "tables-restored",
            "the target of synced tables is restored from an earlier copy",
            "shop_sync (every minute)",
            _restore_target,
            _requested_by("schedule", "shop_sync"),
            _table_is_whole,
        ),
        Fault(
            "backup-truncated",
            "the newest backup of a SQLite file is cut in half",
            f"backups_repair ({_EVERY})",
            _truncate_backup,
            _requested_by("sensor", "backups_repair"),
            _backup_is_whole,
        ),
    )
}
