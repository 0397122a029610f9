"""Commands of lakes: what is in them, and their upkeep."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from replica_platform.cli.common import as_json_option
from replica_platform.cli.terminal import err, out, plain, print_json, verdict

if TYPE_CHECKING:
    from replica_platform.app.entries import LakeMasterEntry
    from replica_platform.core.reports import Report
    from replica_platform.lake import Lake

NONE = (
    "No lake is configured; `dg scaffold defs replica_platform.components.LakeMaster NAME` writes "
    "an entry."
)


@click.group()
def lake() -> None:
    """Show the lakes that are configured, or maintain them."""


@lake.command()
@click.argument("names", nargs=-1)
@as_json_option
def status(names: tuple[str, ...], as_json: bool) -> int:
    """Show snapshots, files, orphans and missing files of all lakes, or of those that are named.

    The exit code is 0 only when no file is missing.
    """
    from replica_platform.lake import status as lake_status

    def look(entry: "LakeMasterEntry", place: "Lake") -> "Report":
        return lake_status(place, orphan_age_s=entry.orphan_age_s)

    return _print(_for_each(names, look), as_json)


@lake.command()
@click.argument("names", nargs=-1)
@as_json_option
def maintain(names: tuple[str, ...], as_json: bool) -> int:
    """Merge small files, expire old snapshots and remove orphans, as the schedule does.

    Of all lakes, or of those that are named.
    """
    from replica_platform.lake import maintain as maintain_lake

    def keep(entry: "LakeMasterEntry", place: "Lake") -> "Report":
        return maintain_lake(place, keep_s=entry.keep_snapshots_s, orphan_age_s=entry.orphan_age_s)

    return _print(_for_each(names, keep), as_json)


def _for_each(
    names: Sequence[str], call: "Callable[[LakeMasterEntry, Lake], Report]"
) -> "dict[str, Report]":
    from replica_platform.app.configured import configured
    from replica_platform.app.lakes import lake_of, named_entries
    from replica_platform.app.launch import platform_up
    from replica_platform.app.settings import Settings

    settings = Settings()
    entries = named_entries(configured(sample=settings.sample), names)
    if not entries:
        return {}
    with platform_up(settings):
        lakes = [(one, lake_of(one, settings.target, settings.path)) for one in entries]
        return {entry.name: call(entry, place) for entry, place in lakes}


def _print(found: "dict[str, Report]", as_json: bool) -> int:
    if as_json:
        print_json(found)
    elif not found:
        out.print(plain(NONE))
    else:
        for name, one in found.items():
            to = out if one.ok else err
            to.print(f"{verdict(one.ok)} {plain(name)}: {plain(one.sentence)}")
    return int(not all(one.ok for one in found.values()))
