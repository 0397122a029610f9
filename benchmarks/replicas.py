"""What the replica's benchmarks share: how they are called, and how they say what they found."""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path


def measure(description: str, run: Callable[..., dict[str, object]], **options: float) -> None:
    """Call `run` with a folder of its own, `--mb` and those options, and print what it returns.

    options: the default of each; its type is that of its value.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", action="store_true")
    for name, default in {"mb": 1000, **options}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    given = vars(parser.parse_args())
    parent, as_json = given.pop("folder"), given.pop("json")
    with tempfile.TemporaryDirectory(prefix="rp-bench-", dir=parent) as folder:
        found = run(Path(folder), **given)
    if as_json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:18} {value}")
