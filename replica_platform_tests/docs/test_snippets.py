"""The blocks of every page: each is run, loaded, or says why not; names in the text exist."""

import configparser
import json
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from replica_platform.app.configured import configured
from replica_platform.app.launch import PROJECT
from replica_platform.app.settings import Settings
from replica_platform.cli.main import replica
from replica_platform.core.errors import PlatformError
from replica_platform.market.quotes.sources import load_sources
from replica_platform.market.watch import load_rules
from replica_platform.outbox.delivery.kinds import read_mappings
from replica_platform.replica import load_purposes
from replica_platform_tests.docs.snippets import (
    Snippet,
    WrongPage,
    is_shown,
    pages,
    snippets,
)


class NoReader:
    """The reader of a replay that is described and not started."""

    def query(self, sql: str, *, default: Any) -> list[tuple[Any, ...]]:
        return []

    def df(self, sql: str) -> Any:
        return None

    def status(self) -> Any:
        return None


# Of all blocks at most this part is not run.
MOST_NOT_RUN = 1 / 8
# Other files that a `read as` comment names, each by what the platform reads it with.
LOADERS: dict[str, Callable[[Path], Any]] = {
    "purposes": load_purposes,
    "mappings": lambda path: read_mappings(yaml.safe_load(path.read_text())),
    "watch rules": load_rules,
    "quote sources": lambda path: load_sources(path, NoReader()),
}
BLOCKS = [
    snippet
    for page in pages(PROJECT)
    for snippet in snippets(page.read_text("utf-8"), str(page.relative_to(PROJECT)))
]
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


def load(snippet: Snippet, folder: Path) -> None:
    """Load a block of data with what reads such a file in the platform.

    Raises:
        ValueError, PlatformError: It cannot be loaded; the text says why.
    """
    file = folder / "defs" / "entry" / "defs.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(snippet.text)
    if snippet.language == "json":
        json.loads(snippet.text)
    elif snippet.language == "toml":
        tomllib.loads(snippet.text)
    elif snippet.language == "ini":
        load_settings(snippet.text)
    elif "not run" in snippet.marks:
        list(yaml.safe_load_all(snippet.text))
    elif "read as" in snippet.marks:
        LOADERS[snippet.marks["read as"]](file)
    elif not configured(folder / "defs").entries:
        raise ValueError("it has no `type: replica_platform.components.…`; see `read as`")


def load_settings(text: str) -> None:
    """Load an `.env`, or the units and sections of another program's file."""
    if text.lstrip().startswith("["):
        configparser.ConfigParser(strict=False, interpolation=None).read_string(text)
        return
    given = dict(line.split("=", 1) for line in text.splitlines() if line and line[0] != "#")
    known = {
        str(field.alias or f"REPLICA_{name.upper()}").upper(): name
        for name, field in Settings.model_fields.items()
    }
    # Another name is one of the reader's, for the DSN of an entry.
    wrong = [name for name in given if name.startswith("REPLICA_") and name not in known]
    if wrong:
        raise ValueError(f"{wrong} are no settings")
    Settings(_env_file=None, **{known[name]: given[name] for name in given.keys() & known.keys()})


