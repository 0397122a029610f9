"""Names and help of the commands: documented, complete, and quick to print."""

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import replica_platform
from replica_platform.cli.main import FORMER_NAMES, PILLARS, replica

PACKAGE = Path(replica_platform.__file__).parent
PROJECT = PACKAGE.parent
DOCS = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
CALL = re.compile(r"(?<![\w./-])replica ([a-z][a-z-]*)")


def commands_in_code(text: str) -> set[str]:
    """Return the commands that code spans and code blocks of a text call."""
    return {name for code in CODE.findall(text) for name in CALL.findall(code)}


def test_every_command_is_documented_and_every_documented_command_exists() -> None:
    documented = {path: commands_in_code(path.read_text()) for path in DOCS}
    assert {
        (path.name, name)
        for path, names in documented.items()
        for name in names - replica.commands.keys()
    } == set()
    assert replica.commands.keys() - set().union(*documented.values()) == set()


def test_every_command_that_a_sentence_of_the_program_names_exists() -> None:
    named = {
        (path.name, name)
        for path in PACKAGE.rglob("*.py")
        for name in CALL.findall("".join(re.findall(r"`[^`]+`", path.read_text())))
    }
    known = {*replica.commands, *FORMER_NAMES}
    assert {one for one in named if one[1] not in known} == set()


def test_commands_are_found_in_code_only() -> None:
    text = "the replica is here, `replica sync T`, `data/replica x`\n```\n$ replica run\n```"
    assert commands_in_code(text) == {"sync", "run"}


@pytest.mark.parametrize(("former", "name"), FORMER_NAMES.items())
def test_a_former_name_calls_the_same_command_and_is_not_listed(former: str, name: str) -> None:
    context = click.Context(replica)
    assert replica.get_command(context, former) is replica.get_command(context, name)
    runner = CliRunner()
    assert runner.invoke(replica, [former, "--help"]).exit_code == 0
    wrong = runner.invoke(replica, [former])
    assert wrong.exit_code == 2
    assert "Missing" in wrong.output
    assert f"  {former} " not in runner.invoke(replica, ["--help"]).output


def test_help_lists_every_command_below_its_pillar_in_full() -> None:
    text = CliRunner().invoke(replica, ["--help"], terminal_width=80).output
    for pillar, commands in PILLARS.items():
        section = text.split(f"{pillar}:\n")[1].split("\n\n")[0]
        listed = [line.split()[0] for line in section.splitlines()]
        assert listed == [command.name for command in commands]
    assert "..." not in text.split("Platform:")[1]


@pytest.mark.parametrize("name", sorted(replica.commands))
def test_every_command_and_every_option_has_a_sentence(name: str) -> None:
    command = replica.commands[name]
    assert command.help
    assert command.help.split("\n")[0].endswith(".")
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name
            assert option.help.endswith("."), option.help
    assert CliRunner().invoke(replica, [name, "--help"]).exit_code == 0


# What each call may not load; its import takes longer than the work.
HEAVY = {"dagster", "pandas", "duckdb"}
HEAVIER_THAN_HELP = HEAVY | {"psycopg", "pydantic", "rich.progress", "rich.table", "asyncio"}


# A sync needs the driver, but no settings where none is set, and nothing of a validation.
HEAVIER_THAN_SYNC = HEAVY | {
    "pydantic",
    "rich.progress",
    "replica_platform.xmin.integrity.validate",
    "replica_platform.xmin.frames.upsert",
}
# A status looks at everything and does nothing.
HEAVIER_THAN_STATUS = {
    *("dagster", "pandas", "rich.progress", "rich.table"),
    "replica_platform.backup.take",
    "replica_platform.backup.restore",
    "replica_platform.replica.publish",
    "replica_platform.replica.reader",
    "replica_platform.xmin.group",
    "replica_platform.xmin.blocks.reading",
}
NOBODY = "postgresql://127.0.0.1:1/none"


@pytest.mark.parametrize(
    ("call", "heavy", "code"),
    [
        ("--help", HEAVIER_THAN_HELP, 0),
        ("--version", HEAVIER_THAN_HELP - {"asyncio"}, 0),
        ("sync --help", HEAVIER_THAN_HELP, 0),
        (f"sync t --source {NOBODY} --target {NOBODY}", HEAVIER_THAN_SYNC, 1),
        ("env", HEAVY, 0),
        ("status", HEAVIER_THAN_STATUS, 1),
    ],
)
def test_light_commands_load_no_heavy_modules(
    call: str, heavy: set[str], code: int, tmp_path: Path
) -> None:
    program = (
        "import sys\n"
        "from replica_platform.cli.main import main\n"
        f"sys.argv = ['replica', *{call.split()!r}]\n"
        "try:\n    main()\n"
        "except SystemExit as ended:\n"
        f"    print(sorted({heavy!r} & sys.modules.keys()), ended.code)\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(PROJECT)},
    )
    assert finished.stdout.splitlines()[-1] == f"[] {code}"
