"""A master DuckDB file, published as generations for any number of readers."""

from collections.abc import Iterator, Sequence

import dagster as dg
from dagster.components import Component, ComponentLoadContext, Resolvable

from replica_platform.app.entries import DuckDBReplicaEntry
from replica_platform.components.publishing import (
    Publishing,
    Replica,
    automation,
    check_automation,
    repair_definitions,
    scrub_check,
    scrub_schedule,
)
from replica_platform.components.purpose_replicas import PurposeReplicas
from replica_platform.components.regions import region_definitions
from replica_platform.components.scaffolding import ExampleScaffolder, with_attributes
from replica_platform.core.errors import PlatformError
from replica_platform.metadata import markdown_rows
from replica_platform.policies import TRANSIENT, fresh_within, translate_errors
from replica_platform.replica import (
    BrokenRule,
    Candidate,
    Master,
    audit,
    data_as_of,
    prepare,
    repair,
    status,
    verify,
)
from replica_platform.resources.platform import PlatformConfig
from replica_platform.resources.store import SHOWS_CHANGES, store_metadata

Published = dg.AssetCheckResult | dg.MaterializeResult[Candidate]


@with_attributes
@dg.scaffold_with(ExampleScaffolder)
class DuckDBReplica(Component, DuckDBReplicaEntry, Resolvable):
    """A master DuckDB file, published as generations that any number of readers query.

    Readers never wait for the writer and never see half a file. A candidate is built, verified and
    audited by your rules before readers see it; each generation is an immutable file, and a link
    leads to the newest one. Whoever writes the master need not be an asset: a sensor publishes
    when the replica is missing, damaged or behind its master.

    Example:
        name: shop
        master: shop/master.duckdb # below the data folder, or absolute
        link: shop.db # the newest generation in replica/shop, for any DuckDB client
        required: [] # tables that must be there, such as [orders]
        rules: # each a query for the rows that break it
          "no rule is broken": select 1 where false
    """

    def build_defs(self, context: ComponentLoadContext) -> dg.Definitions:
        """Return the asset with its checks, repair and scrub, its regions and its purposes."""
        replica = Replica(
            dg.AssetKey(self.name),
            self.master,
            store_metadata(self.store_folder, self.blocks, self.name),
        )
        kept = scrub_check(replica)
        own = dg.Definitions(
            assets=[self._asset(replica)],
            asset_checks=[self._checks(replica), kept],
            schedules=[
                scrub_schedule(
                    f"{self.name}_scrub", [kept], self.scrub_cron_schedule, self.timezone
                )
            ],
        )
        repaired = repair_definitions(
            f"{self.name}_repair", [replica], self.repair_interval_s, self.host
        )
        parts = PurposeReplicas(**dict(self.parts())).build_defs(context)
        return dg.Definitions.merge(own, repaired, region_definitions(self, replica), parts)

    def _asset(self, replica: Replica) -> dg.AssetsDefinition:
        audit = dg.AssetCheckSpec(
            "candidate_is_sound",
            asset=replica.key,
            blocking=True,
            description="\n".join(
                [
                    "Every rule holds in the candidate, before readers see it:\n",
                    *(f"- {rule}" for rule in self.rules or ["none is written"]),
                ]
            ),
        )

        @dg.asset(
            key=replica.key,
            deps=list(self.after or ()),
            group_name=self.group,
            kinds={"duckdb"},
            owners=list(self.owners),
            tags=self.asset_tags,
            metadata={**replica.store, SHOWS_CHANGES: self.changes},
            io_manager_key="published_replica",
            output_required=False,
            check_specs=[audit],
            pool=self.pool_name,
            retry_policy=TRANSIENT,
            freshness_policy=fresh_within(self.fresh_within_s) if self.fresh_within_s else None,
            automation_condition=automation(self.after or ()),
            description=f"Generations of {self.master}, queried by any number of readers while "
            "it is written.",
        )
        def published(
            context: dg.AssetExecutionContext, config: Publishing, platform: PlatformConfig
        ) -> Iterator[Published]:
            _repair(context, replica, platform)
            with translate_errors():
                candidate = self._prepare(context.run.run_id, config, replica, platform)
                broken = _audit(candidate, self.rules)
            yield _audited(broken, self.name)
            if broken:
                candidate.discard()
                names = ", ".join(f"“{one.rule}”" for one in broken)
                raise dg.Failure(
                    f"Not published: the candidate breaks {names}.", allow_retries=False
                )
            yield dg.MaterializeResult(
                value=candidate, data_version=dg.DataVersion(str(candidate.generation))
            )

        return published

    def _prepare(
        self, run_id: str, config: Publishing, replica: Replica, platform: PlatformConfig
    ) -> Candidate:
        master = platform.path(self.master)
        as_of = None
        if self.as_of:
            with Master(master).read() as connection:
                as_of = data_as_of(connection, self.as_of)
        return prepare(
            master,
            replica.store_of(platform).path,
            keep=self.keep or platform.keep_generations,
            min_age_s=self.min_age_s,
            data_as_of=as_of,
            run_id=run_id,
            new_lineage=config.new_lineage,
            required=tuple(self.required),
            link=self.link_name,
        )

    def _checks(self, replica: Replica) -> dg.AssetChecksDefinition:
        condition = check_automation(self.after or (), replica.key)
        specs = [
            dg.AssetCheckSpec(
                "published_bytes_are_intact",
                asset=replica.key,
                blocking=True,
                automation_condition=condition,
                description="Every byte of the current generation matches its manifest, and every "
                "table can be read.",
            ),
            dg.AssetCheckSpec(
                "replica_is_in_sync",
                asset=replica.key,
                automation_condition=condition,
                description="Readers see the master's present content, by lineage.",
            ),
        ]
        if self.fresh_within_s:
            specs.append(
                dg.AssetCheckSpec(
                    "publication_is_fresh",
                    asset=replica.key,
                    automation_condition=condition,
                    description="The last publication or confirmation was at most "
                    f"{self.fresh_within_s} seconds ago.",
                )
            )

        @dg.multi_asset_check(
            name=f"{self.name}_checks", specs=specs, can_subset=True, pool=self.pool_name
        )
        def checks(
            context: dg.AssetCheckExecutionContext, platform: PlatformConfig
        ) -> Iterator[dg.AssetCheckResult]:
            asked = {check.name for check in context.selected_asset_check_keys}
            if "published_bytes_are_intact" in asked:
                with translate_errors():
                    verification = verify(replica.store_of(platform).path)
                yield dg.AssetCheckResult(
                    asset_key=replica.key,
                    check_name="published_bytes_are_intact",
                    passed=verification.ok,
                    description=verification.sentence,
                )
            if "replica_is_in_sync" in asked:
                found = replica.status(platform)
                yield dg.AssetCheckResult(
                    asset_key=replica.key,
                    check_name="replica_is_in_sync",
                    passed=found.ok,
                    description=found.sentence,
                )
            if self.fresh_within_s and "publication_is_fresh" in asked:
                yield replica.is_fresh(platform, self.fresh_within_s)

        return checks


