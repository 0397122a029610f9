"""What every entry of a `defs.yaml` has, and the checks that entries share."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, ConfigDict

from replica_platform.app.cron import assert_cron
from replica_platform.core.errors import TerminalError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# The tag of an asset with the host that it lives on.
HOST_TAG = "replica/host"
# The queue and the host of assets that name none.
CENTRAL = "central"
_OWNER = re.compile(r"team:[^\s:]+|[^\s@]+@[^\s@]+")


class WrongEntry(TerminalError):
    """An entry of a `defs.yaml` cannot be used; the text names the file, the line and the cause."""


def checked(check: Callable[[Any], str]) -> AfterValidator:
    """Return a validator that refuses what `check` finds wrong.

    A template such as `{{ env.OWNER }}` is left to Dagster, which validates what it stands for.
    """

    def validate(value: Any) -> Any:
        if not (isinstance(value, str) and "{{" in value) and (wrong := check(value)):
            raise ValueError(wrong)
        return value

    return AfterValidator(validate)


def wrong_name(text: str) -> str:
    """Return what is wrong with a name of an entry or a host; empty if nothing is."""
    return "" if _NAME.fullmatch(text) else f"{text!r} is not a name of letters, digits and _"


def _variable(text: str) -> str:
    # Not repeated: it may be a connection string with its password.
    wrong = "this is not the name of an environment variable, such as SHOP_DSN"
    return "" if _NAME.fullmatch(text) else wrong


def _owner(text: str) -> str:
    wrong = f"{text!r} is neither team:NAME nor an e-mail address"
    return "" if _OWNER.fullmatch(text) else wrong


def _tags(tags: Mapping[str, str]) -> str:
    wrong = f"the host of an entry is not a tag; write `host: {tags.get(HOST_TAG)}` beside `tags`"
    return wrong if HOST_TAG in tags else ""


def wrong_cron(text: str) -> str:
    """Return what is wrong with a cron schedule; empty if nothing is."""
    try:
        assert_cron(text)
    except ValueError as error:
        return str(error)
    return ""


def _timezone(text: str) -> str:
    try:
        ZoneInfo(text)
    except (ValueError, ZoneInfoNotFoundError):
        return f"there is no time zone {text!r}; write one such as Europe/Berlin"
    return ""


def _positive(number: float) -> str:
    return "" if number > 0 else f"{number} should be greater than 0"


def _not_negative(number: float) -> str:
    return "" if number >= 0 else f"{number} should be at least 0"


def _kept(number: int) -> str:
    return "" if number >= 2 else f"{number} should be at least 2: the current one and another"


def _file_name(text: str) -> str:
    return (
        "" if text and "/" not in text else f"{text!r} is not the name of a file without a folder"
    )


def _fraction(number: float) -> str:
    return "" if 0 <= number <= 1 else f"{number} should be between 0 and 1"


Name = Annotated[str, checked(wrong_name)]
Variable = Annotated[str, checked(_variable)]
Owner = Annotated[str, checked(_owner)]
Cron = Annotated[str, checked(wrong_cron)]
Timezone = Annotated[str, checked(_timezone)]
Positive = Annotated[int, checked(_positive)]
NotNegative = Annotated[float, checked(_not_negative)]
Kept = Annotated[int, checked(_kept)]
FileName = Annotated[str, checked(_file_name)]
Fraction = Annotated[float, checked(_fraction)]


class Part(BaseModel):
    """A part of an entry; an attribute that it does not have is refused."""

    model_config = ConfigDict(extra="forbid")


class Entry(Part):
    """What every entry has.

    Attributes:
        owners: Who answers for the assets: `team:NAME` or an e-mail address.
        tags: Tags of the assets.
        host: The name of the host whose worker runs what concerns the assets, since their files
            are there; of synced tables a queue that several workers may serve. Where no entry
            names one, everything runs on one machine.
    """

    owners: Sequence[Owner] = ("team:platform",)
    tags: Annotated[Mapping[str, str], checked(_tags)] = {}
    host: Name | None = None

    @property
    def asset_tags(self) -> dict[str, str]:
        """The tags of the assets, their host included."""
        return {**self.tags, **host_tags(self.host)}


def host_tags(host: str | None) -> dict[str, str]:
    """Return the tags of what lives on a host; none where no host is named."""
    return {HOST_TAG: host} if host else {}


def host_pool(pool: str, host: str | None) -> str:
    """Return the name of a pool of one host, since Dagster's pools are those of all hosts.

    Args:
        pool: The name of the pool on one machine.
        host: The host; None where none is named, so that the pool keeps its name.
    """
    return f"{pool}_{host}" if host else pool


def environment_dsn(variable: str) -> str:
    """Return the DSN in an environment variable.

    Raises:
        WrongEntry: The variable is not set.
    """
    dsn = os.environ.get(variable)
    if not dsn:
        raise WrongEntry(
            f"The environment variable {variable} is not set; set it to a DSN such as "
            "postgresql://user:password@host:5432/database, here or in the file .env."
        )
    return dsn
