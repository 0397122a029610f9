"""Every pillar's health in one sentence each: what `replica status` shows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from replica_platform import replica
from replica_platform.app.settings import Settings
from replica_platform.backup import status as backup_status
from replica_platform.core.errors import PlatformError
from replica_platform.outbox import backlog, reconcile
from replica_platform.xmin import standings

SYNC_BUDGET_S = 24 * 3600
BACKUP_BUDGET_S = 26 * 3600


@dataclass(frozen=True)
class Health:
    """A pillar, whether all is well with it, a sentence that says what is or is not, and figures.

    Names of `facts` end in `_bytes` and `_s` where they are sizes and ages.
    """

    pillar: str
    ok: bool
    sentence: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def platform_health(settings: Settings) -> list[Health]:
    """The health of each pillar; one that cannot be asked is red, with the reason."""
    questions = {
        "replica": _replica,
        "warehouse": _warehouse,
        "outbox": _outbox,
        "backups": _backups,
    }
    return [_ask(pillar, question, settings) for pillar, question in questions.items()]


Answer = tuple[bool, str, Mapping[str, Any]]


def _ask(pillar: str, question: Callable[[Settings], Answer], settings: Settings) -> Health:
    try:
        return Health(pillar, *question(settings))
    except PlatformError as error:
        return Health(pillar, False, str(error))


def _replica(settings: Settings) -> Answer:
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


def _warehouse(settings: Settings) -> Answer:
    tables = standings(settings.target)
    facts = {"tables": [table.target_table for table in tables]}
    if not tables:
        return False, "No table was synced yet; run `make run`.", facts
    gone = [table.target_table for table in tables if not table.there]
    if gone:
        names = ", ".join(gone)
        return False, f"{names} is gone from the target; run `make run` to copy it again.", facts
    oldest = max(tables, key=lambda table: table.age_s)
    if oldest.age_s > SYNC_BUDGET_S:
        sentence = (
            f"{oldest.target_table} was synced {oldest.age_s / 3600:.0f} hours ago; "
            "see whether the schedules run (`make dev`), or run `make run`."
        )
        return False, sentence, facts
    return True, f"{len(tables)} tables are synced, the last one {oldest.age_s:.0f} s ago.", facts


def _outbox(settings: Settings) -> Answer:
    paths = sorted(settings.outbox_dir.glob("*.db"))
    if not paths:
        sentence = (
            f"There is no outbox in {settings.outbox_dir}; bring the worker's file back "
            "(`replica restore` from a backup), or run `make run` for the sample's."
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


def _backups(settings: Settings) -> Answer:
    found = backup_status(settings.backup_dir)
    facts = {"count": found.count, "total_bytes": found.bytes, "newest_age_s": found.newest_age_s}
    if found.newest_age_s is not None and found.newest_age_s > BACKUP_BUDGET_S:
        return False, f"{found.sentence} See whether the schedules run (`make dev`).", facts
    return found.ok, found.sentence, facts
