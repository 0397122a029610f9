"""The `replica` command: thin, one function a subcommand (in `commands`), no work of its own.

Exit code 0 only when all is well, 1 when something is not, 2 for a wrong call. Errors go to
stderr as one sentence that says what to do next.
"""

import errno
import sys
from typing import NoReturn

import click
from pydantic import ValidationError

from replica_platform.cli import backups as backup
from replica_platform.cli import outbox, platform, warehouse
from replica_platform.cli import replica as replica_commands
from replica_platform.cli.terminal import complain, err
from replica_platform.core.errors import PlatformError

DISK_TROUBLE = {
    errno.ENOSPC: "the disk is full; make room, then run this again",
    errno.EDQUOT: "the quota is used up; make room, then run this again",
    errno.ENOTDIR: "a file stands where a folder is needed; move it, or set REPLICA_DATA_DIR",
    errno.EEXIST: "a file stands where a folder is needed; move it, or set REPLICA_DATA_DIR",
    errno.EROFS: "the file system is read-only; set REPLICA_DATA_DIR to a folder to write to",
    errno.EACCES: "permission is missing; give it, or set REPLICA_DATA_DIR to another folder",
    errno.EPERM: "permission is missing; give it, or set REPLICA_DATA_DIR to another folder",
}


class InOrder(click.Group):
    """Lists its commands as they are added, pillar by pillar, instead of by the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="replica-platform")
def replica() -> None:
    """One writer, many readers, nothing lost."""


for command in (
    platform.run,
    platform.dev,
    platform.status,
    platform.env,
    replica_commands.publish,
    replica_commands.verify,
    replica_commands.rollback,
    replica_commands.push,
    replica_commands.pull_generation,
    replica_commands.repair,
    replica_commands.quotes,
    warehouse.sync,
    warehouse.validate,
    warehouse.tune,
    outbox.append,
    outbox.drain,
    outbox.dead,
    outbox.doctor,
    backup.backup,
    backup.restore,
    backup.pull,
):
    replica.add_command(command)


def main() -> NoReturn:
    """Run the command; turn what people can act on into one sentence and an exit code."""
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
    except ValidationError as error:
        code = complain(_setting_at_fault(error))
    except OSError as error:
        if error.errno not in DISK_TROUBLE:
            raise
        code = complain(f"{error.filename or 'A write'}: {DISK_TROUBLE[error.errno]}.")
    sys.exit(code)


def _setting_at_fault(error: ValidationError) -> str:
    """The first setting that is not valid, by its environment variable, without its value."""
    first = error.errors()[0]
    name = "_".join(str(part) for part in first["loc"]).upper()
    name = name if name.startswith("XMIN_") else f"REPLICA_{name.removeprefix('REPLICA_')}"
    return f"The setting {name} is not valid: {first['msg']}."


if __name__ == "__main__":
    main()
