"""Where settings are read: by what starts the platform, and by nothing below it."""

import ast
from pathlib import Path

import replica_platform
from replica_platform.app.settings import Settings

ROOT = Path(replica_platform.__file__).parent
MAY_READ = ("definitions.py", "app", "cli")


def constructs_settings(source: str) -> bool:
    """Whether the source calls `Settings(…)`, by this name or as an attribute of a module."""
    return any(
        isinstance(node, ast.Call)
        and getattr(node.func, "id", getattr(node.func, "attr", None)) == "Settings"
        for node in ast.walk(ast.parse(source))
    )


def test_settings_are_constructed_only_where_the_platform_is_started() -> None:
    found = {
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        if path.relative_to(ROOT).parts[0] not in MAY_READ and constructs_settings(path.read_text())
    }
    assert found == set()
    assert constructs_settings((ROOT / "definitions.py").read_text())
    assert constructs_settings("import s\nx = s.Settings().data_dir")


def test_the_dsn_that_replica_env_gives_is_that_of_the_embedded_postgres(tmp_path: Path) -> None:
    alone = Settings(_env_file=None, data_dir=tmp_path)
    in_the_shell = Settings(_env_file=None, data_dir=tmp_path, source_dsn=alone.source)
    assert set(in_the_shell.databases.values()) == {None} and in_the_shell.uses_embedded
    elsewhere = Settings(_env_file=None, data_dir=tmp_path / "other", source_dsn=alone.source)
    assert elsewhere.databases["fds"] is not None
