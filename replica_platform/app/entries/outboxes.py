"""The entry of workers' outboxes: the folder of each node, and how they are drained."""

from collections.abc import Mapping, Sequence
from typing import Any

from replica_platform.app.entries.base import (
    Cron,
    Entry,
    Name,
    Owner,
    Positive,
    Timezone,
    Variable,
)


class WorkerOutboxesEntry(Entry):
    """The outboxes of some nodes.

    Attributes:
        name: The name of the asset; other ones than `conversations` name their schedule
            and sensor too, so that several entries live side by side.
        nodes: The folder of each node's outbox files, absolute or below the data folder. Several
            nodes have an asset each, `NAME/NODE`.
        target: The environment variable with the DSN of the database to deliver to; that of
            `REPLICA_TARGET_DSN` when absent.
        mappings: For a kind of record, the typed table that is filled beside `outbox.record`.
        backlog_within_s: The age in seconds above which a waiting record is a warning.
        cron_schedule: When every waiting record is delivered; the sensor does it earlier.
        timezone: The time zone of the schedule.
        sensor_interval_s: How often the sensor looks for waiting records, in seconds; of an entry
            with a `host` none does, since sensors run elsewhere.
        drain_budget_s: How long one delivery may take, in seconds; the next one goes on.
        group: The group of the asset.
        pool: The pool of the deliveries; the name of the entry when absent.
    """

    name: Name = "conversations"
    nodes: Mapping[str, str]
    target: Variable | None = None
    mappings: Mapping[str, Mapping[str, Any]] = {}
    backlog_within_s: Positive = 900
    cron_schedule: Cron = "*/5 * * * *"
    timezone: Timezone = "UTC"
    sensor_interval_s: Positive = 30
    # A delivery ends before the schedule starts the next one, 5 minutes later.
    drain_budget_s: Positive = 240
    group: Name = "outbox"
    owners: Sequence[Owner] = ("team:platform",)
    pool: Name | None = None

    def asset_path(self, node: str) -> list[str]:
        """Return the key of the asset of a node."""
        return [self.name, node] if len(self.nodes) > 1 else [self.name]
