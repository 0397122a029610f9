"""Publication of a generation: how every replica reaches its readers."""

from typing import Any

import dagster as dg

from replica_platform.core.errors import PlatformError
from replica_platform.metadata import change, changes_table, replica_columns
from replica_platform.policies import translate_errors
from replica_platform.replica import (
    Candidate,
    Publication,
    ReplicaReader,
    diff,
    published_columns,
)
from replica_platform.resources.platform import PlatformConfig
from replica_platform.resources.store import SHOWS_CHANGES, store_of

# What a comparison reads at most: some seconds, see docs/adr/0065-compared-generations.md.
MOST_VALUES = 10_000_000
MEMORY_BYTES = 512 * 1024**2


class PublishedReplicaIOManager(dg.ConfigurableIOManager):
    """Releases the candidate that an asset returns, and gives downstream assets a reader.

    The candidate is closed and verified. If the run fails before its release, readers stay on
    the current generation. The asset names its store in its metadata, see `resources.store`.
    """

    platform: dg.ResourceDependency[PlatformConfig]

    def handle_output(self, context: dg.OutputContext, obj: Candidate) -> None:
        """Release the candidate, then send its blocks to the block store, if there is one.

        Where the master did not change, only the time of the publication is renewed.
        """
        blocks = store_of(self.platform, context.definition_metadata).block_store
        with translate_errors():
            publication = obj.release()
            pushed = blocks.push(obj.store) if blocks else None
            columns = published_columns(obj.store)
        manifest = publication.manifest
        context.add_output_metadata(
            {
                **change(
                    publication.how != "unchanged",
                    f"generation {publication.generation} published ({publication.how})",
                ),
                "dagster/row_count": sum(table.rows for table in manifest.tables.values()),
                "dagster/uri": str(publication.file),
                "generation": publication.generation,
                "bytes": publication.bytes,
                "blocks_written": publication.blocks_written,
                "publication_seconds": publication.seconds,
                "digest": publication.digest,
                **replica_columns(columns, [dep.asset_key for dep in context.asset_spec.deps]),
                **({"pushed_bytes": pushed.bytes_sent} if pushed else {}),
                **_changes(context, obj, publication),
            }
        )

    def load_input(self, context: dg.InputContext) -> ReplicaReader:
        """Return a reader of the current generation; the caller closes it."""
        upstream = context.upstream_output
        assert upstream is not None
        return ReplicaReader(store_of(self.platform, upstream.definition_metadata).path)


def _changes(
    context: dg.OutputContext, candidate: Candidate, publication: Publication
) -> dict[str, Any]:
    """Return which rows a publication changed; a comparison that fails is no failed publication."""
    before = publication.manifest.parent
    wanted = context.definition_metadata.get(SHOWS_CHANGES, True)
    if not wanted or before is None or publication.how == "unchanged":
        return {}
    try:
        found = diff(
            candidate.store,
            before,
            publication.generation,
            most_values=MOST_VALUES,
            memory_bytes=MEMORY_BYTES,
        )
    except PlatformError as error:
        context.log.warning(f"Not compared with generation {before}: {error}")
        return {}
    return changes_table(found)
