"""A wrong line of a `defs.yaml` ends `run`, `dev` and `status` in one sentence with its place."""

import shutil
from pathlib import Path

import pytest

import replica_platform
from replica_platform.app.configured import configured
from replica_platform.app.entries import WrongEntry
from replica_platform_tests.conftest import Cli

PACKAGE = Path(replica_platform.__file__).parent
COMPONENTS = "type: replica_platform.components."
TABLES = f"{COMPONENTS}XminTables\nattributes:\n  tables:\n"
FILES = f"{COMPONENTS}SqliteBackups\nattributes:\n  files: [{{path: a.db}}]\n"
NODES = f"{COMPONENTS}WorkerOutboxes\nattributes:\n  nodes: {{a: b}}\n"
REPLICA = f"{COMPONENTS}DuckDBReplica\nattributes:\n  name: r\n"

LAKE = f"{COMPONENTS}LakeMaster\nattributes:\n  name: l\n"

WRONG = [
    (f"{TABLES}    - tabel: fds.prices\n", 4, "table: Field required"),
    (f"{TABLES}    - table: fds.prices\n      mood: full\n", 5, "no such attribute"),
    (f"{TABLES}    - table: fds.prices\n      mode: fast\n", 5, "'auto', 'scan'"),
    (f"{TABLES}    - table: [fds.prices\n", 5, "this is not YAML"),
    (f"{TABLES}    - table: a.b.*\n", 4, "not a pattern such as public.*"),
    (f"{TABLES}    - table: a.b\n      exclude: [a.c]\n", 4, "exclude belongs to a pattern"),
    (f"{TABLES}    - table: a.*\n      columns: [a]\n", 4, "a pattern cannot list columns"),
    (f"{TABLES}    - table: a.b\n      columns: []\n", 4, "columns is empty"),
    (f"{TABLES}    - table: a b\n", 4, "is not a table name"),
    (f"{TABLES}    - table: a.b\n      mask: {{c: rot13}}\n", 5, "'null' or 'hash'"),
    (f"{TABLES}    - table: a.b\n      mask: {{c: hash}}\n", 2, "needs a salt"),
    (f"{TABLES}    - table: s.a\n    - table: t.a\n", 2, "both arrive as raw_data.a"),
    (f"{TABLES}    - table: s.a\n    - table: s.a\n", 2, "s.a is listed twice in warehouse"),
    (f"{TABLES}    []\n  cron_schedule: 61 * * * *\n", 5, "61 is not between 0 and 59"),
    (f"{TABLES}    []\n  cron_schedule: hourly\n", 5, "not a cron schedule of five fields"),
    (f"{TABLES}    []\n  threshold: 90\n", 5, "90.0 should be between 0 and 1"),
    (f"{TABLES}    []\n  source: postgres://u:secret@h/d\n", 5, "name of an environment variable"),
    (f"{TABLES}    []\n  owners: [me]\n", 5, "neither team:NAME nor an e-mail address"),
    (f"{TABLES}    []\n  shards: 0\n", 5, "0 should be between 1 and 256"),
    (f"{TABLES}    []\n  name: a-b\n", 5, "not a name of letters, digits and _"),
    (f"{FILES}  pool: a b\n", 4, "not a name"),
    (f"{FILES}  cron: 0 3 * * *\n", 4, "SqliteBackups has no such attribute"),
    (f"{NODES}  drain_budget_s: 0\n", 4, "greater than 0"),
    (f"{REPLICA}  keep: 1\n", 4, "1 should be at least 2"),
    (f"{REPLICA}  link: a/b.db\n", 4, "not the name of a file without a folder"),
    (f"{REPLICA}  purposes:\n    p: {{tables: {{t: {{colums: [a]}}}}}}\n", 4, "mean 'columns'"),
    (f"{LAKE}  data: https://u:secret@h/d\n", 4, "neither a folder nor s3://bucket/prefix"),
    (f"{LAKE}  data: s3://\n", 4, "name a folder or s3://bucket/prefix"),
    (f"{LAKE}  catalog: postgres://u:secret@h/d\n", 4, "name of an environment variable"),
    (f"{LAKE}  orphan_age_s: 60\n", 4, "60 should be at least 3600"),
    (f"{COMPONENTS}XminTabels\nattributes: {{}}\n", 1, "there is no component"),
]


