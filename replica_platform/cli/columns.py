"""Options of the columns that a sync copies and masks, and of the secret of its hashes."""

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from replica_platform.xmin import Mask

FORMS = "COLUMN=null, COLUMN=hash or COLUMN=fixed:VALUE"


def choice_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose columns."""
    for decorate in (
        click.option(
            "--column",
            "columns",
            multiple=True,
            metavar="COLUMN",
            help="Copy only this column and others so named; may be repeated.",
        ),
        click.option(
            "--leave-out",
            "left_out",
            multiple=True,
            metavar="COLUMN",
            help="Do not copy this column of any TABLE; may be repeated.",
        ),
    ):
        command = decorate(command)
    return command


def mask_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that mask columns; `masks` is what `_read_masks` returns."""
    for decorate in (
        click.option(
            "--mask",
            "masks",
            multiple=True,
            metavar="COLUMN=MASK",
            callback=_read_masks,
            help="What the target holds instead: null, hash or fixed:VALUE; may be repeated.",
        ),
        click.option(
            "--salt-env",
            metavar="VARIABLE",
            is_eager=True,  # read before the masks, which need it
            help="The environment variable with the secret of the masks `hash`.",
        ),
    ):
        command = decorate(command)
    return command


def _read_masks(
    context: click.Context, _: click.Parameter, given: tuple[str, ...]
) -> "Mapping[str, Mask]":
    """Return the masks by column.

    Raises:
        click.BadParameter: One has another form, is given twice, or lacks the salt.
    """
    masks: dict[str, Mask] = {}
    for text in given:
        column, separator, kind = text.rpartition("=") if "=fixed:" not in text else _fixed(text)
        if not (column and separator):
            raise click.BadParameter(f"{text!r} is none of {FORMS}.")
        if column in masks:
            raise click.BadParameter(f"{column} is masked twice; mask it once.")
        masks[column] = _mask(kind, context.params.get("salt_env"))
    return masks


def _fixed(text: str) -> tuple[str, str, str]:
    column, _, value = text.partition("=fixed:")
    return column, "=", f"fixed:{value}"


def _mask(kind: str, salt_env: str | None) -> "Mask":
    # Imported late: the engine is not needed for the help.
    from replica_platform.xmin import Mask

    if kind == "null":
        return Mask("null")
    if kind.startswith("fixed:"):
        return Mask("fixed", value=kind.removeprefix("fixed:"))
    if kind != "hash":
        raise click.BadParameter(f"{kind!r} is no mask; write {FORMS}.")
    salt = os.environ.get(salt_env or "")
    if not salt:
        raise click.BadParameter(
            f"a mask is hash, and {salt_env} is not set; set it to the secret of the last sync."
            if salt_env
            else "a mask is hash, which needs a secret; name the environment variable that holds "
            "it as --salt-env."
        )
    return Mask("hash", salt=salt)
