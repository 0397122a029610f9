"""The fault drill of the whole platform, in a sandbox."""

import signal
import sys
from pathlib import Path

import click

from replica_platform.cli.common import as_json_option
from replica_platform.cli.terminal import err, out, plain, print_json, print_table, verdict


@click.command()
@click.argument("damages", nargs=-1, metavar="[DAMAGE]...")
@click.option(
    "--off",
    multiple=True,
    metavar="NAME",
    help="A schedule or sensor of the sandbox to switch off, to see that its work is missed.",
)
@click.option(
    "--within",
    "within_s",
    type=click.FloatRange(1, 3600),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="The time in which everything should be healed.",
)
@click.option(
    "--keep", type=click.Path(path_type=Path), help="An empty folder for the sandbox; it is kept."
)
@as_json_option
def drill(
    damages: tuple[str, ...],
    off: tuple[str, ...],
    within_s: float,
    keep: Path | None,
    as_json: bool,
) -> int:
    """Break each pillar in a sandbox, and see it healed.

    A temporary project with its own Postgres and daemon is damaged: nothing of yours is touched.
    The exit code is 0 only when everything was noticed and healed. The sandbox's sensors look more
    often than those of a platform do by default.
    """
    # What stops the command, such as a CI server, ends its daemon and its Postgres too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    from replica_platform.app.drill.drill import run_drill

    def say(step: str) -> None:
        if not as_json:
            err.print(f"[dim]{plain(step)}[/]")

    report = run_drill(damages, off=off, within_s=within_s, keep=keep, progress=say)
    if as_json:
        print_json(report)
        return int(not report.ok)
    print_table(
        ("damage", "what was done", "noticed by", "noticed", "healed"),
        [
            (one.fault, one.what, one.noticed_by, _after(one.noticed_s), _after(one.healed_s))
            for one in report.faults
        ],
    )
    (out if report.ok else err).print(f"{verdict(report.ok)} {plain(report.sentence)}")
    return int(not report.ok)


def _after(seconds: float | None) -> str:
    return "no" if seconds is None else f"{seconds:.1f} s"