@pytest.mark.parametrize(("text", "line", "cause"), WRONG)
def test_a_wrong_line_is_named(tmp_path: Path, text: str, line: int, cause: str) -> None:
    (tmp_path / "mine").mkdir()
    file = tmp_path / "mine" / "defs.yaml"
    file.write_text(text)
    with pytest.raises(WrongEntry) as refused:
        configured(tmp_path)
    assert str(refused.value).startswith(f"{file}, line {line}: ")
    assert cause in str(refused.value)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("one", "other", "cause"),
    [
        (f"{FILES}", f"{FILES}", "another SqliteBackups has the name 'backups'"),
        (
            f"{FILES}",
            f"{FILES}  name: mine\n  folder: .\n",
            "another folder of backups has the name './a'",
        ),
        (
            f"{REPLICA}  purposes: {{p: {{tables: {{t: {{columns: [a]}}}}}}}}\n",
            f"{COMPONENTS}PurposeReplicas\nattributes:\n  name: r\n  purposes: {{}}\n",
            "another PurposeReplicas has the name 'r'",
        ),
        (f"{REPLICA}", f"{NODES}  name: r\n", "another asset has the name 'r'"),
        (
            f"{REPLICA}  store: s\n",
            f"{COMPONENTS}DuckDBReplica\nattributes: {{name: q, store: s/}}\n",
            "another folder of generations has the name 's'",
        ),
        (
            f"{LAKE}",
            f"{COMPONENTS}LakeMaster\nattributes: {{name: m, catalog_schema: lake_l}}\n",
            "another lake in the target has the name 'lake_l'",
        ),
        (
            f"{LAKE}",
            f"{COMPONENTS}LakeMaster\nattributes: {{name: m, data: lake/l/m}}\n",
            "the lake m has its data where another one has it",
        ),
        (
            f"{LAKE}",
            f"{COMPONENTS}LakeMaster\nattributes: {{name: m, master: lake/l.duckdb}}\n",
            "another file of an exported lake has the name 'lake/l.duckdb'",
        ),
        (f"{LAKE}", f"{REPLICA.replace('name: r', 'name: l_master')}", "another asset has the"),
        (
            f"{TABLES}    - table: a.t\n",
            f"{TABLES}    - table: b.t\n  name: b\n",
            "another table of the target has the name 'raw_data.t'",
        ),
    ],
)
def test_entries_that_would_be_the_same_are_refused(
    tmp_path: Path, one: str, other: str, cause: str
) -> None:
    for name, text in (("one", one), ("other", other)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "defs.yaml").write_text(text)
    advice = r"give one of them another `(name|store|into|data|catalog_schema|master)`"
    with pytest.raises(WrongEntry, match=advice) as refused:
        configured(tmp_path)
    assert cause in str(refused.value)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, whose `defs.yaml` files can be changed."""
    copy = tmp_path / "copy"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, copy / "replica_platform", ignore=ignored)
    for name in ("pyproject.toml", "dagster.yaml"):
        shutil.copy(PACKAGE.parent / name, copy)
    (copy / "replica_platform" / "defs" / "mine").mkdir()
    return copy


@pytest.mark.parametrize("command", ["run", "dev", "status"])
def test_a_command_ends_in_one_sentence(
    cli: Cli, package: Path, folder: Path, command: str
) -> None:
    text, line, cause = WRONG[0]
    file = package / "replica_platform" / "defs" / "mine" / "defs.yaml"
    file.write_text(text)
    finished = cli(command, PYTHONPATH=str(package))
    assert finished.returncode == 1
    (sentence,) = finished.stderr.strip().splitlines()
    assert f"{file}, line {line}: " in sentence
    assert cause in sentence
    assert list(folder.iterdir()) == []


def test_what_only_dagster_finds_is_one_sentence_too(cli: Cli, package: Path) -> None:
    file = package / "replica_platform" / "defs" / "mine" / "defs.yaml"
    file.write_text(f'{TABLES}    - table: s.a\n  name: "{{{{ nothing.there }}}}"\n')
    finished = cli("run", PYTHONPATH=str(package))
    assert finished.returncode == 1
    (sentence,) = finished.stderr.strip().splitlines()
    assert "'nothing' not found" in sentence
