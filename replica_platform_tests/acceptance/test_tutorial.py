"""The tutorial as it stands, from a built wheel, in an environment outside any clone."""

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from replica_platform.app.launch import PROJECT
from replica_platform_tests.acceptance.conftest import WITHIN_MS
from replica_platform_tests.acceptance.pages import Pages
from replica_platform_tests.chromium import needs_chromium

OF_TUTORIAL = ("shop/customer", "shop/purchase", "sales", "visits")
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Command:
    """A line after a prompt, and the lines below it; `…` stands for any lines."""

    line: str
    output: tuple[str, ...]


def commands_of(block: str) -> Iterator[Command]:
    """Yield each command of a block with the output that the page shows."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        line, *output = part.splitlines()
        yield Command(line, tuple(output))


def is_shown(shown: tuple[str, ...], output: str) -> bool:
    """Whether an output is what the page shows of it."""
    lines = [".*" if line == "…" else re.escape(line) + "\n" for line in shown]
    return re.fullmatch("".join(lines), output, re.DOTALL) is not None


def test_an_output_that_the_page_does_not_show_is_noticed() -> None:
    assert is_shown((), "")
    assert not is_shown((), "a\n")
    assert is_shown(("…", "red"), "a\nb\nred\n")
    assert not is_shown(("…", "red"), "a\ngreen\n")
    (one, other) = commands_of("$ a b\n$ c\n1|2\n")
    assert (one.line, one.output, other.output) == ("a b", (), ("1|2",))


class Installation:
    """An environment with the wheel; what it requires is taken from this one."""

    def __init__(self, folder: Path, data: Path) -> None:
        wheels = folder / "wheels"
        pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", wheels, PROJECT)
        (wheel,) = wheels.glob("*.whl")
        self.bin = folder / "env" / "bin"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
        pip("--python", self.bin / "python", "install", "--no-deps", "--no-index", wheel)
        (packages,) = folder.glob("env/lib/python*/site-packages")
        # Not a site folder there, so the link to this clone in it counts for nothing.
        (packages / "required.pth").write_text(sysconfig.get_path("purelib") + "\n")
        # The programs of Dagster call the Python in their first line.
        for name in ("dg", "dagster", "dagster-daemon", "dagster-webserver"):
            _, _, program = Path(sysconfig.get_path("scripts"), name).read_text().partition("\n")
            (self.bin / name).write_text(f"#!{self.bin / 'python'}\n{program}")
            (self.bin / name).chmod(0o755)
        self._data = data
        self.folder = folder

    @property
    def environment(self) -> dict[str, str]:
        """What a shell has where this environment is activated, and nothing of this one."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("REPLICA_", "PYTHON", "DAGSTER_", "VIRTUAL_ENV"))
        }
        return {**kept, "PATH": os.pathsep.join([str(self.bin), os.environ["PATH"]])}

    @property
    def served(self) -> dict[str, str]:
        """The same, with the data folder of the project, by which its processes are found."""
        return self.environment | {"REPLICA_DATA_DIR": str(self.folder / "data")}

    def run(self, line: str) -> subprocess.CompletedProcess[str]:
        """Run a line of the page as bash, and keep the folder that it changes to."""
        done = subprocess.run(
            ["bash", "-c", f'{line}\ncode=$?; pwd > "$HERE"; exit $code'],
            cwd=self.folder,
            env={**self.environment, "COLUMNS": "200", "HERE": str(self._data / "here")},
            capture_output=True,
            text=True,
        )
        self.folder = Path((self._data / "here").read_text().strip())
        return done


def pip(*arguments: object) -> None:
    call = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def installation(folder: Path) -> Installation:
    return Installation(folder, folder)


