"""Commands of the replica: publish, verify, roll back, repair, exchange with a block store."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from replica_platform.cli.common import FOUND, PATH, as_json_option, print_sentence
from replica_platform.cli.terminal import bar, err, out, plain, print_json, print_table
from replica_platform.core.reports import format_bytes

if TYPE_CHECKING:
    from replica_platform.replica import GenerationDiff, Publication, Purpose, RowChange

SHOWN_CHARACTERS = 60


@click.command()
@click.option("--master", type=FOUND, required=True, help="The DuckDB file that the batch writes.")
@click.option("--store", type=PATH, required=True, help="The folder of generations.")
@click.option(
    "--keep",
    type=click.IntRange(min=2),
    default=3,
    show_default=True,
    help="How many generations to keep.",
)
@click.option("--new-lineage", is_flag=True, help="Accept a master that was rebuilt or restored.")
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
    """Publish the master as a new generation.

    Readers see the old generation or the new one, never a part of it.
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
    return _print_publication(publication, as_json)


@click.command("verify-generation")
@click.option("--store", type=FOUND, required=True, help="The folder of generations.")
@click.option("--generation", type=int, help="Its number; the current one otherwise.")
@as_json_option
def verify_generation(store: Path, generation: int | None, as_json: bool) -> int:
    """Compare every byte of a generation with its manifest."""
    from replica_platform.replica import verify

    return print_sentence(verify(store, generation), as_json)


@click.command("rollback-generation")
@click.option("--store", type=FOUND, required=True, help="The folder of generations.")
@click.option("--to", type=int, help="The generation's number; the previous one otherwise.")
@as_json_option
def rollback_generation(store: Path, to: int | None, as_json: bool) -> int:
    """Give readers an earlier generation."""
    from replica_platform.replica import rollback

    return _print_publication(rollback(store, to), as_json)


@click.command("push-generation")
@click.option("--store", type=FOUND, required=True, help="The folder of generations.")
@click.option("--blocks", required=True, help="The block store: a folder or s3://bucket/prefix.")
@click.option("--generation", type=int, help="Its number; the current one otherwise.")
@click.option("--resend", is_flag=True, help="Send every block, to replace damaged ones.")
@click.option("--anew", is_flag=True, hidden=True, help="The former name of --resend.")
@as_json_option
def push_generation(
    store: Path, blocks: str, generation: int | None, resend: bool, anew: bool, as_json: bool
) -> int:
    """Send a generation to a block store.

    Only blocks that are missing there are sent.
    """
    from replica_platform.replica import BlockStore

    with bar("pushing") as progress:
        pushed = BlockStore(blocks).push(
            store, generation, resend=resend or anew, progress=progress
        )
    if as_json:
        print_json(pushed)
    else:
        out.print(pushed.sentence)
    return 0


AT = "NUMBER|DAY|TIME"


