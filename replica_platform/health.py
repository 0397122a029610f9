"""Every pillar's health in one sentence each: what `replica status` shows."""

from collections.abc import Callable
from dataclasses import dataclass

from replica_platform import replica
from replica_platform.backup import stats
from replica_platform.errors import PlatformError
from replica_platform.outbox import backlog, reconcile
from replica_platform.settings import Settings
from replica_platform.xmin import standings

SYNC_BUDGET_S = 24 * 3600
BACKUP_BUDGET_S = 26 * 3600


@dataclass(frozen=True)
class Health:
    """A pillar, whether all is well with it, and a sentence that says what is or is not."""

    pillar: str
    ok: bool
    sentence: str


def platform_health(settings: Settings) -> list[Health]:
    """The health of each pillar; one that cannot be asked is red, with the reason."""
    questions = {
        "replica": _replica,
        "warehouse": _warehouse,
        "outbox": _outbox,
        "backups": _backups,
    }
    return [_ask(pillar, question, settings) for pillar, question in questions.items()]


def _ask(
    pillar: str, question: Callable[[Settings], tuple[bool, str]], settings: Settings
) -> Health:
    try:
        ok, sentence = question(settings)
    except PlatformError as error:
        ok, sentence = False, str(error)
    return Health(pillar, ok, sentence)


def _replica(settings: Settings) -> tuple[bool, str]:
    found = replica.status(settings.store, settings.master)
    return found.ok, found.sentence


def _warehouse(settings: Settings) -> tuple[bool, str]:
    tables = standings(settings.target)
    if not tables:
        return False, "No table was synced yet; run `make run`."
    gone = [table.target_table for table in tables if not table.there]
    if gone:
        return False, f"{', '.join(gone)} is gone from the target; run `make run` to copy it again."
    oldest = max(tables, key=lambda table: table.age_s)
    if oldest.age_s > SYNC_BUDGET_S:
        return False, (
            f"{oldest.target_table} was synced {oldest.age_s / 3600:.0f} hours ago; "
            "see whether the schedules run (`make dev`), or run `make run`."
        )
    return True, f"{len(tables)} tables, the last sync {oldest.age_s:.0f} s ago."


def _outbox(settings: Settings) -> tuple[bool, str]:
    paths = sorted(settings.outbox_dir.glob("*.db"))
    if not paths:
        return False, (
            f"There is no outbox in {settings.outbox_dir}; bring the worker's file back "
            "(`replica restore` from a backup), or run `make run` for the sample's."
        )
    waiting = backlog(paths)
    if not waiting.ok:
        return False, waiting.sentence
    delivered = reconcile(paths, settings.target)
    return delivered.ok, f"{waiting.sentence} {delivered.sentence}"


def _backups(settings: Settings) -> tuple[bool, str]:
    found = stats(settings.backup_dir)
    if found.newest_age_s is not None and found.newest_age_s > BACKUP_BUDGET_S:
        return False, f"{found.sentence} See whether the schedules run (`make dev`)."
    return found.ok, found.sentence
