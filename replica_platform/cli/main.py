"""The `replica` program: its commands by pillar, their former names, errors and exit codes.

The exit code is 0 only when all is well, 1 when something is not, 2 for a wrong call. Errors go to
stderr as one sentence that says what to do next.
"""

import errno
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from replica_platform.cli import (
    adopt,
    backups,
    cluster,
    deck,
    drill,
    lake,
    market,
    metrics,
    outbox,
    platform,
    warehouse,
)
from replica_platform.cli import replica as generations
from replica_platform.cli.terminal import complain, err
from replica_platform.core.errors import PlatformError

if TYPE_CHECKING:
    from pydantic import ValidationError

PILLARS: dict[str, tuple[click.Command, ...]] = {
    "Platform": (
        platform.init,
        platform.run,
        platform.dev,
        platform.status,
        metrics.metrics,
        deck.deck,
        drill.drill,
        platform.env,
    ),
    "Cluster": (cluster.worker, cluster.cluster),
    "Replica": (
        generations.publish,
        generations.verify_generation,
        generations.rollback_generation,
        generations.push_generation,
        generations.pull_generation,
        generations.diff_generations,
        generations.prune_blocks,
        generations.repair_store,
        generations.scrub_store,
    ),
    "Lakes": (lake.lake,),
    "Market": (market.backfill, market.quotes, market.chart),
    "Warehouse": (
        adopt.adopt,
        warehouse.sync,
        warehouse.validate,
        warehouse.forget_table,
        warehouse.tune,
    ),
    "Outbox": (outbox.append, outbox.drain, outbox.dead, outbox.doctor),
    "Backups": (
        backups.backup,
        backups.fetch_manifests,
        backups.verify_backup,
        backups.restore_backup,
        backups.pull_sqlite,
    ),
}

# Names until version 0.1; they work for one more release and are not listed.
FORMER_NAMES = {
    "verify": "verify-generation",
    "rollback": "rollback-generation",
    "push": "push-generation",
    "repair": "repair-store",
    "restore": "restore-backup",
    "pull": "pull-sqlite",
}

DISK_TROUBLE = {
    errno.ENOSPC: "the disk is full; free some space, then run this again",
    errno.EDQUOT: "the quota is used up; free some space, then run this again",
    errno.ENOTDIR: "a file stands where a folder is needed; move it, or set REPLICA_DATA_DIR",
    errno.EEXIST: "a file stands where a folder is needed; move it, or set REPLICA_DATA_DIR",
    errno.EROFS: "the file system is read-only; set REPLICA_DATA_DIR to a writable folder",
    errno.EACCES: "permission is missing; give it, or set REPLICA_DATA_DIR to another folder",
    errno.EPERM: "permission is missing; give it, or set REPLICA_DATA_DIR to another folder",
}


class ByPillar(click.Group):
    """A group that lists its commands by pillar and accepts their former names."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, pillar by pillar."""
        return [str(command.name) for commands in PILLARS.values() for command in commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by its name or its former name."""
        return super().get_command(ctx, FORMER_NAMES.get(cmd_name, cmd_name))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for each pillar, all with columns of the same width."""
        width = max(len(name) for name in self.list_commands(ctx))
        limit = formatter.width - 6 - width
        for pillar, commands in PILLARS.items():
            rows = [
                (str(command.name).ljust(width), command.get_short_help_str(limit))
                for command in commands
            ]
            with formatter.section(pillar):
                formatter.write_dl(rows)


@click.group(cls=ByPillar, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="replica-platform")
def replica() -> None:
    """One writer, many readers, nothing lost."""


for commands in PILLARS.values():
    for command in commands:
        replica.add_command(command)


def main() -> NoReturn:
    """Run the command; print an error that a person can act on as one sentence, and exit."""
    try:
        code = replica(standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        err.print("Stopped.")
        code = 130
    except PlatformError as error:
        code = complain(str(error))
    except OSError as error:
        if error.errno not in DISK_TROUBLE:
            raise
        code = complain(f"{error.filename or 'A write'}: {DISK_TROUBLE[error.errno]}.")
    except ValueError as error:
        # Not imported here: no light command needs pydantic, whose import takes 0.1 s.
        pydantic = sys.modules.get("pydantic")
        if pydantic is None or not isinstance(error, pydantic.ValidationError):
            raise
        code = complain(_invalid_setting(error))
    sys.exit(code)


def _invalid_setting(error: "ValidationError") -> str:
    """Return which setting is not valid, by its environment variable and without its value."""
    first = error.errors()[0]
    name = "_".join(str(part) for part in first["loc"]).upper()
    name = name if name.startswith("XMIN_") else f"REPLICA_{name.removeprefix('REPLICA_')}"
    return f"The setting {name} is not valid: {first['msg']}."


if __name__ == "__main__":
    main()
