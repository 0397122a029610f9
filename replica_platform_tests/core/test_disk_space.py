"""Free space, compared with the system's own figures."""

import shutil
from pathlib import Path

from replica_platform.core.disk_space import free_bytes, shortage


def test_free_bytes_equal_those_of_the_system(tmp_path: Path) -> None:
    # Other programs write meanwhile, so the two figures may differ a little.
    assert abs(free_bytes(tmp_path) - shutil.disk_usage(tmp_path).free) < 1 << 30


def test_only_a_shortage_is_reported_with_both_figures(tmp_path: Path) -> None:
    assert shortage(tmp_path, 0) is None
    sentence = shortage(tmp_path, 1 << 60)
    assert sentence is not None
    assert str(tmp_path) in sentence
    assert sentence.endswith("free of the 1048576.0 TiB needed")
