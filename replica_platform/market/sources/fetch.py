"""Asking a source for many symbols, so that one that fails costs one symbol, by name."""

from collections.abc import Callable, Sequence
from datetime import date

import pandas as pd

from replica_platform.market.errors import BadBars, SourceFailed
from replica_platform.market.sources.protocol import Fetched, Source, empty_bars, normalise_bars

ATTEMPTS = 3
PAUSE_S = 0.5


def fetch_bars(
    source: Source,
    symbols: Sequence[str],
    start: date,
    end: date,
    *,
    pause: Callable[[float], object],
) -> Fetched:
    """Return the bars of `symbols`, with the reason for each symbol that has failed every attempt.

    All symbols are asked for together first; those that failed then one by one, so that one bad
    answer does not take the others with it.

    Args:
        source: The source.
        symbols: The symbols to ask for.
        start: The first day, included.
        end: The last day, included.
        pause: Waits for a number of seconds between two attempts.

    Raises:
        SourceFailed: The source failed for every symbol.
    """
    frames: list[pd.DataFrame] = []
    failed = _ask(source, list(symbols), start, end, frames)
    for attempt in range(1, ATTEMPTS):
        if not failed:
            break
        if len(failed) == len(symbols) > 1 and attempt == ATTEMPTS - 1:
            break  # the source itself is down; asking thousands of symbols one by one is no help
        pause(PAUSE_S * 2**attempt)
        several = len(failed) == len(symbols)
        again = [list(failed)] if several else [[symbol] for symbol in failed]
        failed = {
            symbol: reason
            for group in again
            for symbol, reason in _ask(source, group, start, end, frames).items()
        }
    if failed and len(failed) == len(symbols):
        symbol, reason = next(iter(failed.items()))
        raise SourceFailed(
            f"{source.name} failed for all {len(failed)} symbols, {symbol} for example: {reason}. "
            "See whether it can be reached, and run this again."
        )
    frame = pd.concat(frames, ignore_index=True) if frames else empty_bars()
    return Fetched(frame.sort_values(["day", "symbol"], ignore_index=True), failed)


def _ask(
    source: Source, symbols: list[str], start: date, end: date, frames: list[pd.DataFrame]
) -> dict[str, str]:
    """Append the bars of the symbols that answered; return why the others did not."""
    try:
        answer = source.bars(symbols, start, end)
    except (SourceFailed, BadBars, OSError) as error:
        return dict.fromkeys(symbols, " ".join(str(error).split()))
    failed = dict(answer.failed)
    frame = answer.frame
    if len(frame):
        frame = frame[~frame["symbol"].isin(failed)]
        try:
            frame = normalise_bars(frame, source.name)
        except BadBars as error:
            if len(symbols) == 1:
                return {symbols[0]: str(error)}
            return {**failed, **dict.fromkeys(set(symbols) - failed.keys(), str(error))}
        unexpected = ~frame["symbol"].isin(symbols)
        if unexpected.any():
            frame = frame[~unexpected]
        frames.append(frame)
    return failed
