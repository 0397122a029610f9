"""The generated reference is complete and true of the program; Operations agrees with it."""

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest
from pydantic import ValidationError

import replica_platform
from replica_platform import components
from replica_platform.app.configured import KINDS, configured
from replica_platform.app.launch import PROJECT
from replica_platform.app.metrics import METRICS, PREFIX
from replica_platform.app.settings import Settings
from replica_platform.cli.main import replica

PACKAGE = Path(replica_platform.__file__).parent
CELL = re.compile(r"`([^`]+)`")


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The hook that generates the reference."""
    path = PROJECT / "docs" / "plugins" / "generated_reference.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(text: str) -> list[list[str]]:
    """Return the cells of the tables of a page, without their heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def first_names(text: str) -> set[str]:
    return {found[1] for cells in rows(text) if (found := CELL.fullmatch(cells[0]))}


def test_every_section_has_a_page_and_every_mark_a_section(reference: ModuleType) -> None:
    pages = (PROJECT / "docs" / "reference").glob("*.md")
    asked = [name for page in pages for name in reference.MARK.findall(page.read_text())]
    assert sorted(asked) == sorted(reference.SECTIONS)
    assert "| metric |" in reference.on_page_markdown("a\n<!-- generated: metrics -->\nb")


def test_every_command_and_option_is_there(reference: ModuleType) -> None:
    parts = dict(
        re.findall(r"^### replica ([\w-]+)\n(.*?)(?=^##|\Z)", reference.commands(), re.S | re.M)
    )
    assert parts.keys() == replica.commands.keys()
    for name, command in replica.commands.items():
        shown = [option for option in command.params if not getattr(option, "hidden", False)]
        for option in shown:
            text = (
                max(option.opts, key=len)
                if isinstance(option, click.Option)
                else option.human_readable_name
            )
            assert text.lower() in parts[name].lower(), (name, text)


def test_every_variable_is_there_with_its_default(reference: ModuleType) -> None:
    page = {cells[0].strip("`"): cells for cells in rows(reference.settings())[2:]}
    assert page.keys() >= {reference.variable(name) for name in Settings.model_fields}
    named = {
        found
        for file in PACKAGE.rglob("*.py")
        for found in re.findall(r"\b(?:REPLICA|XMIN)_[A-Z_]+\b", file.read_text())
    }
    assert named - page.keys() == {"XMIN_AND_CONTENT"}  # a name in Python


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"REPLICA_{name.upper()}", raising=False)


def test_what_is_said_of_a_setting_is_true(
    reference: ModuleType, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = {cells[0].strip("`"): cells for cells in rows(reference.settings())[2:]}
    plain = Settings(_env_file=None)
    for name in Settings.model_fields:
        variable = reference.variable(name)
        _, default, allowed, _ = page[variable]
        if default:
            monkeypatch.setenv(variable, default.strip("`"))
            assert getattr(Settings(_env_file=None), name) == getattr(plain, name), name
        for word, bound in re.findall(r"at (least|most) (\d+)", allowed):
            monkeypatch.setenv(variable, bound)
            assert getattr(Settings(_env_file=None), name) == int(bound)
            monkeypatch.setenv(variable, str(int(bound) + (1 if word == "most" else -1)))
            with pytest.raises(ValidationError):
                Settings(_env_file=None)
        monkeypatch.delenv(variable, raising=False)


def test_every_metric_is_there(reference: ModuleType) -> None:
    named = {
        f"{PREFIX}_{name}"
        for file in PACKAGE.rglob("*.py")
        for text in re.findall(
            r"^\w*METRICS: Mapping.*?^}", file.read_text(), re.DOTALL | re.MULTILINE
        )
        for name in re.findall(r'^    "(\w+)": \(', text, re.MULTILINE)
    }
    assert {f"{PREFIX}_{name}" for name in METRICS} <= named
    assert first_names(reference.metrics()) == named


def checks_of(page: str) -> Iterator[tuple[str, str, str]]:
    """Yield asset, check and `yes` or `no` of each row of the table in Operations."""
    for cells in rows(page.split("## Checks")[1].split("\n## ")[0])[2:]:
        names = CELL.findall(cells[1])
        blocks = re.findall("yes|no", cells[2])
        for number, name in enumerate(names):
            yield cells[0], name, blocks[number if len(blocks) > 1 else 0]


def test_operations_explains_every_check_and_says_whether_it_blocks(reference: ModuleType) -> None:
    there = {(name, "yes" if blocks else "no") for _, name, blocks, _ in reference.listed_checks()}
    page = (PROJECT / "docs" / "operations.md").read_text()
    assert {(name, blocks) for _, name, blocks in checks_of(page)} == there
    assert first_names("\n".join(reference.checks().splitlines()[2:])) >= {"REPLICA", "RECORDS"}


def test_operations_names_schedules_and_sensors_that_there_are(reference: ModuleType) -> None:
    page = (PROJECT / "docs" / "operations.md").read_text().split("## Checks")[0]
    told = first_names(page)
    there = first_names(reference.schedules())
    of_the_sample = {name for name in there if not re.search(r"[A-Z]{2}", name)}
    assert of_the_sample - told == set()
    # Of a file of another host, which the sample has not.
    assert told - there == {"remote_pulls"}


@pytest.mark.parametrize("name", components.__all__)
def test_every_attribute_of_a_component_is_there_and_its_example_is_an_entry(
    reference: ModuleType, name: str, tmp_path: Path
) -> None:
    page = reference.component(name)
    model = KINDS[name]
    assert first_names(page) >= model.model_fields.keys()
    example = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert example
    (tmp_path / "defs.yaml").write_text(example[1])
    (entry,) = configured(tmp_path).of(model)
    own = reference.attributes(getattr(components, name))  # without those of its parts
    told = {cells[0].strip("`"): cells[2].strip("`") for cells in rows(own)}
    left = model.model_fields.keys() - entry.model_fields_set
    for attribute in left:
        default = json.dumps(getattr(entry, attribute), default=list)
        assert told[attribute] == default, attribute


def test_parts_of_an_entry_are_described_in_words(reference: ModuleType) -> None:
    page = reference.component("SqliteBackups")
    assert "**DrillEntry**" in page
    assert "| `drill` | list of DrillEntry | `[]` |" in page
    assert "| `path` | text | (required) |" in page
    assert "| `method` | `query`, `pages`, `scp` |" in page
