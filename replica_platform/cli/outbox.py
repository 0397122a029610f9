"""Workers' records: append, drain, the dead rows, and what durability stands on."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from replica_platform.app.settings import Settings
from replica_platform.cli.common import FOUND, PATH, as_json_option, on_signal, print_sentence
from replica_platform.cli.terminal import (
    bar,
    complain,
    out,
    plain,
    print_json,
    print_table,
    verdict,
)
from replica_platform.core.errors import PlatformError

if TYPE_CHECKING:
    from replica_platform.outbox import DrainReport
from replica_platform.core.reports import format_age


@click.command()
@click.option("--outbox", type=PATH, required=True, help="The worker's file; made if absent.")
@click.option("--kind", required=True, help="What the records are, such as `conversation`.")
def append(outbox: Path, kind: str) -> int:
    """Append JSON lines from stdin.

    Prints each id once its record is durable.
    """
    from replica_platform.outbox import Outbox

    bad = 0
    with Outbox(outbox) as box:
        for number, line in enumerate(sys.stdin.buffer, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                click.echo(box.append(kind, record, id=_given_id(record)))
            except (ValueError, PlatformError) as error:
                bad += 1
                complain(f"line {number} was not appended: {error}")
    return int(bad > 0)


def _given_id(record: Any) -> str | None:
    """The record's own id where it is a UUID, so that the same line twice is one record."""
    try:
        return str(UUID(record["id"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


@click.command()
@click.option(
    "--outbox",
    "outboxes",
    type=FOUND,
    multiple=True,
    required=True,
    help="A worker's file or a folder of them; may be repeated.",
)
@click.option("--target", required=True, help="DSN of the database to deliver to.")
@click.option("--watch", is_flag=True, help="Go on as records come, until SIGTERM.")
@as_json_option
def drain(outboxes: tuple[Path, ...], target: str, watch: bool, as_json: bool) -> int:
    """Deliver what waits in outboxes to the target, once."""
    from replica_platform.outbox import drain as drain_once
    from replica_platform.outbox import watch as drain_for_ever

    stop = on_signal()
    if watch:
        drain_for_ever(outboxes, target, stop=stop, on_report=lambda r: _print_report(r, as_json))
        return 0
    with bar("draining") as progress:
        # A person who asks is not kept waiting by the breaker: it is for schedules and agents.
        report = drain_once(outboxes, target, stop=stop, force=True, progress=progress)
    return print_sentence(report, as_json)


def _print_report(report: "DrainReport", as_json: bool) -> None:
    """A line a round of the agent, where it did something."""
    if report.delivered or not report.ok:
        print_sentence(report, as_json)


@click.command()
@click.option("--outbox", type=FOUND, required=True, help="The worker's file.")
@click.option("--replay", is_flag=True, help="Try the dead rows again at the next drain.")
@click.option(
    "--settle", is_flag=True, help="Take the conflicts as seen; the target keeps its own."
)
@as_json_option
def dead(outbox: Path, replay: bool, settle: bool, as_json: bool) -> int:
    """List records that cannot be delivered.

    Those that the target refuses as they are, and those that came again with other content.
    """
    from replica_platform import outbox as engine

    if replay or settle:
        done = {}
        if replay:
            done["replayed"] = engine.replay(outbox)
        if settle:
            done["settled"] = engine.settle(outbox)
        if as_json:
            print_json(done)
        else:
            out.print(", ".join(f"{count:,} {what}" for what, count in done.items()) + ".")
        return 0
    rows, conflicts = engine.dead(outbox), engine.conflicts(outbox)
    if as_json:
        print_json({"dead": rows, "conflicts": conflicts})
        return int(bool(rows or conflicts))
    if rows:
        print_table(
            ("seq", "id", "kind", "since", "attempts", "error"),
            [(r.seq, r.id, r.kind, format_age(r.age_s), r.attempts, r.error) for r in rows],
        )
    if conflicts:
        print_table(
            ("seq", "id", "kind", "other content is in"),
            [(c.seq, c.id, c.kind, c.table) for c in conflicts],
        )
    if not rows and not conflicts:
        out.print("No row is dead, none is in conflict.")
    return int(bool(rows or conflicts))


@click.command()
@click.option(
    "--outbox",
    "outboxes",
    type=FOUND,
    multiple=True,
    help="A worker's file or a folder of them; those in force otherwise.",
)
@click.option("--target", help="DSN of the target; the one in force otherwise.")
@as_json_option
def doctor(outboxes: tuple[Path, ...], target: str | None, as_json: bool) -> int:
    """Examine what durability stands on.

    SQLite, the file system, the disk, the target's settings, the clocks.
    """
    from replica_platform.app.launch import platform_up
    from replica_platform.outbox import doctor as examine

    settings = Settings()
    with platform_up(settings):
        paths = outboxes or sorted(settings.outbox_dir.glob("*.db"))
        findings = examine(paths, target or settings.target)
    if as_json:
        print_json(findings)
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            mark = verdict(finding.ok) + " " * finding.ok  # as wide as RED
            out.print(f"{mark} {plain(finding.name):<{width}}  {plain(finding.sentence)}")
    return int(not all(finding.ok for finding in findings))
