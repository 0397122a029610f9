"""The replica: publish, verify, roll back, and the live quotes that read it."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from replica_platform.cli.common import FOUND, PATH, as_json_option, on_signal, print_sentence
from replica_platform.cli.terminal import bar, out, print_json

if TYPE_CHECKING:
    from replica_platform.replica import Publication, Purpose
from replica_platform.core.reports import format_bytes


@click.command()
@click.option("--master", type=FOUND, required=True, help="The DuckDB file that a batch writes.")
@click.option("--store", type=PATH, required=True, help="The folder of generations.")
@click.option("--keep", type=click.IntRange(min=2), default=3, show_default=True)
@click.option("--new-lineage", is_flag=True, help="Accept a master that was made anew or restored.")
@click.option("--purposes", type=FOUND, help="A YAML file of purposes; with --purpose.")
@click.option("--purpose", "name", help="Publish this part of the master instead of all of it.")
@as_json_option
def publish(
    master: Path,
    store: Path,
    keep: int,
    new_lineage: bool,
    purposes: Path | None,
    name: str | None,
    as_json: bool,
) -> int:
    """Publish a generation of the master.

    Readers see the old one or the new one, never half of it.
    """
    from replica_platform.replica import publish as publish_generation

    purpose = _purpose(purposes, name)
    with bar("publishing") as progress:
        publication = publish_generation(
            master,
            store,
            keep=purpose.keep if purpose else keep,
            purpose=purpose,
            new_lineage=new_lineage,
            progress=progress,
        )
    return _published(publication, as_json)


@click.command()
@click.option("--store", type=FOUND, required=True, help="The folder of generations.")
@click.option("--generation", type=int, help="Which one; the current one otherwise.")
@as_json_option
def verify(store: Path, generation: int | None, as_json: bool) -> int:
    """Read a generation again, against its manifest."""
    from replica_platform.replica import verify as verify_generation

    return print_sentence(verify_generation(store, generation), as_json)


@click.command()
@click.option("--store", type=FOUND, required=True, help="The folder of generations.")
@click.option("--to", type=int, help="Which generation; the one before otherwise.")
@as_json_option
def rollback(store: Path, to: int | None, as_json: bool) -> int:
    """Point readers at an earlier generation."""
    from replica_platform.replica import rollback as roll_back

    publication = roll_back(store, to)
    return _published(publication, as_json)


@click.command()
@click.option("--store", type=FOUND, required=True, help="The folder of generations.")
@click.option("--blocks", required=True, help="The block store: a folder or s3://bucket/prefix.")
@click.option("--generation", type=int, help="Which one; the current one otherwise.")
@click.option("--anew", is_flag=True, help="Send every block again, to mend damaged ones.")
@as_json_option
def push(store: Path, blocks: str, generation: int | None, anew: bool, as_json: bool) -> int:
    """Send a generation to a block store.

    Only the blocks that it lacks are sent.
    """
    from replica_platform.replica import BlockStore

    with bar("pushing") as progress:
        pushed = BlockStore(blocks).push(store, generation, anew=anew, progress=progress)
    if as_json:
        print_json(pushed)
    else:
        out.print(
            f"Generation {pushed.generation} is in the block store: {pushed.blocks_sent:,} of "
            f"{pushed.blocks:,} blocks sent, {format_bytes(pushed.bytes_sent)}."
        )
    return 0


@click.command("pull-generation")
@click.option(
    "--store", type=PATH, required=True, help="The folder of generations; made if absent."
)
@click.option("--blocks", required=True, help="The block store: a folder or s3://bucket/prefix.")
@click.option("--generation", type=int, help="Which one; the newest otherwise.")
@as_json_option
def pull_generation(store: Path, blocks: str, generation: int | None, as_json: bool) -> int:
    """Bring a generation here from a block store.

    Only the blocks that are not here yet are fetched.
    """
    from replica_platform.replica import BlockStore

    with bar("pulling") as progress:
        publication = BlockStore(blocks).pull(store, generation, progress=progress)
    return _published(publication, as_json)


@click.command()
@click.option("--store", type=FOUND, required=True, help="The folder of generations.")
@click.option("--blocks", help="The block store to fetch damaged blocks from.")
@click.option("--master", type=FOUND, help="The master to publish again from, if need be.")
@as_json_option
def repair(store: Path, blocks: str | None, master: Path | None, as_json: bool) -> int:
    """Make good a missing or damaged replica."""
    from replica_platform.replica import BlockStore
    from replica_platform.replica import repair as repair_store

    publication = repair_store(store, blocks=BlockStore(blocks) if blocks else None, master=master)
    if publication is not None:
        return _published(publication, as_json)
    if as_json:
        print_json(None)
    else:
        out.print("Nothing is missing or damaged.")
    return 0


@click.command()
@click.option("--store", type=FOUND, required=True, help="The folder of generations.")
@click.option("--brokers", required=True, help="Kafka's bootstrap servers, host:port,…")
@click.option("--topic", required=True)
@click.option("--every", "every_s", type=float, default=1.0, show_default=True, help="Seconds.")
@click.option("--cycles", type=int, help="Stop after so many rounds; never otherwise.")
def quotes(store: Path, brokers: str, topic: str, every_s: float, cycles: int | None) -> int:
    """Send the watchlist's quotes to Kafka.

    Whatever becomes of the replica: it answers from the last good one.
    """
    from replica_platform.market.quotes import Cycle, produce_quotes
    from replica_platform.replica import ReplicaReader

    troubled = False

    def report(cycle: Cycle) -> None:
        nonlocal troubled
        troubled = bool(cycle.errors) or not cycle.sent
        out.print(
            f"{cycle.acknowledged}/{cycle.sent} quotes, {cycle.rung}, "
            f"generation {cycle.generation}{''.join(f'; {e}' for e in cycle.errors[:1])}"
        )

    with ReplicaReader(store) as reader:
        produce_quotes(
            reader, brokers, topic, every_s=every_s, cycles=cycles, stop=on_signal(), report=report
        )
    return int(troubled)


def _purpose(purposes: Path | None, name: str | None) -> "Purpose | None":
    """The purpose called `name` in the file, None where neither is given."""
    from replica_platform.replica import load_purposes

    if purposes is None or name is None:
        if purposes or name:
            raise click.UsageError("--purpose NAME and --purposes FILE go together.")
        return None
    known = {purpose.name: purpose for purpose in load_purposes(purposes)}
    if name not in known:
        raise click.UsageError(f"{purposes} has no purpose {name}; it has {', '.join(known)}.")
    return known[name]


def _published(publication: "Publication", as_json: bool) -> int:
    if as_json:
        print_json(publication)
    elif publication.how == "unchanged":
        out.print(f"Readers are on generation {publication.generation}; nothing was copied.")
    else:
        out.print(
            f"Generation {publication.generation} is published ({publication.how}, "
            f"{format_bytes(publication.bytes)}, {publication.seconds:.2f} s): {publication.file}"
        )
    return 0
