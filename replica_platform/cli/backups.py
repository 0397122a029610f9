"""Commands of SQLite backups: back up, restore, copy a file of another host here."""

from pathlib import Path
from typing import Literal

import click

from replica_platform.cli.common import FOUND, PATH, as_json_option, print_sentence
from replica_platform.cli.terminal import bar, out, print_json
from replica_platform.core.reports import format_bytes


@click.command()
@click.argument("file", type=FOUND)
@click.option("--to", type=PATH, required=True, help="The folder of backups.")
@click.option("--skip-checkpoint", is_flag=True, help="Leave the write-ahead log as it is.")
@click.option(
    "--blocks",
    metavar="STORE",
    help="Keep the content as blocks in this folder or URL (s3://bucket/prefix).",
)
@click.option(
    "--encrypt", is_flag=True, help="Encrypt the blocks with the key in REPLICA_BACKUP_KEY."
)
@click.option("--md5", is_flag=True, help="Put an MD5 into the manifest too.")
@click.option("--cleanup", is_flag=True, help="Afterwards remove backups that need not be kept.")
@click.option(
    "--keep-days",
    type=click.IntRange(min=0),
    default=30,
    show_default=True,
    help="With --cleanup: keep backups younger than this.",
)
@click.option(
    "--keep-count",
    type=click.IntRange(min=1),
    default=7,
    show_default=True,
    help="With --cleanup: keep at least this many.",
)
@click.option("--stats-only", is_flag=True, help="Make no backup; describe those in the folder.")
@as_json_option
def backup(
    file: Path, to: Path, skip_checkpoint: bool, blocks: str | None, encrypt: bool, md5: bool,
    cleanup: bool, keep_days: int, keep_count: int, stats_only: bool, as_json: bool,
) -> int:  # fmt: skip
    """Make a verified backup of the SQLite file FILE.

    It includes the write-ahead log. Programs can write to FILE meanwhile.
    """
    from replica_platform import backup as engine

    if stats_only:
        return print_sentence(engine.status(to, file.stem), as_json)
    with bar("copying") as progress:
        made = engine.backup(
            file,
            to,
            skip_checkpoint=skip_checkpoint,
            blocks=blocks,
            encrypt=encrypt,
            md5=md5,
            progress=progress,
        )
    removed = (
        engine.cleanup(to, file.stem, keep_days=keep_days, keep_count=keep_count) if cleanup else []
    )
    if as_json:
        print_json({"backup": made, "removed": removed})
    else:
        unchecked = made.unchecked
        verified = f"copied, not fully checkable: {unchecked}" if unchecked else "verified"
        out.print(
            f"{made.file}: {format_bytes(made.bytes)}, "
            + (f"{format_bytes(made.used_bytes)} of it new in {made.blocks}, " if blocks else "")
            + f"sha256 {made.sha256[:16]}…, "
            f"{made.seconds:.2f} s, {verified}; {len(removed)} old backups removed."
        )
    return 0


@click.command("fetch-manifests")
@click.argument("blocks", metavar="STORE")
@click.option("--to", type=PATH, required=True, help="The folder of backups.")
@as_json_option
def fetch_manifests(blocks: str, to: Path, as_json: bool) -> int:
    """Make the backups in a block STORE known in a folder.

    Then they can be verified and restored there: on a new host, or after the folder was lost.
    """
    from replica_platform import backup as engine

    found = engine.fetch_manifests(blocks, to)
    if as_json:
        print_json({"found": found})
    else:
        out.print(f"{len(found)} backups in {blocks} were not known in {to} and are now.")
    return 0


@click.command("verify-backup")
@click.argument("file", type=PATH, metavar="BACKUP")
@as_json_option
def verify_backup(file: Path, as_json: bool) -> int:
    """Read a BACKUP and compare it with its manifest."""
    from replica_platform import backup as engine

    with bar("verifying") as progress:
        outcome = engine.verify(file, progress=progress)
    return print_sentence(outcome, as_json)


@click.command("restore-backup")
@click.argument("file", type=PATH, metavar="BACKUP")
@click.option("--to", type=PATH, required=True, help="The SQLite file to create or replace.")
@click.option("--replace", is_flag=True, help="Replace an existing file; it is kept beside it.")
@as_json_option
def restore_backup(file: Path, to: Path, replace: bool, as_json: bool) -> int:
    """Put a verified BACKUP in place as a SQLite file."""
    from replica_platform import backup as engine

    return print_sentence(engine.restore(file, to, replace=replace), as_json)


@click.command("pull-sqlite")
@click.argument("url", metavar="ssh://user@host:port/path.db")
@click.option("--to", type=PATH, required=True, help="The SQLite file to create or replace.")
@click.option(
    "--method",
    type=click.Choice(["query", "pages", "scp"]),
    default="scp",
    show_default=True,
    help="Transfer the rows that differ, the blocks that differ, or the whole file.",
)
@click.option("--known-hosts", type=FOUND, help="Host keys to trust; ~/.ssh/known_hosts otherwise.")
@click.option(
    "--client-key",
    "client_keys",
    type=FOUND,
    multiple=True,
    help="A private key to log in with; may be repeated.",
)
@click.option("--info-only", is_flag=True, help="Transfer nothing; describe the remote file.")
@as_json_option
def pull_sqlite(
    url: str,
    to: Path,
    method: Literal["query", "pages", "scp"],
    known_hosts: Path | None,
    client_keys: tuple[Path, ...],
    info_only: bool,
    as_json: bool,
) -> int:
    """Copy a SQLite file of another host here, verified."""
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
