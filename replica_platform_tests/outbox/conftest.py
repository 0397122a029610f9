"""An outbox file, and a look into the target, for every test of the engine."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from replica_platform.outbox import Outbox


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "worker-1.db"


@pytest.fixture
def box(path: Path) -> Iterator[Outbox]:
    with Outbox(path) as outbox:
        yield outbox


@pytest.fixture
def ask(target: str) -> Iterator[Callable[..., list[tuple[Any, ...]]]]:
    """Ask the target a question and get its rows."""
    with psycopg.connect(target, autocommit=True) as connection:

        def question(statement: str, *values: Any) -> list[tuple[Any, ...]]:
            answer = connection.execute(statement, values or None)
            return answer.fetchall() if answer.description else []

        yield question
