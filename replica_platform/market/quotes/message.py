"""A message of the topic: JSON, and the schema that describes it."""

import json
from importlib.resources import files
from typing import Any

from replica_platform.market.quotes.protocol import Quote
from replica_platform.market.quotes.watched import Watched

# Published: consumers validate by it. A change that an old consumer cannot read needs a new file.
SCHEMA: dict[str, Any] = json.loads(
    files("replica_platform.market.quotes").joinpath("quote.schema.json").read_text("utf-8")
)


def encode(quote: Quote, watched: Watched, rung: str | None, generation: int | None) -> bytes:
    """Return a message as JSON in UTF-8.

    Args:
        quote: The quote.
        watched: The symbol's last close in the replica.
        rung: How the replica was read: `current`, or the reader's fallback.
        generation: The generation that the close is from.
    """
    close = watched.close
    message = {
        "symbol": quote.symbol,
        "last_price": quote.price,
        "change": quote.price / close - 1 if close else None,
        "close": close,
        "as_of": watched.as_of.isoformat() if watched.as_of else None,
        "quoted_at": quote.quoted_at.isoformat(),
        "source": quote.source,
        "rung": rung,
        "generation": generation,
    }
    return json.dumps(message, ensure_ascii=False, allow_nan=False).encode()
