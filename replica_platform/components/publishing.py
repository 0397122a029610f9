"""What replicas of a whole master and of its parts have in common: sensor and checks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import dagster as dg

from replica_platform.core.reports import format_age
from replica_platform.policies import (
    AFTER_PARENTS,
    after,
    named_job,
    repair_key,
    translate_errors,
    waits_on_host,
)
from replica_platform.replica import NothingPublished, ReplicaStatus, scrub, status
from replica_platform.resources.platform import PlatformConfig
from replica_platform.resources.store import ReplicaStore, store_of

# A look by a run costs more than one by a sensor.
REPAIR_RUNS_S = 300


class Publishing(dg.Config):
    """How to publish.

    Attributes:
        new_lineage: Accept a master that was rebuilt or restored.
    """

    new_lineage: bool = False


@dataclass(frozen=True)
class Replica:
    """A published replica as its definitions need it.

    Attributes:
        key: The asset.
        master: The master, absolute or below the data folder.
        store: The metadata that names its store.
    """

    key: dg.AssetKey
    master: str
    store: Mapping[str, str]

    def store_of(self, platform: PlatformConfig) -> ReplicaStore:
        """Return the store of its generations."""
        return store_of(platform, self.store)

    def status(self, platform: PlatformConfig) -> ReplicaStatus:
        """Return the state of the store and of the master."""
        return status(self.store_of(platform).path, platform.path(self.master))

    def scrub(self, platform: PlatformConfig) -> dg.AssetCheckResult:
        """Read a share of the kept generations and repair them; a repaired one is a warning.

        Without blocks to repair it from, the sensor publishes the current generation again.
        """
        store = self.store_of(platform)
        with translate_errors():
            try:
                found = scrub(store.path, block_store=store.block_store)
            except NothingPublished as error:
                return dg.AssetCheckResult(asset_key=self.key, passed=True, description=str(error))
        return dg.AssetCheckResult(
            asset_key=self.key,
            passed=found.ok and not found.damaged,
            severity=dg.AssetCheckSeverity.WARN if found.ok else dg.AssetCheckSeverity.ERROR,
            description=found.sentence,
            metadata={"bytes_read": found.bytes_read, "damaged": len(found.damaged)},
        )

    def is_fresh(self, platform: PlatformConfig, within_s: int) -> dg.AssetCheckResult:
        """Return the result of the check `publication_is_fresh`."""
        age_s = self.status(platform).publication_age_s
        fresh = age_s is not None and age_s <= within_s
        return dg.AssetCheckResult(
            asset_key=self.key,
            check_name="publication_is_fresh",
            passed=fresh,
            severity=dg.AssetCheckSeverity.WARN,
            description=(
                f"Published or confirmed {format_age(age_s)} ago."
                if fresh
                else f"{_published(age_s)}, but should be every {format_age(within_s)}; see why "
                f"the schedules did not run, then materialise {self.key.to_user_string()}."
            ),
            metadata={"publication_age_seconds": age_s},
        )


def _published(age_s: float | None) -> str:
    return f"Published or confirmed {format_age(age_s)} ago" if age_s else "It was never published"


def automation(parents: Sequence[str]) -> dg.AutomationCondition | None:
    """Return when a replica is published: after its parents, or without any by its sensor alone."""
    return AFTER_PARENTS if parents else None


def check_automation(parents: Sequence[str], key: dg.AssetKey) -> dg.AutomationCondition | None:
    """Return when a check of a replica runs: with every automated publication."""
    return after(key) if parents else None


def scrub_check(replica: Replica) -> dg.AssetChecksDefinition:
    """Return the check that reads all kept generations of a replica in turn."""

    @dg.asset_check(
        asset=replica.key,
        name="kept_bytes_are_intact",
        description="Every byte of the kept generations is read within a week; damage is repaired.",
    )
    def kept_bytes_are_intact(platform: PlatformConfig) -> dg.AssetCheckResult:
        return replica.scrub(platform)

    return kept_bytes_are_intact


def scrub_schedule(
    name: str, checks: Sequence[dg.AssetChecksDefinition], cron: str, timezone: str
) -> dg.ScheduleDefinition:
    """Return the schedule of such checks."""
    description = "A share of the kept generations, all of them within a week."
    return dg.ScheduleDefinition(
        name=name,
        target=named_job(name, dg.AssetSelection.checks(*checks), description),
        cron_schedule=cron,
        execution_timezone=timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=description,
    )


def repair_definitions(
    name: str, replicas: Sequence[Replica], interval_s: int, host: str | None
) -> dg.Definitions:
    """Return what publishes a replica that is missing, damaged or behind its master.

    A sensor looks at the files, so it must run where they are; on a host that is named, a schedule
    publishes instead, and a publication of what did not change only confirms it.

    Args:
        name: The name of the sensor or schedule.
        replicas: What it publishes.
        interval_s: How often it looks, in seconds; on a host at most every `REPAIR_RUNS_S`.
        host: The host of the files; None where none is named.
    """
    if not replicas:
        return dg.Definitions()
    if host is None:
        return dg.Definitions(sensors=[repair_sensor(name, replicas, interval_s)])
    return dg.Definitions(schedules=[_repair_schedule(name, replicas, interval_s, host)])


def _repair_schedule(
    name: str, replicas: Sequence[Replica], interval_s: int, host: str
) -> dg.ScheduleDefinition:
    description = f"Publishes what is missing, damaged or behind its master on {host}."
    assets = dg.AssetSelection.assets(*(replica.key for replica in replicas))

    @dg.schedule(
        name=name,
        target=named_job(name, assets, description),
        cron_schedule=_cron_of(max(interval_s, REPAIR_RUNS_S)),
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=description,
    )
    def repair(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        return waits_on_host(context, name, host) or dg.RunRequest()

    return repair


def _cron_of(interval_s: int) -> str:
    """Return the cron schedule of an interval, in minutes up to an hour, else in hours."""
    minutes = min(60, -(-interval_s // 60))
    if minutes < 60:
        return f"*/{minutes} * * * *"
    hours = min(24, round(interval_s / 3600))
    return f"0 */{hours} * * *" if hours < 24 else "0 0 * * *"


def repair_sensor(name: str, replicas: Sequence[Replica], interval_s: int) -> dg.SensorDefinition:
    """Return the sensor that publishes a replica that is missing, damaged or behind its master.

    It compares lineage and manifest; the asset's blocking check reads the bytes.
    """
    description = "Publishes what is missing, damaged or behind its master."
    assets = dg.AssetSelection.assets(*(replica.key for replica in replicas))

    @dg.sensor(
        name=name,
        target=named_job(name, assets, description),
        minimum_interval_seconds=interval_s,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=description,
    )
    def repair(
        context: dg.SensorEvaluationContext, platform: PlatformConfig
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        sound = []
        for replica in replicas:
            name = replica.key.to_user_string()
            if not platform.path(replica.master).exists():
                sound.append(f"{name}: there is no master yet.")
                continue
            found = replica.status(platform)
            if found.ok:
                sound.append(f"{name}: {found.sentence}")
                continue
            if found.generation is None and (unmade := _unmade_parents(context, replica.key)):
                sound.append(f"{name} waits for {', '.join(unmade)}, which was never materialised.")
                continue
            context.log.warning(f"{name}: {found.sentence}")
            yield dg.RunRequest(
                run_key=f"{name}-{repair_key(context, found.generation)}",
                asset_selection=[replica.key],
            )
        if len(sound) == len(replicas):
            yield dg.SkipReason(" ".join(sound))

    return repair


def _unmade_parents(context: dg.SensorEvaluationContext, key: dg.AssetKey) -> list[str]:
    """Return the assets that a replica is made of and that were never materialised.

    While the first run of a pipeline still writes its master, a publication could only fail.
    """
    if context.repository_def is None:
        return []
    graph = context.repository_def.asset_graph
    return sorted(
        parent.to_user_string()
        for parent in graph.get(key).parent_keys
        if graph.get(parent).is_materializable
        and context.instance.get_latest_materialization_event(parent) is None
    )
