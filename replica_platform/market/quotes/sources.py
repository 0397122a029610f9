"""Several sources of quotes: priorities, health and failover, and the file that lists them."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from replica_platform.market.errors import BadWatchlist
from replica_platform.market.quotes.http import HttpMapping, HttpSource
from replica_platform.market.quotes.protocol import Quote, QuoteSource
from replica_platform.market.quotes.replay import ReplaySource
from replica_platform.market.reader import MarketReader

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0


class BadSources(BadWatchlist):
    """The file of quote sources cannot be used; the text names the entry."""


@dataclass
class Health:
    """How a source has been doing.

    Attributes:
        failures: How many times in a row it failed; 0 when it is well.
        until: When it is asked again, by the monotonic clock, in seconds.
        error: Why it failed last.
    """

    failures: int = 0
    until: float = 0.0
    error: str | None = None


class QuoteSources:
    """Sources in the order of their priority, asked until every symbol has a quote.

    A source is asked only for the symbols that those before it did not have. One that fails is left
    alone for a second, then two, up to a minute; the next one answers in its place.

    Args:
        sources: The sources, the preferred one first.
        max_age_s: How old a quote may be, in seconds; None for any age.
        clock: A monotonic clock, in seconds.
    """

    def __init__(
        self,
        sources: Sequence[QuoteSource],
        *,
        max_age_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sources = list(sources)
        self._max_age_s = max_age_s
        self._clock = clock
        self.health = {source.name: Health() for source in sources}

    @property
    def failing(self) -> dict[str, str]:
        """Why each source that is not well failed, by name."""
        return {name: health.error or "" for name, health in self.health.items() if health.failures}

    def quotes(self, symbols: Iterable[str]) -> dict[str, Quote]:
        """Return a quote of each symbol that any source has, from the first one that has it."""
        found: dict[str, Quote] = {}
        missing = list(symbols)
        for source in self._sources:
            if not missing:
                break
            health = self.health[source.name]
            if self._clock() < health.until:
                continue
            try:
                answer = source.quotes(missing)
            except Exception as error:  # whatever a source does, the others still answer
                health.failures += 1
                pause = FIRST_PAUSE_S * 2 ** min(health.failures - 1, 10)
                health.until = self._clock() + min(pause, LONGEST_PAUSE_S)
                health.error = f"{type(error).__name__}: {error}"
                continue
            health.failures, health.error = 0, None
            found |= {
                symbol: answer[symbol]
                for symbol in missing
                if symbol in answer and not self._is_old(answer[symbol])
            }
            missing = [symbol for symbol in missing if symbol not in found]
        return found

    def _is_old(self, quote: Quote) -> bool:
        if self._max_age_s is None:
            return False
        return time.time() - quote.quoted_at.timestamp() > self._max_age_s


class _Replay(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: Literal["replay"]
    speed: float = Field(default=1.0, gt=0)
    days: int = Field(default=90, ge=1)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    sources: list[Annotated[HttpMapping | _Replay, Field(discriminator="kind")]] = Field(
        min_length=1
    )
    max_age_s: float | None = Field(default=None, gt=0)


def load_sources(path: Path | None, reader: MarketReader, *, speed: float = 1.0) -> QuoteSources:
    """Return the sources of a YAML file, in its order; a replay of bars when there is none.

    Args:
        path: The file: `sources`, a list of entries with `kind: http` or `kind: replay`, and
            `max_age_s`.
        reader: A reader of the replica, for a replay.
        speed: Days of a replay per second, when there is no file.

    Raises:
        BadSources: The file is missing or an entry is wrong.
    """
    if path is None:
        return QuoteSources([ReplaySource(reader, speed=speed)])
    try:
        listed = _File.model_validate(yaml.safe_load(path.read_text("utf-8")) or {})
    except OSError as error:
        raise BadSources(f"{path} cannot be read: {error}.") from error
    except yaml.YAMLError as error:
        raise BadSources(f"{path} is no YAML: {' '.join(str(error).split())}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BadSources(f"{path}: {where}: {first['msg']}.") from error
    sources: list[QuoteSource] = [
        HttpSource(entry)
        if isinstance(entry, HttpMapping)
        else ReplaySource(reader, speed=entry.speed, days=entry.days)
        for entry in listed.sources
    ]
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise BadSources(f"{path}: two sources have one name; each needs its own `name`.")
    return QuoteSources(sources, max_age_s=listed.max_age_s)
