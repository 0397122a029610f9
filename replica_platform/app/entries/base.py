"""What every entry of a `defs.yaml` has, and the checks that entries share."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from replica_platform.app.cron import assert_cron
from replica_platform.core.errors import TerminalError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OWNER = re.compile(r"team:[^\s:]+|[^\s@]+@[^\s@]+")


class WrongEntry(TerminalError):
    """An entry of a `defs.yaml` cannot be used; the text names the file, the line and the cause."""


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(f"{text!r} is not a name of letters, digits and _")
    return text


def _variable(text: str) -> str:
    if not _VARIABLE.fullmatch(text):
        # Not repeated: it may be a connection string with its password.
        raise ValueError("this is not the name of an environment variable, such as SHOP_DSN")
    return text


def _owner(text: str) -> str:
    if not _OWNER.fullmatch(text):
        raise ValueError(f"{text!r} is neither team:NAME nor an e-mail address")
    return text


def _cron(text: str) -> str:
    assert_cron(text)
    return text


Name = Annotated[str, AfterValidator(_name)]
Variable = Annotated[str, AfterValidator(_variable)]
Owner = Annotated[str, AfterValidator(_owner)]
Cron = Annotated[str, AfterValidator(_cron)]


class Part(BaseModel):
    """A part of an entry; an attribute that it does not have is refused."""

    model_config = ConfigDict(extra="forbid")


class Entry(Part):
    """What every entry has.

    Attributes:
        owners: Who answers for the assets: `team:NAME` or an e-mail address.
        tags: Tags of the assets.
    """

    owners: Sequence[Owner] = ("team:platform",)
    tags: Mapping[str, str] = {}


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
