"""A record as the text that is stored and sent: one form for one content, poison found here.

Whatever SQLite would take and Postgres refuse (NUL, lone surrogates, NaN, keys that are not
text) is an error at the door, or is escaped where the caller asked for it.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import date, time
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

from replica_platform.outbox.errors import NotStorable

type_of_poison = Literal["reject", "escape"]

# An escape that stands for NUL: an odd number of backslashes before u0000.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
# Looked up by type first: an isinstance of an abstract class is ten times dearer.
_SCALARS = frozenset({str, int, float, bool, type(None)})
_TEXT = frozenset({str})
_CONTAINERS = (Mapping, list, tuple)
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def encode(record: Mapping[str, Any], poison: type_of_poison = "reject") -> tuple[str, bytes]:
    """The record as compact JSON with sorted keys, and the same as UTF-8.

    Sorted, so that the same content has the same digest. UUID, date, time and Decimal become
    their text. Errors: `NotStorable`, naming the place where that is known.
    """
    if type(record) is not dict and not isinstance(record, Mapping):
        raise NotStorable(
            f"A record is a mapping of names to values, not {type(record).__name__}; "
            "wrap it, for example as {'value': …}."
        )
    if poison == "escape":
        record = _escaped(record)
    try:
        _refuse_keys(record, "")
        text = _ENCODE(record)
        data = text.encode()
    except UnicodeEncodeError as error:
        raise NotStorable(
            f"The record holds half a character ({error.object[error.start]!r}, a lone "
            f"surrogate), which Postgres cannot keep; {_ADVICE}."
        ) from None
    except RecursionError:
        raise NotStorable("The record is nested too deeply; flatten it.") from None
    except (TypeError, ValueError) as error:
        raise NotStorable(f"The record cannot be written as JSON: {error}; {_ADVICE}.") from None
    if "\\u0000" in text and _NUL.search(text):
        raise NotStorable(
            f"The record holds a NUL character, which Postgres cannot keep; {_ADVICE}."
        )
    return text, data


_ADVICE = "mend it, or open the outbox with poison='escape'"


def _plain(value: Any) -> Any:
    if isinstance(value, (UUID, Decimal)):
        return str(value)
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} has no JSON form")


def _make_encode() -> Callable[[Mapping[str, Any]], str]:
    """JSONEncoder's `encode`, which sets up its C encoder for each call, with that done once.

    Half of what encoding a small record costs. Without the C encoder: plainly `encode`.
    """
    public = json.JSONEncoder(
        ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"), default=_plain
    )
    make = getattr(json.encoder, "c_make_encoder", None)
    escape = getattr(json.encoder, "encode_basestring", None)
    if make is None or escape is None:
        return public.encode
    # markers, default, escape, indent, ":", ",", sort_keys, skipkeys, allow_nan
    pieces = make(None, _plain, escape, None, ":", ",", True, False, False)
    return lambda record: "".join(pieces(record, 0))


_ENCODE = _make_encode()


def _refuse_keys(value: Any, where: str) -> None:
    """JSON turns the keys 1 and "1" into the same one, and jsonb keeps only the last."""
    if (
        type(value) is dict
        and _TEXT.issuperset(map(type, value))
        and _SCALARS.issuperset(map(type, value.values()))
    ):
        return  # flat, as most records are, and seen without a loop in Python
    if not isinstance(value, Mapping):
        for inner in value:
            if type(inner) not in _SCALARS and isinstance(inner, _CONTAINERS):
                _refuse_keys(inner, where)
        return
    for key, inner in value.items():
        if not isinstance(key, str):
            place = f" in {where}" if where else ""
            raise NotStorable(f"The key {key!r}{place} is not text; write it as {str(key)!r}.")
        if type(inner) not in _SCALARS and isinstance(inner, _CONTAINERS):
            _refuse_keys(inner, f"{where}.{key}" if where else key)


def _escaped(value: Any) -> Any:
    """The same value with what jsonb cannot hold spelled out: `\\u0000`, `\\ud800`, "NaN"."""
    if isinstance(value, str):
        return _UNSTORABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {_escaped(key): _escaped(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_escaped(inner) for inner in value]
    return value
