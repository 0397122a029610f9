"""The replica: publish, verify, roll back, and the live quotes that read it."""

from pathlib import Path

import click

from replica_platform.commands.common import FOUND, PATH, as_json_option, on_signal, print_sentence
from replica_platform.terminal import bar, out, print_json, readable_bytes


@click.command()
@click.option("--master", type=FOUND, required=True, help="The DuckDB file that a batch writes.")
@click.option("--store", type=PATH, required=True, help="The folder of generations.")
@click.option("--keep", type=click.IntRange(min=2), default=3, show_default=True)
@click.option("--new-lineage", is_flag=True, help="Accept a master that was made anew or restored.")
@as_json_option
def publish(master: Path, store: Path, keep: int, new_lineage: bool, as_json: bool) -> int:
    """Publish a generation of the master; readers see the old one or the new one."""
    from replica_platform.replica import publish as publish_generation

    with bar("publishing") as progress:
        publication = publish_generation(
            master, store, keep=keep, new_lineage=new_lineage, progress=progress
        )
    if as_json:
        print_json(publication)
    elif publication.how == "unchanged":
        out.print(
            f"The master is as generation {publication.generation} has it; freshness stamped anew."
        )
    else:
        out.print(
            f"Generation {publication.generation} is published ({publication.how}, "
            f"{readable_bytes(publication.bytes)}, {publication.seconds:.2f} s): {publication.file}"
        )
    return 0


@click.command()
@click.option("--store", type=FOUND, required=True, help="The folder of generations.")
@click.option("--generation", type=int, help="Which one; the current one otherwise.")
@as_json_option
def verify(store: Path, generation: int | None, as_json: bool) -> int:
    """Read every byte of a generation again and compare it with its manifest."""
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
    if as_json:
        print_json(publication)
    else:
        out.print(f"Readers are on generation {publication.generation} again.")
    return 0


@click.command()
@click.option("--store", type=FOUND, required=True, help="The folder of generations.")
@click.option("--brokers", required=True, help="Kafka's bootstrap servers, host:port,…")
@click.option("--topic", required=True)
@click.option("--every", "every_s", type=float, default=1.0, show_default=True, help="Seconds.")
@click.option("--cycles", type=int, help="Stop after so many rounds; never otherwise.")
def quotes(store: Path, brokers: str, topic: str, every_s: float, cycles: int | None) -> int:
    """Send the watchlist's quotes to Kafka, whatever becomes of the replica."""
    from replica_platform.market.quotes import Cycle, produce_quotes

    troubled = False

    def report(cycle: Cycle) -> None:
        nonlocal troubled
        troubled = bool(cycle.errors) or not cycle.sent
        out.print(
            f"{cycle.acknowledged}/{cycle.sent} quotes, {cycle.rung}, "
            f"generation {cycle.generation}{''.join(f'; {e}' for e in cycle.errors[:1])}"
        )

    produce_quotes(
        store, brokers, topic, every_s=every_s, cycles=cycles, stop=on_signal(), report=report
    )
    return int(troubled)
