"""Which column type may become which other one without losing a value."""

# By type; varchar and numeric also by their sizes, see `_fits`.
_WIDER = {
    "smallint": {"integer", "bigint", "numeric"},
    "integer": {"bigint", "numeric"},
    "bigint": {"numeric"},
    "real": {"double precision"},
    "character varying": {"text"},
    "character": {"text", "character varying"},
    "date": {"timestamp without time zone"},
    "json": {"text"},
}


def widens(old: str, new: str) -> bool:
    """Return whether every value of type `old` is one of `new`, both as `format_type` spells."""
    if old.endswith("[]") and new.endswith("[]"):
        return widens(old[:-2], new[:-2])
    old_name, old_size = _split(old)
    new_name, new_size = _split(new)
    if old_name != new_name:
        return new_name in _WIDER.get(old_name, set()) and not new_size
    if not new_size:
        return True
    return bool(old_size) and _fits(old_name, old_size, new_size)


def _fits(name: str, old: list[int], new: list[int]) -> bool:
    if name == "numeric":
        (precision, scale), (new_precision, new_scale) = old, new
        return new_scale >= scale and new_precision - new_scale >= precision - scale
    return name != "character" and new[0] >= old[0]


def _split(kind: str) -> tuple[str, list[int]]:
    """Return a type's name without its sizes, and the sizes."""
    name, bracket, rest = kind.partition("(")
    numbers, _, tail = rest.partition(")")
    sizes = [int(number) for number in numbers.split(",")] if bracket else []
    return name.strip() + (tail if bracket else ""), sizes
