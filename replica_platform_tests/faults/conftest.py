"""Fixtures of several fault tests."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from replica_platform_tests.faults import backup_writer
from replica_platform_tests.faults.cluster_hosts import Cluster


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    """A file that `backup_writer` can keep busy, in the folder of another host."""
    file = tmp_path / "remote" / "busy.db"
    file.parent.mkdir()
    backup_writer.make(file)
    return file


@pytest.fixture
def clusters(folder: Path, database: Callable[[str], str]) -> Iterator[Callable[..., Cluster]]:
    """A function that makes a cluster; all of its processes are ended afterwards."""
    made: list[Cluster] = []

    def make(name: str, **options: Any) -> Cluster:
        made.append(Cluster(folder / name, database("dagster"), database("target"), **options))
        return made[-1]

    yield make
    for cluster in made:
        cluster.stop_all()