@pytest.fixture(scope="module")
def followed() -> Iterator[Installation]:
    """The installation and its project, when every block of the page has been followed."""
    # Not below pytest's folder, which is private: started by root, Postgres is another user.
    with tempfile.TemporaryDirectory(prefix="rp-") as folder:
        installation = Installation(Path(folder), Path(folder))
        commands = 0
        for language, title, block in BLOCK.findall((PROJECT / "docs" / "tutorial.md").read_text()):
            if title:
                file = installation.folder / title
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(block)
                continue
            assert language == "console", f"neither a file nor commands: {block}"
            for command in commands_of(block):
                done = installation.run(command.line)
                assert done.returncode == 0, f"{command.line}\n{done.stdout}{done.stderr}"
                assert is_shown(command.output, done.stdout), f"{command.line}\n{done.stdout}"
                commands += 1
        assert commands > 20
        yield installation


@pytest.mark.timeout(900)
def test_the_tutorial_as_it_stands(followed: Installation) -> None:
    # What was made on the way, and not only the names of the sections.
    deck = (followed.folder / "data" / "deck.html").read_text()
    assert {name for name in ("shop.purchase", "sales", "visits") if name not in deck} == set()


@needs_chromium
@pytest.mark.timeout(900)
def test_the_tutorial_in_the_browser(followed: Installation, port: int, page: Page) -> None:
    """Its last command serves what it made: green, alive, and all four on the deck."""
    site = f"http://127.0.0.1:{port}"
    with Pages(port, followed.served, followed.folder, [str(followed.bin / "replica")]) as pages:
        pages.repository()
        for asset in OF_TUTORIAL:
            page.goto(f"{site}/assets/{asset}")
            expect(page.get_by_text("Latest materialization")).to_be_visible(timeout=WITHIN_MS)
            page.goto(f"{site}/assets/{asset}?view=checks")
            expect(page.get_by_text("Passed").first).to_be_visible(timeout=WITHIN_MS)
            expect(page.get_by_text("Failed")).to_have_count(0)
        # One more record, and the button of the page that a person presses.
        assert followed.run("python work.py").returncode == 0
        page.goto(f"{site}/assets/visits")
        page.get_by_role("button", name="Materialize").first.click()
        page.get_by_role("link", name="View", exact=True).first.click()
        page.wait_for_url("**/runs/*")
        expect(page.get_by_text("Success", exact=True).first).to_be_visible(timeout=WITHIN_MS)
        page.goto(f"http://127.0.0.1:{port + 1}/")
        page.wait_for_selector("html[data-drawn-ms]", state="attached")
        for name in ("shop.customer", "shop.purchase", "sales", "visits"):
            expect(page.get_by_text(name).first).to_be_visible()
        cards = page.locator(".health li")
        assert cards.count() >= 3
        assert {card.get_attribute("class") for card in cards.all()} <= {"well", "idle"}


@pytest.mark.timeout(600)
def test_a_new_project_runs_the_sample_and_is_served(installation: Installation, port: int) -> None:
    nowhere = installation.run("replica run")
    assert nowhere.returncode == 1
    assert "Make one with `replica init my_platform`" in nowhere.stderr
    ran = installation.run("replica init my_platform && cd my_platform && replica run")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "market_replica" in ran.stdout
    assert "replica dev opens the Dagster UI" in ran.stdout
    assert installation.run("replica status").returncode == 0
    checked = installation.run("replica env dg check defs")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    migrated = installation.run("replica env dagster instance migrate")
    assert migrated.returncode == 0, migrated.stderr
    listed = installation.run("replica env dg list components")
    assert "replica_platform.components.XminTables" in listed.stdout, listed.stderr
    program = [str(installation.bin / "replica")]
    with Pages(port, installation.served, installation.folder, program) as pages:
        repository = pages.repository()
        assert repository["location"]["name"] == "my_platform"
        assert {"fds_sync", "housekeeping"} <= {one["name"] for one in repository["schedules"]}
    where = installation.run("python -c 'import replica_platform as p; print(p.__file__)'")
    assert str(PROJECT) not in where.stdout
