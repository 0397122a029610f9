"""The health of each pillar in one sentence: what `replica status` shows.

The engines judge what they know of (`status`, `backlog`, `stats`); the ages that a platform allows
are judged here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from replica_platform import replica
from replica_platform.app.settings import Settings
from replica_platform.backup import status as backup_status
from replica_platform.core.errors import PlatformError
from replica_platform.core.reports import ReportFields, format_age
from replica_platform.outbox import backlog, reconcile
from replica_platform.xmin import Standing, standings

SYNC_BUDGET_S = 24 * 3600
BACKUP_BUDGET_S = 26 * 3600


@dataclass(frozen=True)
class Health(ReportFields):
    """The health of a pillar.

    Attributes:
        pillar: The name of the pillar.
        ok: Whether all is well.
        sentence: What is well, or what is wrong and what to do next.
        facts: Figures by name; a name ends in `_bytes` for a size and in `_age_s` for an age.
    """

    pillar: str
    ok: bool
    sentence: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def platform_health(settings: Settings) -> list[Health]:
    """Return the health of each pillar; an error of an engine is reported as its health.

    Args:
        settings: The settings of the platform; its databases should run.

    Returns:
        One report for each pillar, in the order of the README.
    """
    pillars = {
        "replica": _replica,
        "warehouse": _warehouse,
        "outbox": _outbox,
        "backups": _backups,
    }
    return [_health(pillar, inspect, settings) for pillar, inspect in pillars.items()]


Inspection = tuple[bool, str, Mapping[str, Any]]


def _health(pillar: str, inspect: Callable[[Settings], Inspection], settings: Settings) -> Health:
    try:
        return Health(pillar, *inspect(settings))
    except PlatformError as error:
        return Health(pillar, False, str(error))


def _replica(settings: Settings) -> Inspection:
    found = replica.status(settings.store, settings.master)
    facts = {
        "master_bytes": found.master_bytes,
        "replica_bytes": found.replica_bytes,
        "generation": found.generation,
        "kept": list(found.kept),
        "in_sync": found.in_sync,
        "data_age_s": found.data_age_s,
        "publication_age_s": found.publication_age_s,
        "readers": [f"{one.pid} on {one.generation}" for one in found.readers],
    }
    return found.ok, found.sentence, facts


def _warehouse(settings: Settings) -> Inspection:
    tables = standings(settings.target)
    ok, sentence = _judge_tables(tables)
    return ok, sentence, {"tables": [table.target_table for table in tables]}


def _judge_tables(tables: Sequence[Standing]) -> tuple[bool, str]:
    if not tables:
        return False, "No table was synced yet; run `make run`."
    missing = ", ".join(table.target_table for table in tables if not table.there)
    if missing:
        return False, f"{missing} is gone from the target; run `make run` to copy it again."
    oldest = max(tables, key=lambda table: table.age_s)
    ago = f"{format_age(oldest.age_s)} ago"
    if oldest.age_s > SYNC_BUDGET_S:
        return False, (
            f"{oldest.target_table} was synced {ago}; "
            "see whether the schedules run (`make dev`), or run `make run`."
        )
    return True, f"{len(tables)} tables are synced; the least recent sync was {ago}."


def _outbox(settings: Settings) -> Inspection:
    if not any(settings.outbox_dir.glob("*.db")):
        sentence = (
            f"There is no outbox in {settings.outbox_dir}; bring the worker's file back "
            "(`replica restore-backup`), or run `make run` for the sample's."
        )
        return False, sentence, {}
    waiting = backlog([settings.outbox_dir])
    facts = {
        "pending": waiting.pending,
        "oldest_pending_age_s": waiting.oldest_pending_age_s,
        "dead": waiting.dead,
        "file_bytes": waiting.file_bytes,
    }
    if not waiting.ok:
        return False, waiting.sentence, facts
    delivered = reconcile([settings.outbox_dir], settings.target)
    return delivered.ok, f"{waiting.sentence} {delivered.sentence}", facts


def _backups(settings: Settings) -> Inspection:
    found = backup_status(settings.backup_dir)
    facts = {"count": found.count, "total_bytes": found.bytes, "newest_age_s": found.newest_age_s}
    if found.newest_age_s is not None and found.newest_age_s > BACKUP_BUDGET_S:
        return False, f"{found.sentence} See whether the schedules run (`make dev`).", facts
    return found.ok, found.sentence, facts
