"""The look at all that is configured, which the history remembers: lag, ages, readers, backlogs."""

import logging
from collections.abc import Callable, Iterator

from replica_platform.app import state
from replica_platform.app.configured import Configured
from replica_platform.app.recording import record_samples
from replica_platform.app.state import Locations
from replica_platform.core.errors import PlatformError
from replica_platform.history import Sample

log = logging.getLogger(__name__)


def record_state(settings: Locations, found: Configured) -> int:
    """Look at all that is configured, and record lag, ages, readers and backlogs.

    Args:
        settings: Where the platform's data is; its databases should run.
        found: What is configured.

    Returns:
        How many values were recorded.
    """
    samples: list[Sample] = []
    for look in LOOKS:
        try:
            samples += look(settings, found)
        except PlatformError as error:
            log.warning("The history lacks a part: %s", error)
    return record_samples(settings.target, samples)


def _tables(settings: Locations, found: Configured) -> Iterator[Sample]:
    for table in state.tables(settings, found):
        yield Sample("lag_s", table.target_table, table.age_s)
        yield Sample("proven_age_s", table.target_table, table.proven_age_s)


def _outboxes(settings: Locations, found: Configured) -> Iterator[Sample]:
    for entry, node, backlog in state.outboxes(settings, found):
        name = f"{entry}/{node}"
        yield Sample("pending", name, backlog.pending)
        yield Sample("dead", name, backlog.dead)
        yield Sample("oldest_s", name, backlog.oldest_pending_age_s if backlog.pending else 0)


def _replicas(settings: Locations, found: Configured) -> Iterator[Sample]:
    for name, status in state.replicas(settings, found):
        yield Sample("data_age_s", name, status.data_age_s)
        yield Sample("readers", name, len(status.readers))


def _backups(settings: Locations, found: Configured) -> Iterator[Sample]:
    for name, status in state.backups(settings, found):
        yield Sample("backup_age_s", name, status.newest_age_s)


LOOKS: tuple[Callable[[Locations, Configured], Iterator[Sample]], ...] = (
    *(_tables, _outboxes, _replicas, _backups),
)
