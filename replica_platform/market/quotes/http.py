"""Quotes by polling an address that answers with JSON, by a mapping of its fields."""

import json
import os
import re
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from replica_platform.market.errors import SourceFailed
from replica_platform.market.quotes.protocol import Quote
from replica_platform.market.quotes.watched import price_of

PLACE = "{symbols}"
# `$NAME` in a header is the environment variable NAME, so that no token is in a file.
VARIABLE = re.compile(r"\$([A-Z][A-Z0-9_]*)")
# Later than any date in seconds: such a number is in milliseconds.
MILLISECONDS = 1e11


class HttpMapping(BaseModel):
    """How to ask an address for quotes, and where they are in its answer.

    Attributes:
        kind: `http`.
        name: What the source is called in messages.
        url: The address; `{symbols}` is replaced by the symbols, comma-separated.
        headers: Headers of the request; `$NAME` in a value is an environment variable.
        items: The path of the list of quotes in the answer, names separated by dots; the answer
            itself when empty. An object instead of a list is taken by its values.
        symbol: The path of the symbol in an item.
        price: The path of the price in an item, in US dollars.
        time: The path of the time in an item: ISO 8601 or seconds or milliseconds since 1970; the
            time of the answer when absent.
        timeout_s: How long to wait for an answer, in seconds.
        batch: How many symbols one request asks for.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["http"]
    name: str = "http"
    url: str
    headers: Mapping[str, str] = Field(default_factory=dict)
    items: str = ""
    symbol: str = "symbol"
    price: str = "price"
    time: str | None = None
    timeout_s: float = Field(default=2.0, gt=0)
    batch: int = Field(default=100, ge=1)


class HttpSource:
    """Quotes of an address.

    Args:
        mapping: How to ask it.
    """

    def __init__(self, mapping: HttpMapping) -> None:
        self._mapping = mapping
        self.name = mapping.name

    def quotes(self, symbols: Sequence[str]) -> Mapping[str, Quote]:
        """Return the quotes of the symbols that the address knows.

        An item without a usable symbol or price is left out.

        Raises:
            SourceFailed: The address does not answer with the JSON that the mapping describes.
        """
        found: dict[str, Quote] = {}
        size = self._mapping.batch
        for start in range(0, len(symbols), size):
            for item in self._items(symbols[start : start + size]):
                if quote := self._quote(item):
                    found[quote.symbol] = quote
        return found

    def _items(self, symbols: Sequence[str]) -> list[Any]:
        mapping = self._mapping
        wanted = urllib.parse.quote(",".join(symbols), safe=",")
        request = urllib.request.Request(
            mapping.url.replace(PLACE, wanted),
            headers={name: _filled(value) for name, value in mapping.headers.items()},
        )
        try:
            with urllib.request.urlopen(request, timeout=mapping.timeout_s) as answer:
                content = json.load(answer)
        except (OSError, ValueError) as error:  # the address is not named: it may hold a token
            raise SourceFailed(f"{self.name}: {type(error).__name__}: {error}") from error
        items = _at(content, mapping.items)
        if isinstance(items, dict):
            items = list(items.values())
        if not isinstance(items, list):
            raise SourceFailed(f"{self.name}: the answer has no list at “{mapping.items}”.")
        return items

    def _quote(self, item: Any) -> Quote | None:
        symbol, price = _at(item, self._mapping.symbol), price_of(_at(item, self._mapping.price))
        if not isinstance(symbol, str) or price is None:
            return None
        moment = _moment(_at(item, self._mapping.time)) if self._mapping.time else None
        return Quote(symbol, price, moment or datetime.now(UTC), self.name)


def _at(value: Any, path: str) -> Any:
    """Return what is at a path of names; None where there is nothing."""
    for name in path.split(".") if path else ():
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def _moment(value: Any) -> datetime | None:
    try:
        if isinstance(value, str) and not value.replace(".", "", 1).isdigit():
            moment = datetime.fromisoformat(value)
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        number = float(value)
        return datetime.fromtimestamp(number / 1000 if number > MILLISECONDS else number, UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def _filled(value: str) -> str:
    def variable(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise SourceFailed(f"The environment variable {match[1]} of a header is not set.")
        return os.environ[match[1]]

    return VARIABLE.sub(variable, value)
