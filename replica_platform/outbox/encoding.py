"""Records as JSON text: one form for one content; values that jsonb cannot store are refused.

SQLite would accept NUL, lone surrogates, NaN and keys that are not text; Postgres refuses them.
`encode` raises an error for them, or escapes them if the caller chose so.
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

Poison = Literal["reject", "escape"]

# An escape of NUL: an odd number of backslashes before u0000.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
# Compared by type first: isinstance with an abstract class takes ten times as long.
_SCALARS = frozenset({str, int, float, bool, type(None)})
_TEXT = frozenset({str})
_CONTAINERS = (Mapping, list, tuple)
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def encode(record: Mapping[str, Any], poison: Poison = "reject") -> tuple[str, bytes]:
    """Return the record as compact JSON, and the same text as UTF-8.

    Keys are sorted, so that the same content has the same digest. UUID, date, time and Decimal
    become text.

    Args:
        record: Names to values that have a JSON form.
        poison: What to do with values that jsonb cannot store.

    Raises:
        NotStorable: The record has no JSON form, or jsonb cannot store it.
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
            f"surrogate), which Postgres cannot store; {_ADVICE}."
        ) from None
    except RecursionError:
        raise NotStorable("The record is nested too deeply; flatten it.") from None
    except (TypeError, ValueError) as error:
        raise NotStorable(f"The record cannot be written as JSON: {error}; {_ADVICE}.") from None
    if "\\u0000" in text and _NUL.search(text):
        raise NotStorable(
            f"The record holds a NUL character, which Postgres cannot store; {_ADVICE}."
        )
    return text, data


_ADVICE = "fix it, or open the outbox with poison='escape'"


def _plain(value: Any) -> Any:
    if isinstance(value, (UUID, Decimal)):
        return str(value)
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} has no JSON form")


def _make_encode() -> Callable[[Mapping[str, Any]], str]:
    """Return JSONEncoder's `encode` with its C encoder set up once instead of for each call.

    The set-up takes half the time of encoding a small record. Without a C encoder, return
    `encode` itself.
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


def _refuse_keys(value: Any, path: str) -> None:
    """Refuse keys that are not text: JSON gives 1 and "1" one form, and jsonb keeps the last."""
    if _is_flat(value):
        return
    if not isinstance(value, Mapping):
        for inner in value:
            if _is_container(inner):
                _refuse_keys(inner, path)
        return
    for key, inner in value.items():
        if not isinstance(key, str):
            location = f" in {path}" if path else ""
            raise NotStorable(f"The key {key!r}{location} is not text; write it as {str(key)!r}.")
        if _is_container(inner):
            _refuse_keys(inner, f"{path}.{key}" if path else key)


def _is_flat(value: Any) -> bool:
    """Return whether this is a dict of texts to scalars, as most records are; runs no loop."""
    return (
        type(value) is dict
        and _TEXT.issuperset(map(type, value))
        and _SCALARS.issuperset(map(type, value.values()))
    )


def _is_container(value: Any) -> bool:
    return type(value) not in _SCALARS and isinstance(value, _CONTAINERS)


def _escaped(value: Any) -> Any:
    r"""Return the value with what jsonb cannot store written out: `\u0000`, `\ud800`, "nan"."""
    if isinstance(value, str):
        return _UNSTORABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        escaped = {_escaped(key): _escaped(inner) for key, inner in value.items()}
        if len(escaped) < len(value):
            raise NotStorable("The record has two keys that are equal once escaped; rename one.")
        return escaped
    if isinstance(value, (list, tuple)):
        return [_escaped(inner) for inner in value]
    return value