@pytest.mark.parametrize(
    "snippet",
    [one for one in BLOCKS if one.language in {"yaml", "toml", "ini", "json"}],
    ids=lambda one: one.where,
)
def test_a_block_of_data_is_loaded(
    snippet: Snippet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CRM_SALT", "VENDOR_TOKEN"):
        monkeypatch.setenv(name, "secret")
    load(snippet, tmp_path)


@pytest.mark.parametrize(
    ("language", "text", "says"),
    [
        (
            "yaml",
            "type: replica_platform.components.XminTables\nattributes: {tabels: []}",
            "tables: Field required",
        ),
        ("yaml", "type: replica_platform.components.XminTable\n", "there is no component"),
        ("yaml", "tables: [a]", "it has no `type"),
        ("ini", "REPLICA_PRT=1", "REPLICA_PRT"),
        ("ini", "REPLICA_PORT=many", "port"),
        ("toml", "a = ", "Invalid"),
        ("json", "{", "Expecting"),
    ],
)
def test_a_broken_block_of_data_is_noticed(
    language: str, text: str, says: str, tmp_path: Path
) -> None:
    (snippet,) = snippets(f"```{language}\n{text}\n```\n", "page.md")
    with pytest.raises((ValueError, PlatformError), match=says):
        load(snippet, tmp_path)


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    not_run = {one.where: one.marks["not run"] for one in BLOCKS if "not run" in one.marks}
    assert [where for where, why in not_run.items() if len(why.split()) < 3] == []
    assert len(not_run) <= MOST_NOT_RUN * len(BLOCKS), not_run


def test_another_test_that_runs_a_block_exists() -> None:
    for one in BLOCKS:
        file, _, name = one.marks.get("run by", "").partition("::")
        if not file:
            continue
        test = (PROJECT / file).read_text()
        assert f"def {name}(" in test, one.where
        # It calls the command, or runs the page as it stands.
        called = set(re.findall(r"\breplica ([a-z][a-z-]+)", one.text))
        if Path(one.page).name not in test:
            assert {command for command in called if command not in test} == set(), one.where


@pytest.mark.parametrize(
    "text",
    [
        "```\nno language\n```\n",
        "```bash\n$ not our word for it\n```\n",
        "```yaml\nno end\n",
        "<!-- nor run: because -->\n```yaml\na: 1\n```\n",
        "<!-- not run -->\n```yaml\na: 1\n```\n",
    ],
)
def test_a_block_that_cannot_be_used_is_refused(text: str) -> None:
    with pytest.raises(WrongPage, match=r"page.md:\d"):
        snippets(text, "page.md")


def test_a_drawing_is_no_command() -> None:
    commands = re.compile(r"(?:\$ |replica |make |pip |python |(?:\w+=\S+ )?pytest )")
    assert [
        one.where for one in BLOCKS if one.language == "text" and commands.match(one.text)
    ] == []
    assert commands.match("REPLICA_TORTURE=1 pytest -s x")


def test_blocks_are_found_with_their_comments() -> None:
    text = (
        "# Title\n<!-- elsewhere: a comment of the page -->\ntext\n\n"
        "<!-- before: a\nb -->\n<!-- stopped after: 2 s -->\n\n"
        '1. one\n\n   ```ini title=".env"\n   A=1\n   ```\n'
        "<!-- not run: it needs root -->\n```console\n$ a \\\n  b\n…\n$ c\n```\n"
    )
    one, other = snippets(text, "page.md")
    assert (one.line, one.title, one.text, one.marks) == (11, ".env", "A=1\n", {})
    assert (other.is_run, other.marks) == (False, {"not run": "it needs root"})
    assert [(c.line, c.output) for c in other.commands] == [("a \\\n  b", ("…",)), ("c", ())]
    (whole,) = snippets("<!-- run by: a::b -->\n# T\n```console\n$ a\n```\n", "page.md")
    assert whole.marks == {"run by": "a::b"}


def test_an_output_that_a_page_does_not_show_is_noticed() -> None:
    assert is_shown((), "anything\n")
    assert is_shown(("…", "red"), "a\nb\nred  \n")
    assert not is_shown(("…", "red"), "a\ngreen\n")
    assert not is_shown(("a",), "a\nb\n")


def spans() -> Iterator[tuple[str, str]]:
    """Yield each code span of a page with the page."""
    for page in pages(PROJECT):
        for span in SPAN.findall(page.read_text("utf-8")):
            yield page.name, span


def options_of(span: str) -> tuple[click.Command, list[str]] | None:
    """Return the command of `replica` that a span calls, and the options that it gives."""
    words = span.split()
    if words[0] != "replica" or len(words) < 2 or words[1] not in replica.commands:
        return None
    if words[1] == "env" and len(words) > 2:
        return options_of(" ".join(words[2:]))
    given = re.findall(r"(?<![\w-])--[a-z][\w-]*", span.split("|")[0])
    command = replica.commands[words[1]]
    if isinstance(command, click.Group) and len(words) > 2:
        command = command.commands.get(words[2], command)
    return command, given


def test_every_option_of_a_command_in_the_text_exists() -> None:
    wrong = []
    for page, span in spans():
        called = options_of(span)
        if called is None:
            continue
        command, given = called
        known = {"--help"}.union(*(one.opts + one.secondary_opts for one in command.params))
        wrong += [(page, span) for option in given if option not in known and "…" not in option]
    assert wrong == []
    assert options_of("replica sync T --souce DSN") == (replica.commands["sync"], ["--souce"])


def test_every_test_program_and_target_in_the_text_exists() -> None:
    tests = "\n".join(
        f"{file.name}\n{file.stem}\n" + file.read_text()
        for file in (PROJECT / "replica_platform_tests").rglob("test_*.py")
    )
    known = set(re.findall(r"\btest_\w+", tests))
    named = {name for _, span in spans() for name in re.findall(r"\btest_\w+(?![\w*])", span)}
    assert {name for name in named if name not in known and not name.endswith("_")} == set()
    targets = set(re.findall(r"^([a-z][\w-]*):", (PROJECT / "Makefile").read_text(), re.M))
    called = {
        (page, word)
        for page, span in spans()
        if span.startswith("make ")
        for word in shlex.split(span)[1:]
        if re.fullmatch(r"[a-z][\w-]*", word)
    }
    assert {one for one in called if one[1] not in targets} == set()
    programs = {
        (page, found)
        for page, span in [*spans(), *((one.page, one.text) for one in BLOCKS)]
        for found in re.findall(r"(?:python |pytest (?:-s )?)(\w+/[\w/]+\.py)\b", span)
    }
    assert {one for one in programs if not (PROJECT / one[1]).exists()} == set()
