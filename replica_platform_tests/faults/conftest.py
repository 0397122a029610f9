"""Fixtures of several fault tests."""

from pathlib import Path

import pytest

from replica_platform_tests.faults import backup_writer


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    """A file that `backup_writer` can keep busy, in the folder of another host."""
    file = tmp_path / "remote" / "busy.db"
    file.parent.mkdir()
    backup_writer.make(file)
    return file