def _repair(context: dg.AssetExecutionContext, replica: Replica, platform: PlatformConfig) -> None:
    """Fetch damaged or missing blocks from the block store: faster than a new publication."""
    store = replica.store_of(platform)
    blocks = store.block_store
    if blocks is None or status(store.path).generation is None:
        return
    try:
        repaired = repair(store.path, block_store=blocks, read_all=False)
    except PlatformError as error:
        context.log.warning(f"Not repaired from the block store, so it is published again: {error}")
        return
    if repaired:
        context.log.info(f"Generation {repaired.generation} was repaired from the block store.")


def _audit(candidate: Candidate, rules: "dict[str, str] | object") -> list[BrokenRule]:
    """Return the broken rules of a candidate; it is discarded if a rule cannot be run."""
    try:
        return audit(candidate, rules)  # type: ignore[arg-type]
    except PlatformError:
        candidate.discard()
        raise


def _audited(broken: Sequence[BrokenRule], name: str) -> dg.AssetCheckResult:
    names = ", ".join(f"“{one.rule}”" for one in broken)
    return dg.AssetCheckResult(
        check_name="candidate_is_sound",
        passed=not broken,
        description=(
            f"The candidate breaks {names}; readers stay on the generation they have. "
            f"Correct the master's tables and materialise {name} again."
            if broken
            else "Every rule holds in the candidate."
        ),
        metadata={
            "broken_rules": len(broken),
            **{
                one.rule: dg.MetadataValue.md(markdown_rows(one.rows, one.columns))
                for one in broken
            },
        },
    )
