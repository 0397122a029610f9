"""Values that SQLite accepts and Postgres refuses: found by `append`, or dead alone."""

import datetime
import decimal
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import Outbox, backlog, dead, drain
from replica_platform.outbox.encoding import encode
from replica_platform.outbox.errors import NotStorable

Ask = Callable[..., list[tuple[Any, ...]]]


def nested(depth: int) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for _ in range(depth):
        record = {"a": record}
    return record


CIRCLE: dict[str, Any] = {}
CIRCLE["self"] = CIRCLE


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "a\x00b"}, "NUL"),
        ({"a\x00": 1}, "NUL"),
        ({"text": "\ud83d"}, "surrogate"),
        ({"n": float("nan")}, "poison='escape'"),
        ({"n": float("inf")}, "poison='escape'"),
        ({"n": [{"x": -float("inf")}]}, "poison='escape'"),
        ({1: "a", "1": "b"}, "key 1 "),
        ({"deep": [{"er": {None: 1}}]}, "key None in deep.er"),
        ({"raw": b"bytes"}, "bytes"),
        ({"what": object()}, "object"),
        ({"big": 10**5000}, "digits"),
        (nested(5000), "deep"),
        (CIRCLE, "deep|[Cc]ircular"),
        ("just text", "mapping"),
        (None, "mapping"),
    ],
)
def test_a_record_that_jsonb_cannot_store_is_refused(
    box: Outbox, path: Path, record: Any, message: str
) -> None:
    with pytest.raises(NotStorable, match=message):
        box.append("note", record)
    assert backlog([path]).pending == 0


@pytest.mark.parametrize(
    ("record", "arrives"),
    [
        ({"text": "a\x00b"}, {"text": "a\\u0000b"}),
        ({"a\x00": "\ud83d!"}, {"a\\u0000": "\\ud83d!"}),
        ({"n": [float("nan"), {"x": -float("inf")}]}, {"n": ["nan", {"x": "-inf"}]}),
        ({"ok": 1}, {"ok": 1}),
    ],
)
def test_the_values_are_escaped_on_request(
    path: Path, target: str, ask: Ask, record: Any, arrives: Any
) -> None:
    with Outbox(path, poison="escape") as box:
        box.append("note", record)
    assert drain([path], target).ok
    assert ask("select payload from outbox.record") == [(arrives,)]


def test_two_keys_that_escaping_makes_equal_are_refused(path: Path) -> None:
    with Outbox(path, poison="escape") as box:
        with pytest.raises(NotStorable, match="two keys"):
            box.append("note", {"deep": {"a\x00": 1, "a\\u0000": 2}})
        box.append("note", {"deep": {"a\x00": 1, "a": 2}})
    assert backlog([path]).pending == 1


def test_an_escaped_backslash_before_u0000_is_not_a_nul(
    box: Outbox, path: Path, target: str, ask: Ask
) -> None:
    texts = ["\\u0000", "\\\\u0000", "x\\\\\\u0000y"]
    box.append("note", {"texts": texts})
    assert drain([path], target).ok
    assert ask("select payload -> 'texts' from outbox.record") == [(texts,)]


def test_dates_ids_and_decimals_become_text() -> None:
    one = uuid.uuid4()
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    text, data = encode({"m": moment, "d": decimal.Decimal("1.10"), "u": one, "t": (1, 2)})
    assert text == f'{{"d":"1.10","m":"2026-01-02T03:04:05+00:00","t":[1,2],"u":"{one}"}}'
    assert data == text.encode()


def test_the_same_content_has_one_form() -> None:
    assert encode({"a": 1, "b": {"d": 1, "c": 2}}) == encode({"b": {"c": 2, "d": 1}, "a": 1})


STORABLE = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | STORABLE,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(STORABLE, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(STORABLE, VALUES, max_size=5))
def test_the_text_is_what_the_standard_encoder_writes(record: dict[str, Any]) -> None:
    plainly = json.dumps(
        record, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
    )
    assert encode(record) == (plainly, plainly.encode())


def test_ten_megabytes_arrive(box: Outbox, path: Path, target: str, ask: Ask) -> None:
    box.append_many("note", [{"n": 1}, {"text": "ä" * 5_000_000}, {"n": 2}])
    report = drain([path], target)
    assert (report.delivered, report.files[0].batches, report.ok) == (3, 3, True)
    assert ask("select max(octet_length(payload ->> 'text')) from outbox.record") == [(10_000_000,)]


def test_an_unstorable_row_in_the_file_is_dead_alone(
    box: Outbox, path: Path, target: str, ask: Ask
) -> None:
    """Another program, or a gap in the checks of `append`, may write such rows."""
    deep = '{"a":' * 50_000 + "1" + "}" * 50_000
    payloads = ['{"n":1}', '{"t":"\\u0000"}', '{"t":"\\ud83d"}', '{"n":NaN}', "{", deep, '{"n":2}']
    box.append_many("note", [{}] * len(payloads))
    connection = sqlite3.connect(path)
    for seq, payload in enumerate(payloads, 1):
        connection.execute("update record set payload = ? where seq = ?", (payload, seq))
    connection.commit()
    connection.close()
    report = drain([path], target)
    assert (report.delivered, report.dead, report.pending) == (2, 5, 0)
    assert [row.sqlstate for row in dead(path)] == ["22P05", "22P02", "22P02", "22P02", "54001"]
    assert ask("select array_agg(seq order by seq) from outbox.record") == [([1, 7],)]


def test_a_nul_that_the_client_refuses_is_dead_alone(box: Outbox, path: Path, target: str) -> None:
    box.append_many("note", [{"n": 1}, {"n": 2}, {"n": 3}])
    connection = sqlite3.connect(path)
    connection.execute("update record set payload = '{\"n\":\"' || char(0) || '\"}' where seq = 2")
    connection.commit()
    connection.close()
    report = drain([path], target)
    assert (report.delivered, report.dead) == (2, 1)
    assert dead(path)[0].sqlstate is None
