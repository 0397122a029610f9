"""Free space, against what the system itself says."""

import shutil
from pathlib import Path

from replica_platform.core.disk_space import free_bytes, shortage


def test_free_bytes_are_what_the_system_says(tmp_path: Path) -> None:
    # Other programs write meanwhile: the two answers may differ a little.
    assert abs(free_bytes(tmp_path) - shutil.disk_usage(tmp_path).free) < 1 << 30


def test_a_shortage_is_said_with_both_figures_and_only_where_there_is_one(tmp_path: Path) -> None:
    assert shortage(tmp_path, 0) is None
    words = shortage(tmp_path, 1 << 60)
    assert words is not None
    assert str(tmp_path) in words
    assert words.endswith("free of the 1048576.0 TiB needed")