def _at(_: click.Context, __: click.Parameter, value: str | None) -> int | datetime | None:
    """Return the generation that is asked for, as a number or a time with its zone."""
    from replica_platform.replica.store.moment import parse_at

    try:
        return None if value is None else parse_at(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command("pull-generation")
@click.option(
    "--store", type=PATH, required=True, help="The folder of generations; made if absent."
)
@click.option("--blocks", required=True, help="The block store: a folder or s3://bucket/prefix.")
@click.option("--generation", type=int, help="Its number; the newest one otherwise.")
@click.option(
    "--at", metavar=AT, callback=_at, help="The last one published by then, or its number."
)
@as_json_option
def pull_generation(
    store: Path, blocks: str, generation: int | None, at: int | datetime | None, as_json: bool
) -> int:
    """Fetch a generation from a block store.

    Only blocks that are missing here are fetched. With --at, what readers had at a time is
    restored, such as --at 2026-01-31 (its end, in UTC) or --at 2026-01-31T18:00+01:00.
    """
    from replica_platform.replica import BlockStore

    if generation is not None and at is not None:
        raise click.UsageError("give --generation or --at, not both.")
    with bar("pulling") as progress:
        publication = BlockStore(blocks).pull(
            store, at if generation is None else generation, progress=progress
        )
    return _print_publication(publication, as_json)


@click.command("diff")
@click.argument("before", required=False, metavar=f"[{AT}]", callback=_at)
@click.argument("after", required=False, metavar=f"[{AT}]", callback=_at)
@click.option("--store", type=FOUND, required=True, help="The folder of generations.")
@click.option("--table", "tables", multiple=True, help="Only this table; can be given again.")
@click.option(
    "--rows", type=click.IntRange(min=0), default=0, help="Show so many rows of each kind."
)
@click.option(
    "--memory-mb",
    type=click.IntRange(min=64),
    default=1024,
    show_default=True,
    help="The memory for rows; more goes to a temporary folder.",
)
@as_json_option
def diff_generations(
    before: int | datetime | None,
    after: int | datetime | None,
    store: Path,
    tables: tuple[str, ...],
    rows: int,
    memory_mb: int,
    as_json: bool,
) -> int:
    """Show which rows and columns two generations differ in.

    A generation is named by its number, or by a day (its end, in UTC) or a time with its zone, for
    the last one published by then: replica diff 11 12, replica diff 2026-01-31. Without names, what
    the last publication changed.
    """
    from replica_platform.replica import diff

    with bar("comparing") as progress:
        found = diff(
            store,
            before,
            after,
            tables=tables or None,
            rows=rows,
            memory_bytes=memory_mb * 1024**2,
            progress=progress,
        )
    if as_json:
        print_json(found)
    else:
        _print_diff(found)
    return int(not found.ok)


def _print_diff(found: "GenerationDiff") -> None:
    if found.tables:
        print_table(
            ("table", "added", "removed", "changed", ""),
            [
                (one.table, one.rows_added, one.rows_removed, one.rows_changed, one.notes)
                for one in found.tables
            ],
        )
    for table in found.tables:
        for row in table.samples:
            out.print(plain(f"{table.table} {_row(row)}"))
    (out if found.ok else err).print(plain(found.sentence))


def _row(row: "RowChange") -> str:
    """Return a row that differs as a line: its values, or which of them changed."""
    if row.before is None or row.after is None:
        sign, values = ("+", row.after) if row.before is None else ("-", row.before)
        return f"{sign} " + ", ".join(
            f"{name}={_short(one)}" for name, one in (values or {}).items()
        )
    return "~ " + ", ".join(
        f"{name}={_short(after)}"
        if row.before[name] == after
        else f"{name}={_short(row.before[name])} → {_short(after)}"
        for name, after in row.after.items()
    )


def _short(value: str | None) -> str:
    """Return a value as far as it fits into a line; `--json` has all of it."""
    if value is None:
        return "NULL"
    return value if len(value) <= SHOWN_CHARACTERS else f"{value[:SHOWN_CHARACTERS]}…"


@click.command("repair-store")
@click.option("--store", type=FOUND, required=True, help="The folder of generations.")
@click.option("--blocks", help="The block store to fetch damaged blocks from.")
@click.option("--master", type=FOUND, help="The master to publish from, if nothing else helps.")
@as_json_option
def repair_store(store: Path, blocks: str | None, master: Path | None, as_json: bool) -> int:
    """Repair a missing or damaged replica."""
    from replica_platform.replica import BlockStore, repair

    publication = repair(store, block_store=BlockStore(blocks) if blocks else None, master=master)
    if publication is not None:
        return _print_publication(publication, as_json)
    if as_json:
        print_json(None)
    else:
        out.print("Nothing is missing or damaged.")
    return 0


@click.command("prune-blocks")
@click.option("--blocks", required=True, help="The block store: a folder or s3://bucket/prefix.")
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    required=True,
    help="How many generations to keep.",
)
@as_json_option
def prune_blocks(blocks: str, keep: int, as_json: bool) -> int:
    """Remove old generations from a block store.

    Blocks that no generation needs are marked, and removed by a run at least a day later.
    """
    from replica_platform.replica import BlockStore

    return print_sentence(BlockStore(blocks).prune(keep), as_json)


@click.command("scrub-store")
@click.option("--store", type=FOUND, required=True, help="The folder of generations.")
@click.option("--blocks", help="The block store to fetch damaged blocks from.")
@click.option("--master", type=FOUND, help="The master to publish from, if nothing else helps.")
@click.option(
    "--within-days",
    type=click.FloatRange(min=0),
    default=7.0,
    show_default=True,
    help="The time within which every byte is read; 0 for now.",
)
@as_json_option
def scrub_store(
    store: Path, blocks: str | None, master: Path | None, within_days: float, as_json: bool
) -> int:
    """Read a share of all generations, and repair damage.

    Run it regularly, every hour for example: each time it reads what is due by the next one.
    """
    from replica_platform.replica import BlockStore, scrub

    with bar("reading") as progress:
        found = scrub(
            store,
            within_s=within_days * 86_400,
            block_store=BlockStore(blocks) if blocks else None,
            master=master,
            progress=progress,
        )
    return print_sentence(found, as_json)


def _purpose(purposes: Path | None, name: str | None) -> "Purpose | None":
    """Return the purpose `name` of the file; None where neither is given."""
    from replica_platform.replica import load_purposes

    if purposes is None or name is None:
        if purposes or name:
            raise click.UsageError("--purpose NAME and --purposes FILE go together.")
        return None
    known = {purpose.name: purpose for purpose in load_purposes(purposes)}
    if name not in known:
        raise click.UsageError(f"{purposes} has no purpose {name}; it has {', '.join(known)}.")
    return known[name]


def _print_publication(publication: "Publication", as_json: bool) -> int:
    if as_json:
        print_json(publication)
    elif publication.how == "unchanged":
        out.print(f"Readers are on generation {publication.generation}; nothing was copied.")
    else:
        out.print(
            f"Generation {publication.generation} is published ({publication.how}, "
            f"{format_bytes(publication.bytes)}, {publication.seconds:.2f} s): {publication.file}"
        )
    if publication.warning and not as_json:
        out.print(publication.warning)
    return 0
