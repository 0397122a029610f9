"""Commands, Python and SQL of every page, run from top to bottom in one project with the sample."""

import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from replica_platform.app.embedded import binaries, running
from replica_platform.app.launch import PROJECT
from replica_platform.app.project import init_project
from replica_platform.app.settings import Settings
from replica_platform_tests.docs.running import Reader, SnippetFails
from replica_platform_tests.docs.snippets import Snippet, pages, snippets

pytestmark = pytest.mark.timeout(600)
RUN = {"console", "python", "sql"}
DROPPED = ("REPLICA_", "XMIN_", "DAGSTER_", "PYTEST_", "VIRTUAL_ENV")


def of_page(page: Path) -> list[Snippet]:
    """Return the blocks of a page that are run, and the files that they need."""
    found = snippets(page.read_text("utf-8"), str(page.relative_to(PROJECT)))
    return [one for one in found if one.is_run and (one.title or one.language in RUN)]


PAGES = [page for page in pages(PROJECT) if any(one.language in RUN for one in of_page(page))]


@dataclass(frozen=True)
class Project:
    """A project in which the sample was run once, and what a shell in it has."""

    folder: Path
    environment: Mapping[str, str]


@pytest.fixture(scope="module")
def project() -> Iterator[Project]:
    # Not below pytest's folder, which is private: started by root, Postgres is another user.
    with tempfile.TemporaryDirectory(prefix="rp-") as home:
        folder = Path(home) / "my_platform"
        init_project(folder)
        settings = Settings(_env_file=None, data_dir=folder / "data")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(DROPPED)}
        path = [sysconfig.get_path("scripts"), os.environ["PATH"], str(binaries())]
        environment = {
            **kept,
            **settings.environment(),
            "DAGSTER_HOME": str(folder),
            "VIRTUAL_ENV": sys.prefix,
            "PATH": os.pathsep.join(path),
            "PYTHONPATH": str(PROJECT),
            "COLUMNS": "200",
            "HOME": home,
        }
        with running(settings.postgres_dir) as server:
            for name in settings.databases:
                server.make_database(name)
            ran = subprocess.run(
                ["replica", "run"], cwd=folder, env=environment, capture_output=True, text=True
            )
            assert ran.returncode == 0, ran.stdout + ran.stderr
            yield Project(folder, environment)


@pytest.fixture
def reader(project: Project, tmp_path: Path) -> Iterator[Reader]:
    with Reader(project.folder, project.environment, tmp_path) as reader:
        yield reader


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_from_top_to_bottom(page: Path, reader: Reader) -> None:
    for snippet in of_page(page):
        reader.follow(snippet)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("```console\n$ replica status --bogus\n```\n", "No such option"),
        ("```console\n$ echo a\nb\n```\n", "the page shows:\nb\nseen:\na"),
        ("```console\n$ cd data && export A=1\n$ false\n```\n", "ends with 1"),
        ("```python\nimport replica_platform.nothing\n```\n", "ModuleNotFoundError"),
        ("```sql\nselect nothing;\n```\n", 'column "nothing" does not exist'),
        ("<!-- before: false -->\n```console\n$ true\n```\n", "ends with 1"),
        ("<!-- stopped after: 1 s -->\n```console\n$ trap '' INT; sleep 99\n```\n", "after Ctrl-C"),
        ("<!-- stopped after: 9 s -->\n```console\n$ true\n```\n", "it ended by itself"),
    ],
)
def test_a_broken_block_is_noticed(text: str, says: str, reader: Reader) -> None:
    (snippet,) = snippets(text, "page.md")
    with pytest.raises(SnippetFails, match=says):
        reader.follow(snippet)


def test_blocks_of_a_page_build_on_each_other(reader: Reader) -> None:
    text = (
        "```console\n$ export A=1; mkdir -p x; cd x\n$ echo $A; basename $PWD\n1\nx\n```\n"
        "```python\na = 1\n```\n```python\nassert a == 1\n```\n"
        '```sql title="one.sql"\nselect 1;\n```\n'
        "<!-- stopped after: 1 s -->\n```console\n$ sleep 60\n```\n"
    )
    for snippet in snippets(text, "page.md"):
        reader.follow(snippet)


def test_make_is_looked_up_and_not_run(reader: Reader) -> None:
    good, bad = (
        snippets(f"```console\n$ make {target}\n```\n", "page.md")[0]
        for target in ("run && make status", "nothing")
    )
    reader.follow(good)
    with pytest.raises(SnippetFails, match="ends with 2"):
        reader.follow(bad)
