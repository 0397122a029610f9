"""Purpose replicas, listed in a `defs.yaml`: a part of the master, masked, for one use."""

from collections.abc import Iterator

import dagster as dg
from dagster.components import Component, ComponentLoadContext, Resolvable

from replica_platform.app.entries import PurposeReplicasEntry
from replica_platform.components.publishing import (
    Replica,
    automation,
    check_automation,
    repair_definitions,
    scrub_check,
    scrub_schedule,
)
from replica_platform.components.scaffolding import ExampleScaffolder, with_attributes
from replica_platform.policies import TRANSIENT, fresh_within, translate_errors
from replica_platform.replica import (
    Candidate,
    Master,
    Purpose,
    data_as_of,
    prepare,
    unlisted_columns,
    verify,
)
from replica_platform.replica.purpose.rules import assert_keys_once
from replica_platform.resources.platform import PlatformConfig
from replica_platform.resources.store import SHOWS_CHANGES, store_metadata


@with_attributes
@dg.scaffold_with(ExampleScaffolder)
class PurposeReplicas(Component, PurposeReplicasEntry, Resolvable):
    """Parts of a master, each for one use: some tables, columns and rows, in a file of its own.

    A schedule reads the kept generations of all purposes in turn.

    Values that are masked, and columns that are not listed, appear nowhere in the bytes of the
    file.

    Example:
        name: shop
        master: shop/master.duckdb # below the data folder, or absolute
        after: [] # the assets that write the master, if there are any
        purposes:
          support: # published to replica/shop/support
            tables:
              customers:
                columns: [id, name, email]
                mask: {email: redact}
                left_out: all # whatever other columns there are
    """

    def build_defs(self, context: ComponentLoadContext) -> dg.Definitions:
        """Return an asset and its checks for each purpose, their repair and their scrub."""
        if (file := context.path / "defs.yaml").exists():
            assert_keys_once(file)
        replicas = [(purpose, self._replica(purpose)) for purpose in self.made()]
        # That of the first entry has the name from before there could be others.
        prefix = "purpose" if self.name == "purposes" else f"{self.name}_purposes"
        repaired = [replica for _, replica in replicas]
        scrubs = [scrub_check(replica) for replica in repaired]
        own = dg.Definitions(
            assets=[self._asset(*one) for one in replicas],
            asset_checks=[*(self._checks(*one) for one in replicas), *scrubs],
            schedules=[
                scrub_schedule(f"{prefix}_scrub", scrubs, self.scrub_cron_schedule, self.timezone)
            ]
            if replicas
            else [],
        )
        return dg.Definitions.merge(
            own,
            repair_definitions(f"{prefix}_repair", repaired, self.repair_interval_s, self.host),
        )

    def _replica(self, purpose: Purpose) -> Replica:
        return Replica(
            dg.AssetKey([self.name, purpose.name]),
            self.master,
            store_metadata(
                self.store_folder(purpose.name),
                self.blocks_of(purpose.name),
                self.blocks_folder(purpose.name),
            ),
        )

    def _parents(self, purpose: Purpose) -> list[str]:
        if self.after is not None:
            return list(self.after)
        return [name.split(".")[-1] for name in purpose.tables]

    def _asset(self, purpose: Purpose, replica: Replica) -> dg.AssetsDefinition:
        parents = self._parents(purpose)

        @dg.asset(
            key=replica.key,
            deps=parents,
            group_name=self.group,
            kinds={"duckdb"},
            owners=list(self.owners),
            tags=self.asset_tags,
            metadata={**replica.store, SHOWS_CHANGES: self.changes},
            io_manager_key="published_replica",
            pool=self.pool_name,
            retry_policy=TRANSIENT,
            freshness_policy=fresh_within(self.fresh_within_s) if self.fresh_within_s else None,
            automation_condition=automation(parents),
            description=f"A replica for {purpose.name}: only {', '.join(purpose.tables)}.",
        )
        def published(
            context: dg.AssetExecutionContext, platform: PlatformConfig
        ) -> dg.MaterializeResult[Candidate]:
            master = platform.path(self.master)
            as_of = None
            with translate_errors():
                if self.as_of:
                    with Master(master).read() as connection:
                        as_of = data_as_of(connection, self.as_of)
                candidate = prepare(
                    master,
                    replica.store_of(platform).path,
                    purpose=purpose,
                    data_as_of=as_of,
                    run_id=context.run.run_id,
                    link=self.link_name(purpose.name),
                )
            return dg.MaterializeResult(
                value=candidate, data_version=dg.DataVersion(str(candidate.generation))
            )

        return published

    def _checks(self, purpose: Purpose, replica: Replica) -> dg.AssetChecksDefinition:
        condition = check_automation(self._parents(purpose), replica.key)
        described = {
            "published_bytes_are_intact": "Every byte matches the manifest, and every table can "
            "be read.",
            "replica_is_fresh": "The generation shows the present master, within the purpose's "
            "max_age_s.",
            "every_column_is_listed": "The purpose lists or leaves out every column of its tables, "
            "new ones included.",
        }
        specs = [
            dg.AssetCheckSpec(
                name,
                asset=replica.key,
                automation_condition=condition,
                blocking=name == "published_bytes_are_intact",
                description=description,
            )
            for name, description in described.items()
        ]

        @dg.multi_asset_check(
            name=f"{replica.key.to_python_identifier()}_checks",
            specs=specs,
            can_subset=True,
            pool=self.pool_name,
        )
        def checks(platform: PlatformConfig) -> Iterator[dg.AssetCheckResult]:
            with translate_errors():
                verification = verify(replica.store_of(platform).path)
                found = replica.status(platform)
                unlisted = unlisted_columns(purpose, platform.path(self.master))
            yield dg.AssetCheckResult(
                asset_key=replica.key,
                check_name="published_bytes_are_intact",
                passed=verification.ok,
                description=verification.sentence,
            )
            yield dg.AssetCheckResult(
                asset_key=replica.key,
                check_name="replica_is_fresh",
                passed=found.ok,
                severity=dg.AssetCheckSeverity.WARN,
                description=found.sentence,
                metadata={"publication_age_seconds": found.publication_age_s},
            )
            yield dg.AssetCheckResult(
                asset_key=replica.key,
                check_name="every_column_is_listed",
                passed=unlisted.ok,
                severity=dg.AssetCheckSeverity.WARN,
                description=unlisted.sentence,
                metadata={"columns": list(unlisted.columns)},
            )

        return checks
