"""The rules that choose the watchlist, from a YAML file.

```yaml
include: [AAPL, MSFT]        # always watched, if they have bars
exclude: []                  # never watched
only_included: false         # true: nothing but `include`
sessions: 20                 # the averages below are over this many sessions
min_price: 1                 # US dollars, of the newest close
min_average_volume: 100000   # shares a session
min_average_turnover: 1e6    # US dollars a session: close times volume
top: 100                     # of those, the most by turnover; `include` comes on top
```

A rule that is left out excludes nothing; an absent file stands for `top: 100`.
"""

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from replica_platform.market.errors import BadWatchlist


class WatchRules(BaseModel):
    """Which symbols are watched; see the module."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    only_included: bool = False
    sessions: int = Field(default=20, ge=2, le=260)
    min_price: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    min_average_volume: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    min_average_turnover: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    top: int | None = Field(default=100, ge=1)


def load_rules(path: Path | None) -> WatchRules:
    """Return the rules of a file; the default ones when there is none.

    Raises:
        BadWatchlist: The file is missing or a key of it is wrong.
    """
    if path is None:
        return WatchRules()
    try:
        content = yaml.safe_load(path.read_text("utf-8")) or {}
        return WatchRules.model_validate(content)
    except OSError as error:
        raise BadWatchlist(f"{path} cannot be read: {error}; check REPLICA_WATCH_RULES.") from error
    except yaml.YAMLError as error:
        raise BadWatchlist(f"{path} is no YAML: {' '.join(str(error).split())}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        known = ", ".join(WatchRules.model_fields)
        raise BadWatchlist(f"{path}: {key}: {first['msg']}. The rules are {known}.") from error
