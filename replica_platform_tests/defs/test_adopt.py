"""`replica adopt --write`: the file passes `dg check yaml`, and its job syncs what it proposes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

import replica_platform

PACKAGE = Path(replica_platform.__file__).parent
DG = Path(sys.executable).parent / "dg"
TABLES = (
    "create table users (id int primary key, name text, passwd text not null)",
    "insert into users values (1, 'ada', 'swordfish'), (2, 'grace', 'open sesame')",
    "create table sessions (token text primary key, user_id int)",
    "insert into sessions values ('s3cret', 1)",
    "create table log (line text)",
    "insert into log values ('one'), ('two')",
    'create table "Odd: name" (id int primary key)',
    "create view v as select 1 as one",
    'create schema "My.Shop"',
    'create table "My.Shop".item (id int primary key, "pin code password" text)',
    "insert into \"My.Shop\".item values (1, 'hidden')",
)
RUN = """
import dagster as dg
from replica_platform.definitions import defs
result = defs().resolve_job_def("shop_sync").execute_in_process(
    instance=dg.DagsterInstance.ephemeral(), raise_on_error=False
)
assert result.success, [e.step_failure_data for e in result.all_events if e.is_step_failure]
"""


class Project:
    """A copy of the project without its sample, and the databases that it is told of."""

    def __init__(self, folder: Path, source: str, target: str) -> None:
        self.folder, self.source, self.target = folder, source, target
        ignored = shutil.ignore_patterns("__pycache__", "sample")
        shutil.copytree(PACKAGE, folder / "replica_platform", ignore=ignored)
        for name in ("pyproject.toml", "dagster.yaml"):
            shutil.copy(PACKAGE.parent / name, folder)
        self.file = folder / "replica_platform" / "defs" / "shop" / "defs.yaml"

    def run(self, *command: object, **variables: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("REPLICA")}
        return subprocess.run(
            [str(part) for part in command],
            cwd=self.folder,
            env=kept
            | {
                "PYTHONPATH": str(self.folder),
                "REPLICA_DATA_DIR": str(self.folder / "data"),
                "REPLICA_TARGET_DSN": self.target,
                "VIRTUAL_ENV": sys.prefix,
                "PATH": f"{DG.parent}{os.pathsep}{kept['PATH']}",
                "COLUMNS": "200",
                **variables,
            },
            capture_output=True,
            text=True,
        )

    def adopt(self, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.run(
            *(sys.executable, "-m", "replica_platform.cli.main", "adopt", *options), **variables
        )


@pytest.fixture
def project(tmp_path: Path, source: str, target: str) -> Project:
    with psycopg.connect(source) as connection:
        for statement in TABLES:
            connection.execute(statement)
    return Project(tmp_path, source, target)


def test_nothing_is_written_without_being_asked(project: Project) -> None:
    shown = project.adopt(project.source, "--name", "shop")
    assert shown.returncode == 0, shown.stderr
    assert "table: public.*" in shown.stdout
    assert "5 tables, of which 4 can be synced" in shown.stdout
    assert "Not public.sessions: token looks like a secret" in shown.stdout
    assert not project.file.exists()
    assert not (project.folder / "data").exists()


def test_the_written_file_is_valid_and_syncs_without_the_secrets(project: Project) -> None:
    written = project.adopt(project.source, "--name", "shop", "--write")
    assert written.returncode == 0, written.stderr
    assert "Set SHOP_DSN to the DSN" in written.stdout
    text = project.file.read_text()
    assert project.source not in text
    checked = project.run(DG, "check", "yaml", SHOP_DSN=project.source)
    assert "validated successfully" in checked.stdout, checked.stdout + checked.stderr

    ran = project.run(sys.executable, "-W", "ignore", "-c", RUN, SHOP_DSN=project.source)
    assert ran.returncode == 0, "\n".join(
        x for x in ran.stderr.splitlines() if "Error" in x or "rror:" in x
    )
    with psycopg.connect(project.target) as target:
        tables = target.execute(
            "select tablename from pg_tables where schemaname = 'shop' order by 1"
        ).fetchall()
        assert [name for (name,) in tables] == ["Odd: name", "item", "log", "users"]
        assert target.execute("select id, name, passwd from shop.users order by 1").fetchall() == [
            (1, "ada", None),
            (2, "grace", None),
        ]
        assert target.execute('select id, "pin code password" from shop.item').fetchall() == [
            (1, None)
        ]

    again = project.adopt(project.source, "--name", "shop", "--write")
    assert again.returncode == 1
    assert "exists and is not overwritten; give another --name" in again.stderr
    assert project.file.read_text() == text
    other = project.adopt(project.source, "--name", "shop2", "--write")
    assert other.returncode == 0, other.stderr


def test_the_dsn_may_be_named_by_its_variable(project: Project) -> None:
    shown = project.adopt("LEGACY_DB", "--name", "shop", LEGACY_DB=project.source)
    assert "source: LEGACY_DB" in shown.stdout
    default = project.adopt(
        "REPLICA_SOURCE_DSN", "--name", "shop", REPLICA_SOURCE_DSN=project.source
    )
    assert "source:" not in default.stdout


def test_a_database_that_is_away_is_one_sentence(project: Project) -> None:
    away = project.adopt("postgresql://ada:swordfish@127.0.0.1:1/shop")
    assert away.returncode == 1
    assert away.stderr.startswith("error:")
    assert "swordfish" not in away.stderr + away.stdout
