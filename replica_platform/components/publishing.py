"""What replicas of a whole master and of its parts have in common: sensor and checks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import dagster as dg

from replica_platform.core.reports import format_age
from replica_platform.policies import AFTER_PARENTS, after, named_job, repair_key
from replica_platform.replica import ReplicaStatus, status
from replica_platform.resources.platform import PlatformConfig
from replica_platform.resources.store import ReplicaStore, store_of


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
            context.log.warning(f"{name}: {found.sentence}")
            yield dg.RunRequest(
                run_key=f"{name}-{repair_key(context, found.generation)}",
                asset_selection=[replica.key],
            )
        if len(sound) == len(replicas):
            yield dg.SkipReason(" ".join(sound))

    return repair
