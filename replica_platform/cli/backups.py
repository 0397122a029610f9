"""SQLite files: back up, restore, bring home from another host."""

from pathlib import Path
from typing import Literal

import click

from replica_platform.cli.common import FOUND, PATH, as_json_option, print_sentence
from replica_platform.cli.terminal import bar, out, print_json
from replica_platform.core.reports import format_bytes


@click.command()
@click.argument("file", type=FOUND)
@click.option("--to", type=PATH, required=True, help="The folder of copies.")
@click.option("--skip-checkpoint", is_flag=True, help="Leave the write-ahead log as it is.")
@click.option("--cleanup", is_flag=True, help="Then remove copies that retention lets go.")
@click.option("--keep-days", type=click.IntRange(min=0), default=30, show_default=True)
@click.option("--keep-count", type=click.IntRange(min=1), default=7, show_default=True)
@click.option("--stats-only", is_flag=True, help="Copy nothing; say what is there.")
@as_json_option
def backup(
    file: Path, to: Path, skip_checkpoint: bool, cleanup: bool, keep_days: int, keep_count: int,
    stats_only: bool, as_json: bool,
) -> int:  # fmt: skip
    """Make a verified copy of a SQLite FILE.

    Everything in its write-ahead log is in it, and the program that writes FILE goes on.
    """
    from replica_platform import backup as engine

    if stats_only:
        return print_sentence(engine.status(to, file.stem), as_json)
    with bar("copying") as progress:
        made = engine.backup(file, to, skip_checkpoint=skip_checkpoint, progress=progress)
    gone = (
        engine.cleanup(to, file.stem, keep_days=keep_days, keep_count=keep_count) if cleanup else []
    )
    if as_json:
        print_json({"backup": made, "removed": gone})
    else:
        out.print(
            f"{made.file}: {format_bytes(made.bytes)}, sha256 {made.sha256[:16]}…, "
            f"{made.seconds:.2f} s, verified; {len(gone)} old copies removed."
        )
    return 0


@click.command()
@click.argument("file", type=FOUND, metavar="BACKUP")
@click.option("--to", type=PATH, required=True, help="The file to make.")
@as_json_option
def restore(file: Path, to: Path, as_json: bool) -> int:
    """Put a verified BACKUP in place of a SQLite file."""
    from replica_platform import backup as engine

    return print_sentence(engine.restore(file, to), as_json)


@click.command()
@click.argument("url", metavar="ssh://user@host:port/path.db")
@click.option("--to", type=PATH, required=True, help="The file to make.")
@click.option("--method", type=click.Choice(["query", "scp"]), default="scp", show_default=True)
@click.option("--known-hosts", type=FOUND, help="Host keys to trust; ~/.ssh/known_hosts otherwise.")
@click.option("--client-key", "client_keys", type=FOUND, multiple=True, help="A private key.")
@click.option("--info-only", is_flag=True, help="Bring nothing; say what is there.")
@as_json_option
def pull(
    url: str,
    to: Path,
    method: Literal["query", "scp"],
    known_hosts: Path | None,
    client_keys: tuple[Path, ...],
    info_only: bool,
    as_json: bool,
) -> int:
    """Bring a SQLite file of another host home, verified."""
    from replica_platform import backup as engine

    with bar("pulling") as progress:
        pulled = engine.pull(
            url,
            to,
            method=method,
            known_hosts=known_hosts,
            client_keys=client_keys or None,
            info_only=info_only,
            progress=progress,
        )
    return print_sentence(pulled, as_json)
