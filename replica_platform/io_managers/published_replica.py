"""Publishing a generation: the one policy by which any replica reaches its readers."""

import dagster as dg

from replica_platform.metadata import described
from replica_platform.policies import plain_failures
from replica_platform.replica import Candidate, ReplicaReader
from replica_platform.resources.store import ReplicaStore


class PublishedReplicaIOManager(dg.ConfigurableIOManager):
    """Releases a candidate, so that readers see it; hands downstream assets a reader.

    The asset returns a closed `Candidate`, already verified. A run that fails before this
    leaves readers on the generation they have.
    """

    store: dg.ResourceDependency[ReplicaStore]

    def handle_output(self, context: dg.OutputContext, obj: Candidate) -> None:
        """Move the pointer to the candidate, then send its blocks where a block store is set.

        An unchanged master only re-stamps freshness.
        """
        blocks = self.store.block_store(context.asset_key)
        with plain_failures():
            publication = obj.release()
            pushed = blocks.push(obj.store) if blocks else None
        manifest = publication.manifest
        context.add_output_metadata(
            {
                **described(
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
                **({"pushed_bytes": pushed.bytes_sent} if pushed else {}),
            }
        )

    def load_input(self, context: dg.InputContext) -> ReplicaReader:
        """A reader that always has an answer; the caller closes it."""
        return ReplicaReader(self.store.path_of(context.asset_key))
