"""Commands of workers' outboxes: append, drain, records that cannot be delivered, self-test."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import click

from replica_platform.cli.common import FOUND, PATH, as_json_option, on_signal, print_sentence
from replica_platform.cli.endpoint import check_metrics_options, metrics_options, serving_watched
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
from replica_platform.core.reports import format_age

if TYPE_CHECKING:
    from replica_platform.app.watch_metrics import DrainMetrics
    from replica_platform.outbox import ConflictRow, DeadRow, DrainReport

Command = TypeVar("Command", bound=Callable[..., Any])


def _outboxes_option(*, required: bool) -> Callable[[Command], Command]:
    default = "" if required else "; those in force otherwise"
    return click.option(
        "--outbox",
        "outboxes",
        type=FOUND,
        multiple=True,
        required=required,
        help=f"A worker's file or a folder of them; may be repeated{default}.",
    )


@click.command()
@click.option("--outbox", type=PATH, required=True, help="The worker's file; made if absent.")
@click.option("--kind", required=True, help="The kind of the records, such as `conversation`.")
def append(outbox: Path, kind: str) -> int:
    """Append JSON lines from stdin to an outbox.

    The id of each record is printed once the record is durable.
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
    """Return the record's `id` if it is a UUID, so that the same line twice is one record."""
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
    help="A worker's file or a folder of them; may be repeated.",
)
@click.option("--target", required=True, help="DSN of the database to deliver to.")
@click.option("--mappings", type=FOUND, help="YAML: the kinds that fill a table of their own.")
@click.option("--watch", is_flag=True, help="Keep delivering new records until SIGTERM.")
@click.option("--repair", is_flag=True, help="Send again what was deleted from the target.")
@click.option(
    "--refill", metavar="KIND", help="Fill this kind's table from outbox.record; needs --mappings."
)
@metrics_options
@as_json_option
def drain(
    outboxes: tuple[Path, ...],
    target: str,
    mappings: Path | None,
    watch: bool,
    repair: bool,
    refill: str | None,
    metrics_port: int | None,
    metrics_host: str,
    as_json: bool,
) -> int:
    """Deliver waiting records of outboxes to the target.

    Each record arrives once, also when a drain is interrupted and repeated.
    """
    if watch and (repair or refill):
        raise click.UsageError("--repair and --refill run once; leave --watch out.")
    if refill and mappings is None:
        raise click.UsageError("--refill needs --mappings, which names the kind's table.")
    if not refill and not outboxes:
        raise click.UsageError("Name the outboxes with --outbox.")
    check_metrics_options(metrics_port, metrics_host, goes_on=watch)
    from replica_platform import outbox as engine

    tables = _read_mappings(mappings)
    if refill:
        with bar("refilling") as progress:
            filled = engine.refill(target, refill, tables, progress=progress)
        return print_sentence(filled, as_json)
    stop = on_signal()
    if watch:
        with serving_watched(_drain_metrics, metrics_host, metrics_port) as metrics:

            def show(report: "DrainReport") -> None:
                if metrics:
                    metrics.add_drain(report)
                _print_report(report, as_json)

            engine.watch(outboxes, target, stop=stop, mappings=tables, on_report=show)
        return 0
    with bar("draining") as progress:
        # The breaker's waiting time is for schedules and agents, not for a person.
        report = engine.drain(
            outboxes,
            target,
            stop=stop,
            force=True,
            repair=repair,
            mappings=tables,
            progress=progress,
        )
    return print_sentence(report, as_json)


def _drain_metrics() -> "DrainMetrics":
    from replica_platform.app.watch_metrics import DrainMetrics

    return DrainMetrics()


def _read_mappings(path: Path | None) -> dict[str, Any]:
    import yaml

    if path is None:
        return {}
    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise click.UsageError(f"{path} is not YAML: {error}") from error
    if not isinstance(found, dict):
        raise click.UsageError(f"{path} has no mappings; write kind: {{table, key, columns}}.")
    return found


def _print_report(report: "DrainReport", as_json: bool) -> None:
    """Print a round of `--watch` that delivered something or met a problem."""
    if report.delivered or not report.ok:
        print_sentence(report, as_json)


@click.command()
@click.option("--outbox", type=FOUND, required=True, help="The worker's file or a folder of them.")
@click.option("--replay", is_flag=True, help="Try the dead records again with the next drain.")
@click.option("--dismiss", is_flag=True, help="Forget the conflicts; the target keeps its content.")
@click.option("--settle", is_flag=True, hidden=True, help="The former name of --dismiss.")
@as_json_option
def dead(outbox: Path, replay: bool, dismiss: bool, settle: bool, as_json: bool) -> int:
    """List records that cannot be delivered.

    Dead records are refused by the target as they are; conflicts arrived again with other content.
    """
    from replica_platform import outbox as engine

    files = [Path(one.path) for one in engine.backlog([outbox]).files]
    if not files:
        return complain(f"There is no outbox in {outbox}; name a worker's file or its folder.")
    if replay or dismiss or settle:
        done = {}
        if replay:
            done["replayed"] = sum(engine.replay(file) for file in files)
        if dismiss or settle:
            done["settled"] = sum(engine.settle(file) for file in files)
        if as_json:
            print_json(done)
        else:
            _print_resolved(done)
        return 0
    rows = [row for file in files for row in engine.dead(file)]
    conflicts = [row for file in files for row in engine.conflicts(file)]
    if as_json:
        print_json({"dead": rows, "conflicts": conflicts})
    else:
        _print_undelivered(rows, conflicts)
    return int(bool(rows or conflicts))


def _print_resolved(done: dict[str, int]) -> None:
    words = {"replayed": "Dead records for the next drain", "settled": "Conflicts dismissed"}
    out.print(" ".join(f"{words[name]}: {count:,}." for name, count in done.items()))


def _print_undelivered(rows: "Sequence[DeadRow]", conflicts: "Sequence[ConflictRow]") -> None:
    if rows:
        print_table(
            ("file", "seq", "id", "kind", "age", "attempts", "error"),
            [(r.path, r.seq, r.id, r.kind, format_age(r.age_s), r.attempts, r.error) for r in rows],
        )
    if conflicts:
        print_table(
            ("file", "seq", "id", "kind", "other content is in"),
            [(c.path, c.seq, c.id, c.kind, c.table) for c in conflicts],
        )
    if not rows and not conflicts:
        out.print("No row is dead, none is in conflict.")


@click.command()
@_outboxes_option(required=False)
@click.option("--target", help="DSN of the target; the one in force otherwise.")
@as_json_option
def doctor(outboxes: tuple[Path, ...], target: str | None, as_json: bool) -> int:
    """Examine what the durability of records depends on.

    SQLite, the file system, the disk, the target's settings, the clocks.
    """
    from replica_platform.app.launch import platform_up
    from replica_platform.app.settings import Settings
    from replica_platform.outbox import doctor as examine

    settings = Settings()
    with platform_up(settings):
        paths = outboxes or (settings.outbox_dir,)
        findings = examine(paths, target or settings.target)
    if as_json:
        print_json(findings)
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            mark = verdict(finding.ok, padded=True)
            out.print(f"{mark} {plain(finding.name):<{width}}  {plain(finding.sentence)}")
    return int(not all(finding.ok for finding in findings))
