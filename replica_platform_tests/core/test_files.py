"""Files that are replaced completely or not at all."""

from pathlib import Path

import pytest

from replica_platform.core.files import replacing, write_atomically


def test_a_write_replaces(tmp_path: Path) -> None:
    target = tmp_path / "a"
    write_atomically(target, b"old")
    write_atomically(target, b"new", mode=0o444)
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o444
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a"
    write_atomically(target, b"old")
    with pytest.raises(OSError, match="full"), replacing(target) as temporary:
        temporary.write_bytes(b"half")
        raise OSError("full")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
