"""The last good answer to each question, for when no generation can be read.

Rows and data frames are kept pickled: the size is exact, and each caller gets a copy.
"""

import hashlib
import pickle
import threading
from collections import OrderedDict
from contextlib import suppress
from typing import Any

ANSWERS = 64
# Of all answers together; one answer may have a quarter of it.
MEMORY_BYTES = 64 * 1024 * 1024


class Answers:
    """The last answers, up to `ANSWERS` and so many bytes; thread-safe."""

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        self.memory_bytes = memory_bytes
        self._mutex = threading.Lock()
        self._answers: OrderedDict[bytes, tuple[Any, int]] = OrderedDict()
        self._size = 0

    @property
    def size(self) -> int:
        """The bytes of all answers."""
        return self._size

    def remember(self, form: str, sql: str, params: Any, answer: Any) -> None:
        """Keep an answer, unless it is too large, and forget those asked longest ago."""
        most = self.memory_bytes // 4
        question = _key(form, sql, params) if most else None
        if question is None:
            return
        packed = answer if form == "arrow" else _pickled(answer, most)
        if packed is None:
            return
        # Arrow tables cannot be changed, so they need no copy.
        size = answer.get_total_buffer_size() if form == "arrow" else len(packed)
        if size > most:
            return
        with self._mutex:
            self._forget(question)
            self._answers[question] = packed, size
            self._size += size
            while self._size > self.memory_bytes or len(self._answers) > ANSWERS:
                self._forget(next(iter(self._answers)))

    def recall(self, form: str, sql: str, params: Any) -> Any:
        """Return a copy of the last answer.

        Raises:
            KeyError: There is none.
        """
        packed, _ = self._answers[_key(form, sql, params) or b""]
        return packed if form == "arrow" else pickle.loads(packed)

    def _forget(self, question: bytes) -> None:
        _, size = self._answers.pop(question, (None, 0))
        self._size -= size


class _TooLarge(Exception):
    """The pickle would be larger than the limit."""


class _Limited:
    """A file that takes at most so many bytes."""

    def __init__(self, limit: int) -> None:
        self.parts: list[bytes] = []
        self._left = limit

    def write(self, part: bytes) -> int:
        self._left -= len(part)
        if self._left < 0:
            raise _TooLarge
        self.parts.append(bytes(part))
        return len(part)


def _pickled(value: Any, limit: int, *, canonical: bool = False) -> bytes | None:
    """Return the value pickled; None where it cannot be, or is larger than the limit."""
    file = _Limited(limit)
    pickler = pickle.Pickler(file, pickle.HIGHEST_PROTOCOL)
    # Without it, the pickle depends on which of two equal values are one object.
    pickler.fast = canonical
    with suppress(_TooLarge, pickle.PickleError, TypeError, AttributeError, RecursionError):
        pickler.dump(value)
        return b"".join(file.parts)
    return None


def _key(form: str, sql: str, params: Any) -> bytes | None:
    """Return a key that two questions share only when form, SQL and every parameter are equal."""
    pickled = _pickled((form, sql, params), MEMORY_BYTES, canonical=True)
    return hashlib.sha256(pickled).digest() if pickled is not None else None
